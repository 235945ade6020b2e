// Writes the composition matrix of docs/LAYOUTS.md: trains every model in every layout, beside one device. Takes
// minutes.
import { writeFileSync } from "node:fs";
import {
  cellText,
  type Letter,
  letters,
  type Outcome,
  outcomeOf,
  pairs,
  singles,
  triples,
  wholes,
} from "../test/parallel/matrix.ts";
import { document, documentWith } from "../test/parallel/matrix-tables.ts";

const outcomes = new Map<string, ReadonlyMap<Letter, Outcome>>();
for (const cell of [...singles, ...pairs, ...triples, ...wholes]) {
  const found = new Map<Letter, Outcome>();
  for (const letter of letters) {
    try {
      found.set(letter, await outcomeOf(letter, cell));
    } catch (error) {
      throw new Error(`${cellText(cell)} with model ${letter}: ${(error as Error).message}`, { cause: error });
    }
  }
  outcomes.set(cellText(cell), found);
}
writeFileSync(document, documentWith(outcomes));
