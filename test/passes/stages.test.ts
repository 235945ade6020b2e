// Stage assignment: balanced as well as any contiguous cut, as the user says, and refused when a stage is empty.
import assert from "node:assert/strict";
import fc from "fast-check";
import { PlanError } from "../../lib/core/errors.ts";
import { type StageBlock, assignStages } from "../../lib/passes/stages.ts";

const blocksOf = (...costs: number[]): StageBlock[] => costs.map((cost, i) => ({ path: `h.${i}`, cost }));
const cutOf = (stages: number, ...costs: number[]): number[] => [
  ...assignStages(blocksOf(...costs), stages).stageOfBlock.values(),
];

describe("assignStages", () => {
  it("balances even and uneven numbers of blocks", () => {
    assert.deepEqual(cutOf(1, 1, 2, 3), [0, 0, 0]);
    assert.deepEqual(cutOf(3, 1, 1, 1, 1, 1, 1), [0, 0, 1, 1, 2, 2]);
    assert.deepEqual(cutOf(3, 1, 1, 1, 1, 1, 1, 1), [0, 0, 1, 1, 2, 2, 2]);
    assert.deepEqual(cutOf(2, 5, 1, 1, 1, 1, 1), [0, 1, 1, 1, 1, 1]);
    assert.deepEqual(cutOf(3, 0, 0, 0), [0, 1, 2]);
    assert.deepEqual(assignStages(blocksOf(2, 1, 4), 2).costs, [3, 4]);
  });

  it("finds the smallest largest cost, with contiguous stages of which none is empty", () => {
    const costs = fc.array(fc.integer({ min: 0, max: 20 }), { minLength: 1, maxLength: 9 });
    fc.assert(
      fc.property(costs, fc.integer({ min: 1, max: 5 }), (list, wanted) => {
        const stages = Math.min(wanted, list.length);
        const { costs: found, stageOfBlock } = assignStages(blocksOf(...list), stages);
        assert.equal(Math.max(...found), smallestLargest(list, stages));
        const order = [...stageOfBlock.values()];
        assert.deepEqual(
          order,
          [...order].sort((a, b) => a - b),
        );
        assert.equal(new Set(order).size, stages);
      }),
      { seed: 11, numRuns: 300 },
    );
  });

  it("takes the user's function", () => {
    const { costs, stageOf } = assignStages(blocksOf(1, 2, 4), 2, (path) => (path === "h.1" ? 0 : 1));
    assert.deepEqual(costs, [2, 5]);
    assert.deepEqual(["h.0", "h.1", "h.2"].map(stageOf), [1, 0, 1]);
  });

  it("finds the stage of what lies in a block", () => {
    const { stageOf } = assignStages(blocksOf(...new Array<number>(12).fill(1)), 2);
    assert.deepEqual(["h.1.attn.q", "h.11.mlp", "h.1", "h", "", "h.12", "wte"].map(stageOf), [
      0,
      1,
      0,
      ...new Array(4).fill(undefined),
    ]);
  });

  const wrong: [string, RegExp, () => unknown][] = [
    [
      "more stages than blocks",
      /2 blocks cannot fill 3 pipeline stages; use at most 2/,
      () => assignStages(blocksOf(1, 1), 3),
    ],
    [
      "a stage the function leaves empty",
      /no module is assigned to stage 1 of 2/,
      () => assignStages(blocksOf(1, 1), 2, () => 0),
    ],
    [
      "a stage that is not there",
      /"h.0" is assigned to stage 2; stages are 0 to 1/,
      () => assignStages(blocksOf(1, 1), 2, () => 2),
    ],
    ["a stage that is no integer", /assigned to stage 0.5/, () => assignStages(blocksOf(1, 1), 2, () => 0.5)],
    ["no stages", /positive integer, not 0/, () => assignStages(blocksOf(1), 0)],
    ["a negative cost", /"h.0" has cost -1/, () => assignStages(blocksOf(-1), 1)],
    ["a cost that is no number", /"h.0" has cost NaN/, () => assignStages(blocksOf(Number.NaN), 1)],
    ["a block listed twice", /"h.0" is listed twice/, () => assignStages([...blocksOf(1), ...blocksOf(1)], 1)],
  ];
  for (const [what, message, run] of wrong) {
    it(`refuses ${what}`, () => {
      assert.throws(run, (e: unknown) => e instanceof PlanError && message.test(e.message));
    });
  }
});

/** By trying every cut. */
function smallestLargest(costs: readonly number[], stages: number): number {
  if (stages === 1) return costs.reduce((a, b) => a + b, 0);
  let best = Infinity;
  for (let first = 1; first <= costs.length - stages + 1; first++) {
    const head = costs.slice(0, first).reduce((a, b) => a + b, 0);
    best = Math.min(best, Math.max(head, smallestLargest(costs.slice(first), stages - 1)));
  }
  return best;
}
