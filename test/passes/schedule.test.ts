// Schedules: their orders, their names, and what is refused.
import assert from "node:assert/strict";
import { ConfigError, PlanError } from "../../lib/core/errors.ts";
import { checkSchedule, type Schedule, stageDevices } from "../../lib/passes/schedule.ts";
import {
  forwardOn,
  forwardOnly,
  gpipe,
  interleaved,
  oneFOneB,
  scheduleMaker,
  scheduleNames,
  zeroBubbleH1,
  zeroBubbleV,
} from "../../lib/passes/schedules.ts";
import { scheduleOf } from "./pipelines.ts";

describe("schedules", () => {
  it("gpipe runs all forwards, then all backwards", () => {
    assert.deepEqual(gpipe(2, 3).devices, scheduleOf(2, 3, "F0 F1 F2 B0 B1 B2", "F0 F1 F2 B0 B1 B2").devices);
  });

  it("1f1b runs ahead by the number of later stages", () => {
    const expected = scheduleOf(3, 4, "F0 F1 F2 B0 F3 B1 B2 B3", "F0 F1 B0 F2 B1 F3 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3");
    assert.deepEqual(oneFOneB(3, 4).devices, expected.devices);
    assert.deepEqual(oneFOneB(3, 1).devices, scheduleOf(3, 1, "F0 B0", "F0 B0", "F0 B0").devices);
  });

  it("may run forwards only", () => {
    assert.deepEqual(forwardOnly(2, 2).devices, scheduleOf(2, 2, "F0 F1", "F0 F1").devices);
    checkSchedule(forwardOnly(2, 2));
    const folded = scheduleOf(4, 2, "0F0 0F1 3F0 3F1", "1F0 2F0 1F1 2F1");
    assert.deepEqual(forwardOn([0, 1, 1, 0], 2).devices, folded.devices);
  });

  const words = ({ devices }: Schedule): string[] =>
    devices.map((runs) => runs.map((r) => `${r.stage}${r.segment}${r.microbatch}`).join(" "));

  it("interleaved-1f1b goes through its stages round by round", () => {
    assert.deepEqual(words(interleaved(2)(2, 4)), [
      "0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 2B2 2B3 0B2 0B3",
      "1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3",
    ]);
    assert.deepEqual(interleaved(1)(3, 5).devices, oneFOneB(3, 5).devices);
  });

  it("zb-h1 delays the gradients of weights by the stage's number", () => {
    assert.deepEqual(words(zeroBubbleH1(3, 4)), [
      "0F0 0F1 0F2 0B0 0W0 0F3 0B1 0W1 0B2 0W2 0B3 0W3",
      "1F0 1F1 1B0 1F2 1B1 1W0 1F3 1B2 1W1 1B3 1W2 1W3",
      "2F0 2B0 2F1 2B1 2F2 2B2 2W0 2F3 2B3 2W1 2W2 2W3",
    ]);
  });

  it("zb-v runs the second half of the pipeline back over the devices", () => {
    assert.deepEqual(stageDevices(zeroBubbleV(3, 5)), [0, 1, 2, 2, 1, 0]);
    assert.deepEqual(words(zeroBubbleV(2, 3)), [
      "0F0 0F1 0F2 3F0 3B0 3W0 3F1 3B1 3W1 0B0 0W0 3F2 3B2 3W2 0B1 0W1 0B2 0W2",
      "1F0 2F0 1F1 2F1 2B0 2W0 1F2 1B0 1W0 2F2 2B1 2W1 1B1 2B2 1B2 1W1 2W2 1W2",
    ]);
  });

  it("are complete, in order and with ascending backwards for all sizes", () => {
    for (const name of scheduleNames) {
      for (let p = 1; p <= 6; p++) for (let m = 1; m <= 14; m++) checkSchedule(scheduleMaker(name)(p, m));
    }
    for (let v = 1; v <= 4; v++) {
      for (let p = 1; p <= 4; p++) for (let m = 1; m <= 10; m++) checkSchedule(interleaved(v)(p, m));
    }
  });

  it("are found by name; an unknown name is refused with the known ones", () => {
    assert.equal(scheduleMaker("gpipe"), gpipe);
    assert.equal(scheduleMaker("1f1b"), oneFOneB);
    for (const name of ["", "toString", "GPipe"]) {
      assert.throws(
        () => scheduleMaker(name),
        (e: unknown) => e instanceof PlanError && e.message.includes("gpipe, 1f1b") && e.details.schedule === name,
      );
    }
    assert.deepEqual(scheduleMaker("interleaved-1f1b", 3)(2, 4), interleaved(3)(2, 4));
    assert.throws(() => scheduleMaker("zb-v", 3), ConfigError);
  });

  it("refuse counts that are not positive integers", () => {
    for (const bad of [0, -1, 1.5, Number.NaN, Infinity]) {
      assert.throws(() => gpipe(bad, 1), PlanError);
      assert.throws(() => oneFOneB(1, bad), PlanError);
    }
  });

  it("may hold several stages on a device, and a separate backward for weights", () => {
    const two = scheduleOf(4, 1, "0F0 2F0 2B0 2W0 0B0 0W0", "1F0 3F0 3B0 3W0 1B0 1W0");
    checkSchedule(two);
    assert.deepEqual(stageDevices(two), [0, 1, 0, 1]);
  });

  const wrong: [string, RegExp, ReturnType<typeof scheduleOf>][] = [
    ["a missing forward", /stage 0 runs B of microbatch 0 before its F/, scheduleOf(1, 1, "B0")],
    ["a missing backward", /stage 0 never runs B of microbatch 1/, scheduleOf(1, 2, "F0 F1 B0")],
    ["a missing microbatch", /stage 0 never runs F of microbatch 1/, scheduleOf(1, 2, "F0 B0")],
    ["a run twice", /stage 0 runs F of microbatch 0 twice/, scheduleOf(1, 1, "F0 F0 B0")],
    [
      "a backward out of order",
      /stage 0 runs B of microbatch 0 after that of microbatch 1/,
      scheduleOf(1, 2, "F0 F1 B1 B0"),
    ],
    ["a W before its B", /runs W of microbatch 0 before its B/, scheduleOf(1, 1, "F0 W0 B0")],
    ["a W for some only", /never runs W of microbatch 1/, scheduleOf(1, 2, "F0 B0 W0 F1 B1")],
    ["a microbatch too many", /runs F of microbatch 1, which does not exist/, scheduleOf(1, 1, "F0 B0 F1 B1")],
    ["a stage on two devices", /runs stage 0 on devices 0 and 1/, scheduleOf(2, 1, "F0 B0", "0F0 0B0 1F0 1B0")],
    ["a stage without a device", /never runs stage 1/, scheduleOf(2, 1, "F0 B0")],
    ["a stage too many", /runs stage 1, but there are 1 stages/, scheduleOf(1, 1, "F0 B0", "F0 B0")],
  ];
  for (const [what, message, schedule] of wrong) {
    it(`are refused for ${what}`, () => {
      assert.throws(
        () => checkSchedule(schedule),
        (e: unknown) => e instanceof PlanError && message.test(e.message),
      );
    });
  }
});
