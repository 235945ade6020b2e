// The simulator: known makespans and bubbles, buffering, transfer times.
import assert from "node:assert/strict";
import { PlanError } from "../../lib/core/errors.ts";
import { pipelineActions } from "../../lib/passes/actions.ts";
import { gpipe, oneFOneB } from "../../lib/passes/schedule.ts";
import { simulate } from "../../lib/passes/simulate.ts";
import { chain, edited } from "./pipelines.ts";

describe("simulate", () => {
  it("finds the known makespan and bubble of gpipe and 1f1b, with and without buffering", () => {
    for (const make of [gpipe, oneFOneB]) {
      for (let p = 1; p <= 6; p++) {
        for (let m = 1; m <= 12; m++) {
          const { devices, slots } = pipelineActions(make(p, m), chain(p));
          for (const [F, B] of [
            [1, 1],
            [1, 2],
            [3, 2],
          ] as const) {
            for (const unbuffered of [false, true]) {
              const stages = devices.map(() => ({ F, B }));
              const { makespan, bubble, peakSlots } = simulate(devices, { stages }, { unbuffered });
              assert.equal(makespan, (m + p - 1) * (F + B));
              assert.ok(Math.abs(bubble - (p - 1) / (m + p - 1)) < 1e-12);
              assert.deepEqual(peakSlots, slots);
            }
          }
        }
      }
    }
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

  it("gives every action's start and end; a send waits only when unbuffered", () => {
    const { devices } = pipelineActions(gpipe(2, 2), [{ value: 0, from: 0, to: 1, segment: "F" }]);
    const stages = [
      { F: 1, B: 1 },
      { F: 5, B: 1 },
    ];
    const starts = (unbuffered: boolean): number[] =>
      simulate(devices, { stages }, { unbuffered }).devices[0]!.flatMap(({ action, start }) =>
        action.kind === "run" ? [start] : [],
      );
    assert.deepEqual(starts(false), [0, 1, 2, 3]);
    assert.deepEqual(starts(true), [0, 1, 6, 7]);
    const [first] = simulate(devices, { stages }).devices[1]!;
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
