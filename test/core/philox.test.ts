// Philox against the published known answers, and uniform numbers.
import assert from "node:assert/strict";
import { philox, uniform, type Words } from "../../lib/core/philox.ts";

const ONES = 0xffffffff;

/** Counter, key and output of philox4x32-10 in the known-answer file of the Random123 library. */
const ANSWERS: readonly (readonly [Words, readonly [number, number], Words])[] = [
  [
    [0, 0, 0, 0],
    [0, 0],
    [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
  ],
  [
    [ONES, ONES, ONES, ONES],
    [ONES, ONES],
    [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
  ],
  [
    [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
    [0xa4093822, 0x299f31d0],
    [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
  ],
];

describe("philox", () => {
  it("gives the published answers", () => {
    for (const [counter, key, expected] of ANSWERS) assert.deepEqual(philox(counter, key), expected);
  });

  it("makes uniform numbers that depend on seed, site and index", () => {
    const draws = Array.from({ length: 4000 }, (_, i) => uniform(7, 1, i));
    assert.ok(draws.every((value) => value >= 0 && value < 1));
    const mean = draws.reduce((sum, value) => sum + value, 0) / draws.length;
    // Five standard errors.
    assert.ok(Math.abs(mean - 0.5) < 5 * Math.sqrt(1 / 12 / draws.length), `${mean}`);
    const all = [
      uniform(0, 0, 0),
      uniform(1, 0, 0),
      uniform(2 ** 32, 0, 0),
      uniform(0, 1, 0),
      uniform(0, 0, 1),
      uniform(0, 0, 2 ** 32),
    ];
    assert.equal(new Set(all).size, all.length);
  });
});
