// Pipeline schedules as data: in which order each device runs the segments of its microbatches.
import { PlanError } from "../core/errors.ts";

/** A part of a stage's work: forward, backward (for inputs), backward for weights. */
export type Segment = "F" | "B" | "W";

/** One run of a segment. `stage` is the device's own number unless devices hold several stages each. */
export interface ScheduledRun {
  readonly stage: number;
  readonly segment: Segment;
  readonly microbatch: number;
}

/** What every device does, in order. Without any W, B means both halves of the backward. */
export interface Schedule {
  readonly name: string;
  readonly stages: number;
  readonly microbatches: number;
  /** Per device, its runs in order. A stage lies on exactly one device; a device may hold several stages. */
  readonly devices: readonly (readonly ScheduledRun[])[];
}

/** Makes a schedule. Throws PlanError when a count is not a positive integer. */
export type ScheduleMaker = (stages: number, microbatches: number) => Schedule;

/** All forwards, then all backwards: simple, and holds every microbatch at once. */
export const gpipe: ScheduleMaker = (stages, microbatches) => {
  checkCounts(stages, microbatches);
  return makeSchedule("gpipe", stages, microbatches, (stage) => [
    ...upTo(microbatches).map((m) => forward(stage, m)),
    ...upTo(microbatches).map((m) => backward(stage, m)),
  ]);
};

/** One forward, one backward: as long as gpipe, but stage s of p holds only min(p - s, m) microbatches. */
export const oneFOneB: ScheduleMaker = (stages, microbatches) => {
  checkCounts(stages, microbatches);
  return makeSchedule("1f1b", stages, microbatches, (stage) => {
    const ahead = Math.min(stages - stage - 1, microbatches);
    return [
      ...upTo(ahead).map((m) => forward(stage, m)),
      ...upTo(microbatches - ahead).flatMap((m) => [forward(stage, ahead + m), backward(stage, m)]),
      ...upTo(ahead).map((m) => backward(stage, microbatches - ahead + m)),
    ];
  });
};

const makers: ReadonlyMap<string, ScheduleMaker> = new Map([
  ["gpipe", gpipe],
  ["1f1b", oneFOneB],
]);

/** Schedules that other tools know, and this one will. */
const planned = ["interleaved-1f1b", "zb-h1", "zb-v"];

/** Names that `scheduleMaker` knows. */
export const scheduleNames: readonly string[] = [...makers.keys()];

/** The maker of a named schedule. Throws PlanError for a name it does not know. */
export function scheduleMaker(name: string): ScheduleMaker {
  const maker = makers.get(name);
  if (maker) return maker;
  if (planned.includes(name)) {
    throw new PlanError(`schedule ${name} is not supported yet; use ${scheduleNames.join(" or ")}`, {
      details: { schedule: name, known: scheduleNames },
    });
  }
  throw new PlanError(`no schedule is named "${name}"; known are ${scheduleNames.join(", ")}`, {
    details: { schedule: name, known: scheduleNames },
  });
}

/** The device that holds each stage. Throws PlanError when a stage has none, or more than one. */
export function stageDevices(schedule: Schedule): number[] {
  const device = new Array<number>(schedule.stages).fill(-1);
  schedule.devices.forEach((runs, d) => {
    for (const { stage } of runs) {
      if (!(stage in device))
        refuse(schedule, `runs stage ${stage}, but there are ${schedule.stages} stages`, { stage });
      if (device[stage] !== -1 && device[stage] !== d) {
        refuse(schedule, `runs stage ${stage} on devices ${device[stage]} and ${d}`, { stage });
      }
      device[stage] = d;
    }
  });
  const missing = device.indexOf(-1);
  if (missing !== -1) refuse(schedule, `never runs stage ${missing}`, { stage: missing });
  return device;
}

/**
 * Throws PlanError unless every stage runs each microbatch's F, then (if the schedule has them) B, then W exactly once,
 * with backwards in ascending order: gradients are summed in that order, so that all schedules give the same bits.
 */
export function checkSchedule(schedule: Schedule): void {
  checkCounts(schedule.stages, schedule.microbatches);
  stageDevices(schedule);
  const runs = schedule.devices.flat();
  const segments = segmentsOf(runs);
  for (const stage of upTo(schedule.stages)) {
    checkRuns(
      runs.filter((r) => r.stage === stage),
      segments,
      schedule.microbatches,
      `schedule ${schedule.name}: stage ${stage}`,
    );
  }
}

/** The rules of `checkSchedule` for the runs of one stage; `who` begins the messages. */
export function checkRuns(
  runs: readonly Omit<ScheduledRun, "stage">[],
  segments: readonly Segment[],
  microbatches: number,
  who: string,
): void {
  const fail = (what: string, details: Record<string, unknown>): never => {
    throw new PlanError(`${who} ${what}`, { details });
  };
  const done = new Set<string>();
  const last = new Map<Segment, number>();
  for (const { segment, microbatch } of runs) {
    const run = `${segment} of microbatch ${microbatch}`;
    const before = segments[segments.indexOf(segment) - 1];
    if (done.has(segment + microbatch)) fail(`runs ${run} twice`, { segment, microbatch });
    if (before && !done.has(before + microbatch)) fail(`runs ${run} before its ${before}`, { segment, microbatch });
    if (segment !== "F" && microbatch < (last.get(segment) ?? 0)) {
      fail(`runs ${run} after that of microbatch ${last.get(segment)}; the order must ascend`, { segment, microbatch });
    }
    done.add(segment + microbatch);
    last.set(segment, microbatch);
  }
  for (const segment of segments) {
    for (const microbatch of upTo(microbatches)) {
      if (!done.delete(segment + microbatch))
        fail(`never runs ${segment} of microbatch ${microbatch}`, { segment, microbatch });
    }
  }
  for (const run of done) fail(`runs ${run[0]} of microbatch ${run.slice(1)}, which does not exist`, { run });
}

/** Forwards only: evaluation and inference. */
export const forwardOnly: ScheduleMaker = (stages, microbatches) => {
  checkCounts(stages, microbatches);
  return makeSchedule("forward", stages, microbatches, (stage) => upTo(microbatches).map((m) => forward(stage, m)));
};

/** The segments that every microbatch runs on every stage: F, and what else occurs. */
export function segmentsOf(runs: readonly Pick<ScheduledRun, "segment">[]): Segment[] {
  return (["F", "B", "W"] as const).filter((s) => s === "F" || runs.some((r) => r.segment === s));
}

/** True when the backward for weights is scheduled by itself. */
export function hasWeightSegment(schedule: Schedule): boolean {
  return schedule.devices.some((runs) => runs.some((r) => r.segment === "W"));
}

function makeSchedule(
  name: string,
  stages: number,
  microbatches: number,
  order: (stage: number) => readonly ScheduledRun[],
): Schedule {
  return { name, stages, microbatches, devices: upTo(stages).map(order) };
}

function forward(stage: number, microbatch: number): ScheduledRun {
  return { stage, segment: "F", microbatch };
}

function backward(stage: number, microbatch: number): ScheduledRun {
  return { stage, segment: "B", microbatch };
}

function checkCounts(stages: number, microbatches: number): void {
  for (const [what, n] of [["stages", stages] as const, ["microbatches", microbatches] as const]) {
    if (!Number.isSafeInteger(n) || n < 1) {
      throw new PlanError(`the number of ${what} must be a positive integer, not ${n}`, { details: { [what]: n } });
    }
  }
}

function refuse(schedule: Schedule, what: string, details: Record<string, unknown>): never {
  throw new PlanError(`schedule ${schedule.name} ${what}`, { details });
}

function upTo(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i);
}
