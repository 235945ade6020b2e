// Edit distance and the nearest name.
import assert from "node:assert/strict";
import fc from "fast-check";
import { editDistance, nearest } from "../../lib/core/nearest.ts";

describe("nearest", () => {
  it("counts insertions, deletions, changes and swaps", () => {
    for (const [a, b, distance] of [
      ["", "", 0],
      ["", "abc", 3],
      ["kitten", "sitting", 3],
      ["stpes", "steps", 1],
      ["mesh", "mash", 1],
    ] as const) {
      assert.equal(editDistance(a, b), distance, `${a} ${b}`);
    }
  });

  it("is symmetric, zero only for equals, at most the longer length", () => {
    const word = fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 7 });
    fc.assert(
      fc.property(word, word, (a, b) => {
        const distance = editDistance(a, b);
        assert.equal(distance, editDistance(b, a));
        assert.equal(distance === 0, a === b);
        assert.ok(distance <= Math.max(a.length, b.length) && distance >= Math.abs(a.length - b.length));
      }),
    );
  });

  it("finds the nearest name", () => {
    assert.equal(nearest("lerning-rate", ["seed", "learning-rate", "steps"]), "learning-rate");
    assert.equal(nearest("x", []), undefined);
  });
});
