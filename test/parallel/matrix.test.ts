// The composition matrix: every pair of ways to split a model trains as one device does, or is refused for the reason
// that docs/LAYOUTS.md states. MESHWORK_LONG=1 runs every model in every pair, every triple and all axes at once; else
// one model in each pair.
import assert from "node:assert/strict";
import { type Cell, cellText, letters, outcomeOf, ownModel, pairs, singles, triples, wholes } from "./matrix.ts";
import { documentedTables, readTables, tablesText } from "./matrix-tables.ts";

const long = process.env.MESHWORK_LONG === "1";

describe("composition matrix", function () {
  this.timeout(120_000);
  const documented = readTables(documentedTables());

  function runAll(cells: readonly Cell[], whole: boolean): void {
    for (const cell of cells) {
      it(`${cellText(cell)} is as docs/LAYOUTS.md says`, async () => {
        for (const letter of whole ? letters : [ownModel(cell)]) {
          const outcome = await outcomeOf(letter, cell);
          assert.equal(outcome, documented.get(cellText(cell))!.get(letter), `${letter}: run npm run layouts`);
        }
      });
    }
  }

  it("docs/LAYOUTS.md has every cell and every model", () => {
    for (const cell of [...singles, ...pairs, ...triples, ...wholes]) {
      assert.deepEqual([...(documented.get(cellText(cell))?.keys() ?? [])], letters, cellText(cell));
    }
    assert.equal(documentedTables(), tablesText(documented));
  });

  runAll(singles, true);
  runAll(pairs, long);
  if (long) runAll([...triples, ...wholes], true);
});
