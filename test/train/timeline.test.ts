// The simulator as a tool: its pictures are those in docs/schedules, and answers are those of the closed forms.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { ConfigError, PlanError } from "../../lib/core/errors.ts";
import { Mesh, nn, trainStep } from "../../lib/index.ts";
import type { ScheduledRun } from "../../lib/passes/schedule.ts";
import { scheduleMaker } from "../../lib/passes/schedules.ts";
import { measuredTimeline, simulateSchedule } from "../../lib/train/timeline.ts";
import { batchOf, stepOptions, workloads } from "../../bench/models.ts";
import { folder, pictures } from "../../scripts/schedules.ts";

describe("timelines", function () {
  this.timeout(60_000);

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

  it("reads a step's profile: every run once, in the schedule's order, without overlaps on a device", async () => {
    for (const schedule of ["1f1b", "zb-v"]) {
      await using mesh = await Mesh.open({ device: "cpu", axes: { pp: 2 }, threads: 1 });
      const model = new nn.GPT2(workloads.demo.config);
      const options = { ...stepOptions(model, workloads.demo), batchSize: 4, microbatches: 4, schedule };
      using step = await trainStep(mesh, model, options);
      mesh.engine.profile(true);
      await step.run(batchOf({ ...workloads.demo, batchSize: 4 }));
      const { profile } = mesh.engine.stats();
      const timeline = measuredTimeline(schedule, step.plan.devices, profile);
      const planned = scheduleMaker(schedule)(2, 4).devices;
      planned.forEach((runs, device) => {
        const found = timeline.runs.filter((r) => r.device === device);
        const words = (list: readonly ScheduledRun[]): string[] =>
          list.map((r) => `${r.stage}${r.segment}${r.microbatch}`);
        assert.deepEqual(words(found), words(runs));
        found.forEach((r, i) => {
          assert.ok(r.end >= r.start && (i === 0 || r.start >= found[i - 1]!.end));
        });
      });
      assert.throws(
        () =>
          measuredTimeline(
            "another",
            step.plan.devices,
            profile.filter((e) => e.op !== "adamw"),
          ),
        PlanError,
      );
    }
  });

  it("refuses what no schedule can be", () => {
    assert.throws(() => simulateSchedule({ schedule: "x", devices: 2, microbatches: 2, times: {} }), PlanError);
    const gpipe = { schedule: "gpipe", virtualStages: 2, devices: 2, microbatches: 2, times: {} };
    assert.throws(() => simulateSchedule(gpipe), ConfigError);
  });
});
