// Pipeline schedules as data: in which order each device runs the segments of its microbatches; and what is right about
// them.
import { PlanError } from "../core/errors.ts";
import type { Segment } from "../ir/graph.ts";

export type { Segment } from "../ir/graph.ts";

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

/** Makes a schedule for so many devices and microbatches. Throws PlanError when a count is not a positive integer. */
export type ScheduleMaker = (devices: number, microbatches: number) => Schedule;

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

/** The segments that every microbatch runs on every stage: F, and what else occurs. */
export function segmentsOf(runs: readonly Pick<ScheduledRun, "segment">[]): Segment[] {
  return (["F", "B", "W"] as const).filter((s) => s === "F" || runs.some((r) => r.segment === s));
}

/** True when the backward for weights is scheduled by itself. */
export function hasWeightSegment(schedule: Schedule): boolean {
  return schedule.devices.some((runs) => runs.some((r) => r.segment === "W"));
}

/** Throws PlanError when a count is not a positive integer. */
export function checkCounts(stages: number, microbatches: number): void {
  for (const [what, n] of [["stages", stages] as const, ["microbatches", microbatches] as const]) {
    if (!Number.isSafeInteger(n) || n < 1) {
      throw new PlanError(`the number of ${what} must be a positive integer, not ${n}`, { details: { [what]: n } });
    }
  }
}

function refuse(schedule: Schedule, what: string, details: Record<string, unknown>): never {
  throw new PlanError(`schedule ${schedule.name} ${what}`, { details });
}

/** 0 to n - 1. */
export function upTo(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i);
}
