// The simulator as a tool: its pictures are those in docs/schedules, and answers are those of the closed forms.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { ConfigError, PlanError } from "../../lib/core/errors.ts";
import { simulateSchedule } from "../../lib/train/timeline.ts";
import { folder, pictures } from "../../scripts/schedules.ts";

describe("simulateSchedule", () => {
  it("draws the pictures of docs/SCHEDULES.md", () => {
    for (const [name, text] of pictures()) {
      assert.equal(readFileSync(new URL(name, folder), "utf8"), text, `docs/schedules/${name}: run npm run pictures`);
    }
  });

  it("answers with every run's times, for stages of their own times too", () => {
    const same = simulateSchedule({ schedule: "zb-h1", devices: 4, microbatches: 8, times: { F: 3, B: 3, W: 2 } });
    assert.equal(same.makespan, 8 * 8 + 3 * (3 + 3 - 2));
    assert.equal(same.runs.length, 4 * 8 * 3);
    const slow = [
      { F: 1, B: 2 },
      { F: 4, B: 8 },
    ];
    const two = { schedule: "1f1b", devices: 2, microbatches: 5, times: slow };
    assert.equal(simulateSchedule(two).makespan, 1 + 5 * 12 + 2);
    // A value passes when both sides are there; the last stage waits for its one slot and for its next value each time.
    assert.equal(simulateSchedule({ ...two, transfer: 0.5 }).makespan, 1 + 5 * (0.5 + 12 + 0.5) + 2);
  });

  it("refuses what no schedule can be", () => {
    assert.throws(() => simulateSchedule({ schedule: "x", devices: 2, microbatches: 2, times: {} }), PlanError);
    const gpipe = { schedule: "gpipe", virtualStages: 2, devices: 2, microbatches: 2, times: {} };
    assert.throws(() => simulateSchedule(gpipe), ConfigError);
  });
});
