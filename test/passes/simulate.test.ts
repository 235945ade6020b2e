// The simulator: the closed forms of the literature, memory, transfer times.
import assert from "node:assert/strict";
import { PlanError } from "../../lib/core/errors.ts";
import { pipelineActions } from "../../lib/passes/actions.ts";
import type { ScheduleMaker } from "../../lib/passes/schedule.ts";
import { gpipe, interleaved, oneFOneB, zeroBubbleH1, zeroBubbleV } from "../../lib/passes/schedules.ts";
import { type SegmentTimes, simulate } from "../../lib/passes/simulate.ts";
import { chain, edited } from "./pipelines.ts";

/** Times F, B, W of all of a device's stages together, in whole numbers so that sums are exact. */
type Times = readonly [F: number, B: number, W: number];

/** The time beyond m (F + B + W) that a schedule takes. */
function bubbleOf(make: ScheduleMaker, p: number, m: number, [F, B, W]: Times, perDevice: number): number {
  const schedule = make(p, m);
  const { devices, slots } = pipelineActions(schedule, chain(schedule.stages));
  const splits = schedule.devices[0]!.some((r) => r.segment === "W");
  const part = (n: number): number => n / perDevice;
  const times: SegmentTimes = splits ? { F: part(F), B: part(B), W: part(W) } : { F: part(F), B: part(B + W) };
  const { makespan, bubble, peakSlots } = simulate(devices, { stages: slots.map(() => times) });
  const wasted = makespan - m * (F + B + W);
  assert.ok(Math.abs(bubble - wasted / makespan) < 1e-12);
  assert.deepEqual(peakSlots, slots);
  return wasted;
}

/** The relative lengths of the zero-bubble paper's models are among these: F about B, W the shorter. */
const timesOf: readonly Times[] = [
  [60, 60, 60],
  [120, 120, 60],
  [180, 180, 96],
  [60, 120, 60],
  [240, 180, 180],
];

describe("simulate", function () {
  this.timeout(20_000);
  it("gives gpipe and 1f1b the bubble (p - 1) (F + B + W)", () => {
    for (const make of [gpipe, oneFOneB]) {
      for (const p of [1, 2, 3, 8]) {
        for (const m of [1, 2, 5, 12]) {
          for (const t of timesOf) assert.equal(bubbleOf(make, p, m, t, 1), (p - 1) * (t[0] + t[1] + t[2]));
        }
      }
    }
  });

  it("gives zb-h1 the bubble (p - 1) (F + B - W) of the zero-bubble paper, for p or more microbatches", () => {
    for (const p of [1, 2, 3, 4, 8]) {
      for (const m of [p, p + 1, 2 * p - 1, 2 * p, 3 * p]) {
        for (const t of timesOf) assert.equal(bubbleOf(zeroBubbleH1, p, m, t, 1), (p - 1) * (t[0] + t[1] - t[2]));
      }
    }
  });

  it("gives interleaved-1f1b a part of 1f1b's bubble, whatever the number of microbatches beyond p", () => {
    for (const p of [1, 2, 3, 4, 8]) {
      for (const m of [p, p + 1, 2 * p - 1, 2 * p, 3 * p]) {
        for (const t of timesOf) {
          const found = bubbleOf(interleaved(2), p, m, t, 2);
          assert.equal(found, ((p - 1) * (t[0] + t[1] + t[2])) / 2);
        }
        assert.equal(bubbleOf(interleaved(3), p, m, [60, 60, 60], 3), (p - 1) * 60);
      }
    }
  });

  it("gives zb-v no bubble but the pipeline's start, where F = B = W: (p - 1) F / 2", () => {
    for (const p of [1, 2, 3, 4, 8]) {
      for (const m of [2 * p - 1, 2 * p, 3 * p]) {
        assert.equal(bubbleOf(zeroBubbleV, p, m, [60, 60, 60], 2), (p - 1) * 30);
      }
    }
  });

  it("orders the schedules as the zero-bubble paper does", () => {
    const [p, m, t] = [8, 24, [180, 180, 96] as const];
    const bubbles = [
      bubbleOf(zeroBubbleV, p, m, t, 2),
      bubbleOf(interleaved(2), p, m, t, 2),
      bubbleOf(zeroBubbleH1, p, m, t, 1),
      bubbleOf(oneFOneB, p, m, t, 1),
    ];
    assert.deepEqual(
      bubbles,
      [...bubbles].sort((a, b) => a - b),
    );
  });

  it("adds transfer times, also per value", () => {
    const { devices } = pipelineActions(gpipe(2, 1), chain(2));
    const stages = [
      { F: 1, B: 2 },
      { F: 1, B: 2 },
    ];
    assert.equal(simulate(devices, { stages, transfer: 0.5 }).makespan, 7);
    assert.equal(simulate(devices, { stages, transfer: (item) => (item.value === 0 ? 3 : 0) }).makespan, 9);
  });

  it("gives every action's start and end; a send does not hold its device up", () => {
    const { devices } = pipelineActions(gpipe(2, 2), [{ value: 0, from: 0, to: 1, segment: "F" }]);
    const stages = [
      { F: 1, B: 1 },
      { F: 5, B: 1 },
    ];
    const timed = simulate(devices, { stages }).devices;
    const starts = timed[0]!.flatMap(({ action, start }) => (action.kind === "run" ? [start] : []));
    assert.deepEqual(starts, [0, 1, 2, 3]);
    const [first] = timed[1]!;
    assert.deepEqual([first!.action.kind, first!.start, first!.end], ["transfer", 0, 1]);
  });

  it("takes segments without a time as free, and empty lists as no time", () => {
    const { devices } = pipelineActions(gpipe(2, 2), chain(2));
    const { makespan, bubble } = simulate(devices, { stages: [{}, {}] });
    assert.deepEqual([makespan, bubble], [0, 0]);
  });

  it("refuses lists that never end, and stages without times", () => {
    const plan = pipelineActions(gpipe(2, 2), chain(2));
    const stages = [
      { F: 1, B: 1 },
      { F: 1, B: 1 },
    ];
    const broken = edited(plan, 0, (list) => list.filter((a) => a.kind !== "transfer"));
    assert.throws(
      () => simulate(broken, { stages }),
      (e: unknown) => e instanceof PlanError && /wait for ever/.test(e.message),
    );
    assert.throws(() => simulate(plan.devices, { stages: [{}] }), PlanError);
  });
});
