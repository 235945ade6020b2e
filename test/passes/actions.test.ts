// Actions: transfers next to the runs that make and need them, slots and waits; proven for all sizes and random
// boundaries.
import assert from "node:assert/strict";
import fc from "fast-check";
import { PlanError } from "../../lib/core/errors.ts";
import { type BoundaryValue, type RunAction, type StageAction, pipelineActions } from "../../lib/passes/actions.ts";
import { prove } from "../../lib/passes/prove.ts";
import { type ScheduleMaker, stageDevices } from "../../lib/passes/schedule.ts";
import { forwardOnly, gpipe, interleaved, oneFOneB, zeroBubbleH1, zeroBubbleV } from "../../lib/passes/schedules.ts";
import { simulate } from "../../lib/passes/simulate.ts";
import { actionsText, chain, scheduleOf } from "./pipelines.ts";

const makers: readonly ScheduleMaker[] = [gpipe, oneFOneB, interleaved(2), interleaved(3), zeroBubbleH1, zeroBubbleV];

/** Slots of stages that keep nothing for gradients of weights. */
function whole(counts: readonly number[]): { FB: number; FW: number; BW: number }[] {
  return counts.map((FB) => ({ FB, FW: 0, BW: 0 }));
}

describe("pipelineActions", function () {
  this.timeout(20_000);
  it("groups what lies between two runs, and waits before a slot changes hands", () => {
    const { devices, slots } = pipelineActions(oneFOneB(2, 3), chain(2));
    assert.deepEqual(devices.map(actionsText), [
      "F0@0 {>0.0} F1@1 {>0.1 <100.0} B0@0 w0 F2@0 {>0.2 <100.1} B1@1 {<100.2} B2@0 w1 w2",
      "{<0.0} F0@0 B0@0 {>100.0} w0 {<0.1} F1@0 B1@0 {>100.1} w1 {<0.2} F2@0 B2@0 {>100.2} w2",
    ]);
    assert.deepEqual(slots, whole([2, 1]));
  });

  it("names the stages, segments and slots of both sides", () => {
    const { devices } = pipelineActions(gpipe(2, 1), [{ value: 7, from: 0, to: 1, segment: "F", needed: "B" }]);
    const item = { value: 7, microbatch: 0, slots: { FB: 0 } };
    assert.deepEqual(devices[0]![1], {
      kind: "transfer",
      items: [{ ...item, direction: "send", stage: 0, peerStage: 1, segment: "F" }],
    });
    assert.equal(actionsText(devices[1]!), "F0@0 {<7.0} B0@0");
    assert.deepEqual(devices[1]![1], {
      kind: "transfer",
      items: [{ ...item, direction: "receive", stage: 1, peerStage: 0, segment: "B" }],
    });
  });

  it("is proven, holds as few slots as its schedule needs, and runs in order, for all sizes", () => {
    for (const make of makers) {
      for (const p of [1, 2, 3, 4, 6]) {
        for (const m of [1, 2, 3, 5, 8, 12]) {
          const schedule = make(p, m);
          const { devices, slots } = pipelineActions(schedule, chain(schedule.stages));
          prove(devices, { microbatches: m, slots });
          for (const list of devices) checkOrder(list, m);
          if (make === gpipe) assert.deepEqual(slots, whole(devices.map(() => m)));
          if (make === oneFOneB) assert.deepEqual(slots, whole(devices.map((_, s) => Math.min(p - s, m))));
        }
      }
    }
  });

  it("holds under zb-h1 what the paper says: p - s microbatches before their backward, s after it", () => {
    for (let p = 1; p <= 6; p++) {
      for (let m = p; m <= 12; m++) {
        const { slots } = pipelineActions(zeroBubbleH1(p, m), chain(p));
        // After its backward and before its weights' gradients one more is held: the one whose backward is just over.
        assert.deepEqual(
          slots,
          slots.map((_, s) => ({ FB: p - s, FW: p, BW: s + 1 })),
        );
      }
    }
  });

  it("holds under zb-v on each device no more than two stages' worth of 1f1b's first", () => {
    for (let p = 1; p <= 6; p++) {
      const schedule = zeroBubbleV(p, 12);
      const { slots } = pipelineActions(schedule, chain(2 * p));
      for (let d = 0; d < p; d++) {
        const own = stageDevices(schedule).flatMap((device, stage) => (device === d ? [slots[stage]!.FW] : []));
        assert.ok(own.reduce((a, b) => a + b, 0) <= 2 * p + 1, `device ${d} of ${p} holds ${own.join(" + ")}`);
      }
    }
  });

  it("holds no more slots for values that skip stages", () => {
    for (let p = 3; p <= 6; p++) {
      const { devices, slots } = pipelineActions(oneFOneB(p, 12), [...chain(p), ...allSkips(p)]);
      prove(devices, { slots });
      assert.deepEqual(slots, whole(devices.map((_, s) => p - s)));
    }
  });

  it("is proven for random boundaries", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...makers),
        fc.integer({ min: 1, max: 6 }),
        fc.integer({ min: 1, max: 8 }),
        fc.infiniteStream(crossing),
        (make, p, m, stream) => {
          const schedule = make(p, m);
          const boundary = schedule.stages === 1 ? [] : boundaryFrom(stream, schedule.stages);
          const { devices, slots } = pipelineActions(schedule, boundary);
          prove(devices, { microbatches: m, slots });
          assert.deepEqual(simulate(devices, { stages: slots.map(() => ({ F: 1, B: 2 })) }).peakSlots, slots);
          const sides = devices.flat().flatMap((a) => (a.kind === "transfer" ? a.items : []));
          const handovers = devices.flat().filter((a) => a.kind === "handover");
          assert.equal(sides.length + 2 * handovers.length, 2 * m * boundary.length);
        },
      ),
      { seed: 20240607, numRuns: 400 },
    );
  });

  it("is proven for several stages per device and a separate backward for weights", () => {
    const interleaved = scheduleOf(4, 2, "0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1", "1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1");
    const both = pipelineActions(interleaved, chain(4));
    prove(both.devices, { microbatches: 2, slots: both.slots });
    assert.deepEqual(both.slots, whole([2, 2, 2, 1]));
    const split = scheduleOf(2, 2, "F0 F1 B0 W0 B1 W1", "F0 B0 F1 B1 W0 W1");
    const withW = pipelineActions(split, [...chain(2), { value: 50, from: 1, to: 0, segment: "B", needed: "W" }]);
    prove(withW.devices, { microbatches: 2, slots: withW.slots });
    assert.deepEqual(withW.slots, [
      { FB: 2, FW: 2, BW: 1 },
      { FB: 2, FW: 2, BW: 2 },
    ]);
  });

  it("hands values over between stages of one device, without a transfer", () => {
    const { devices } = pipelineActions(zeroBubbleV(1, 1), chain(2));
    assert.deepEqual(devices.map(actionsText), ["F0@0/0 =0.0 F0@0/0 B0@0/0/0 W0@0/0 =100.0 B0@0/0/0 W0@0/0"]);
  });

  it("runs forwards only, each microbatch in one slot after the other", () => {
    const { devices, slots } = pipelineActions(forwardOnly(2, 2), chain(2).slice(0, 1));
    prove(devices, { microbatches: 2, slots });
    assert.deepEqual(devices.map(actionsText), ["F0@0 {>0.0} w0 F1@0 {>0.1} w1", "{<0.0} F0@0 {<0.1} F1@0"]);
    assert.throws(() => pipelineActions(forwardOnly(2, 2), chain(2)), /from B of stage 1 .* forward does not run/);
  });

  const wrong: [string, RegExp, BoundaryValue[]][] = [
    [
      "a stage that is not there",
      /value 1 crosses from stage 0 to 2, but there are 2 stages/,
      [{ value: 1, from: 0, to: 2, segment: "F" }],
    ],
    ["a stage that sends to itself", /from stage 1 to itself/, [{ value: 1, from: 1, to: 1, segment: "F" }]],
    [
      "a value given twice",
      /value 1 crosses from stage 0 to 1 twice/,
      [0, 1].map(() => ({ value: 1, from: 0, to: 1, segment: "F" as const })),
    ],
    ["a circle of needs", /cannot run: .* needs .* needs /, [...chain(2), { value: 1, from: 1, to: 0, segment: "F" }]],
  ];
  for (const [what, message, boundary] of wrong) {
    it(`refuses ${what}`, () => {
      assert.throws(
        () => pipelineActions(oneFOneB(2, 2), boundary),
        (e: unknown) => e instanceof PlanError && message.test(e.message),
      );
    });
  }
});

