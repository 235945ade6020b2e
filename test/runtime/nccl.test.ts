// Every way to split a model, trained on emulated GPUs with the stand-in for NCCL, which holds each call of a rank
// against those of the others: order, counts, types, nesting. That wrong ones are caught and named is tested in
// native/test/nccl_stand_in. MESHWORK_LONG=1 takes every pair of ways too.
import assert from "node:assert/strict";
import { type Cell, cellText, pairs, singles } from "../parallel/matrix.ts";
import { documentedTables, readTables } from "../parallel/matrix-tables.ts";
import { ownModel } from "../parallel/matrix.ts";
import { runEmulated } from "./emulated.ts";

const matrix = new URL("../parallel/matrix.ts", import.meta.url).href;
const long = process.env.MESHWORK_LONG === "1";

/** The outcomes of some cells, in one process. */
function outcomes(cells: readonly Cell[]): unknown {
  const body = `
    const { outcomeOf, ownModel } = await import(${JSON.stringify(matrix)});
    const found = [];
    for (const cell of ${JSON.stringify(cells)}) found.push((await outcomeOf(ownModel(cell), cell)) ?? "trains");
    console.log(JSON.stringify(found));`;
  return runEmulated(body, { gpus: 8, collectives: "nccl" });
}

describe("calls of NCCL", function () {
  this.timeout(600_000);
  const documented = readTables(documentedTables());
  const expected = (cell: Cell): string => documented.get(cellText(cell))!.get(ownModel(cell)) ?? "trains";

  it(`fit together in ${singles.map(cellText).join(", ")}`, () => {
    assert.deepEqual(outcomes(singles), singles.map(expected));
  });

  it("fit together where collectives of several axes and messages meet", () => {
    const mixed = [
      ["zero 3", "tp-sp"],
      ["ep", "zb-v"],
    ];
    const cells = long ? pairs : mixed;
    assert.deepEqual(outcomes(cells), cells.map(expected));
  });
});