/** On each stage forwards before their backwards, backwards ascending, all there. */
function checkOrder(list: readonly StageAction[], microbatches: number): void {
  const all = list.filter((a) => a.kind === "run");
  for (const stage of new Set(all.map((r) => r.stage))) {
    checkStage(
      all.filter((r) => r.stage === stage),
      microbatches,
    );
  }
}

function checkStage(runs: readonly RunAction[], microbatches: number): void {
  const of = (segment: string): number[] => runs.flatMap((r) => (r.segment === segment ? [r.microbatch] : []));
  const all = Array.from({ length: microbatches }, (_, i) => i);
  assert.deepEqual(of("B"), all);
  assert.deepEqual(
    of("F").sort((a, b) => a - b),
    all,
  );
  for (const m of all) {
    const at = (segment: string): number => runs.findIndex((r) => r.segment === segment && r.microbatch === m);
    assert.ok(at("F") < at("B"));
  }
}

/** A forward value and its gradient between any two stages that are not neighbours. */
function allSkips(p: number): BoundaryValue[] {
  const out: BoundaryValue[] = [];
  for (let from = 0; from < p; from++) {
    for (let to = from + 2; to < p; to++) {
      const value = 200 + 2 * (from * p + to);
      out.push({ value, from, to, segment: "F" }, { value: value + 1, from: to, to: from, segment: "B" });
    }
  }
  return out;
}

/** A boundary value before the number of stages is known; all but "late" follow the pipeline's direction. */
const crossing = fc.record({
  a: fc.nat(),
  b: fc.nat(),
  kind: fc.constantFrom("forward", "backward", "saved", "late"),
  more: fc.integer({ min: 0, max: 9 }),
});

type Stream = Iterable<{ a: number; b: number; kind: "forward" | "backward" | "saved" | "late"; more: number }>;

/** Random crossings: activations up, gradients down, and forward values needed only in a backward, up or down. */
function boundaryFrom(stream: Stream, p: number): BoundaryValue[] {
  const out: BoundaryValue[] = [];
  for (const { a, b, kind, more } of stream) {
    const low = a % (p - 1);
    const high = low + 1 + (b % (p - 1 - low));
    const value = out.length;
    if (kind === "forward") out.push({ value, from: low, to: high, segment: "F" });
    else if (kind === "backward") out.push({ value, from: high, to: low, segment: "B" });
    else if (kind === "saved") out.push({ value, from: low, to: high, segment: "F", needed: "B" });
    else out.push({ value, from: high, to: low, segment: "F", needed: "B" });
    if (more === 0 || out.length >= 12) return out;
  }
  return out;
}
