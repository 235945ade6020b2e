// The simulator as a tool: any schedule on given or measured segment times, and its picture.
import type { DevicePlan } from "../compile/step.ts";
import { expectInteger, expectList, expectNotNegative, expectObject, expectText } from "../core/check.ts";
import { PlanError } from "../core/errors.ts";
import { type BoundaryValue, pipelineActions } from "../passes/actions.ts";
import type { Schedule, ScheduledRun } from "../passes/schedule.ts";
import { scheduleMaker } from "../passes/schedules.ts";
import { type SegmentTimes, type Simulation, simulate } from "../passes/simulate.ts";

/** What to simulate. */
export interface ScheduleQuestion {
  /** As trainStep's. */
  readonly schedule: string;
  readonly virtualStages?: number;
  readonly devices: number;
  readonly microbatches: number;
  /** Of each stage's segments, in any unit; one entry is for all stages. Without a W segment, B is B and W together. */
  readonly times: SegmentTimes | readonly SegmentTimes[];
  /** Of each transfer between devices, in the same unit; 0 by default. */
  readonly transfer?: number;
}

/** A run with its times. */
export interface TimedRun extends ScheduledRun {
  readonly device: number;
  readonly start: number;
  readonly end: number;
}

/** When which device does what. */
export interface Timeline {
  readonly title: string;
  readonly devices: number;
  readonly stages: number;
  readonly runs: readonly TimedRun[];
  readonly makespan: number;
  /** The part of all devices' time in which they run nothing, 0 to 1. */
  readonly bubble: number;
}

/**
 * Simulates a pipeline in which each stage passes one value on to the next. Throws PlanError or ConfigError as
 * trainStep does.
 */
export function simulateSchedule(question: ScheduleQuestion): Timeline {
  expectObject("what is to be simulated", question);
  const { schedule: name, virtualStages, devices, microbatches, times, transfer = 0 } = question;
  expectText("schedule", name);
  if (virtualStages !== undefined) expectInteger("virtualStages", virtualStages, 1);
  expectInteger("devices", devices, 1);
  expectInteger("microbatches", microbatches, 1);
  expectNotNegative("transfer", transfer);
  for (const stage of Array.isArray(times) ? times : [times]) expectObject("a stage's times", stage);
  const schedule = scheduleMaker(name, virtualStages)(devices, microbatches);
  const { devices: actions } = pipelineActions(schedule, chainOf(schedule));
  const stages = Array.from({ length: schedule.stages }, (_, s) => (Array.isArray(times) ? times[s] : times) ?? {});
  return timelineOf(schedule, simulate(actions, { stages, transfer }));
}

/** Activations to the next stage, gradients back. */
function chainOf({ stages }: Schedule): BoundaryValue[] {
  return Array.from({ length: stages - 1 }, (_, s): BoundaryValue[] => [
    { value: s, from: s, to: s + 1, segment: "F" },
    { value: stages + s, from: s + 1, to: s, segment: "B" },
  ]).flat();
}

function timelineOf({ name, stages }: Schedule, { devices, makespan, bubble }: Simulation): Timeline {
  const runs = devices.flatMap((timed, device) =>
    timed.flatMap(({ action, start, end }): TimedRun[] => {
      if (action.kind !== "run") return [];
      const { stage, segment, microbatch } = action;
      return [{ device, stage, segment, microbatch, start, end }];
    }),
  );
  return { title: name, devices: devices.length, stages, runs, makespan, bubble };
}

/** What engines profile between runs of segments. */
const between: ReadonlySet<string> = new Set(["feed", "fetch", "transfer", "wait"]);

/** Something that a device did, as engines profile it: an instruction, by its op, or something between runs. */
export interface ProfiledEvent {
  readonly device: number;
  readonly op: string;
  readonly begin: number;
  readonly end: number;
}

/**
 * The timeline of a step as it ran, from the engine's profile (seconds) and the plan of the step: of the devices that
 * differ along pp only, at coordinate 0 of the other axes. Throws PlanError when the profile is another step's.
 */
export function measuredTimeline(
  title: string,
  devices: readonly Pick<DevicePlan, "rank" | "stages" | "runs">[],
  profile: readonly ProfiledEvent[],
): Timeline {
  expectText("title", title);
  expectList("the plan's devices", devices);
  for (const device of devices) {
    expectObject("a device of the plan", device);
    expectList("a device's stages", device.stages);
    expectList("a device's runs", device.runs);
  }
  expectList("profile", profile);
  for (const event of profile) expectObject("an event of the profile", event);
  const first = new Map<string, (typeof devices)[number]>();
  for (const device of devices) if (!first.has(device.stages.join())) first.set(device.stages.join(), device);
  const runs = [...first.values()].flatMap(({ rank, runs: planned }, device) => {
    const events = profile.filter((e) => e.device === rank && !between.has(e.op));
    const wanted = planned.reduce((sum, run) => sum + run.instructions, 0);
    if (wanted !== events.length) {
      throw new PlanError(`device ${rank} ran ${events.length} instructions; the plan has ${wanted}`, {
        details: { rank },
      });
    }
    let at = 0;
    return planned.flatMap(({ segment, stage, microbatch, instructions }): TimedRun[] => {
      const own = events.slice(at, at + instructions);
      at += instructions;
      if (segment === null || own.length === 0) return [];
      return [{ device, stage, segment, microbatch, start: own[0]!.begin, end: own.at(-1)!.end }];
    });
  });
  const begin = Math.min(...runs.map((r) => r.start));
  const shifted = runs.map((r) => ({ ...r, start: r.start - begin, end: r.end - begin }));
  const makespan = Math.max(...shifted.map((r) => r.end));
  const busy = shifted.reduce((sum, r) => sum + r.end - r.start, 0);
  const stages = Math.max(...shifted.map((r) => r.stage)) + 1;
  return { title, devices: first.size, stages, runs: shifted, makespan, bubble: 1 - busy / (makespan * first.size) };
}

const fills: Readonly<Record<ScheduledRun["segment"], readonly [light: string, dark: string]>> = {
  F: ["#9ecae1", "#4292c6"],
  B: ["#a1d99b", "#41ab5d"],
  W: ["#fdd0a2", "#f16913"],
};

/**
 * A picture of a timeline: a row a device, a box a run with its microbatch's number; later stages of a device are
 * darker.
 */
export function timelineSvg(timeline: Timeline): string {
  expectObject("timeline", timeline);
  const { title, devices, stages, runs, makespan, bubble } = timeline;
  expectInteger("the timeline's devices", devices, 1);
  expectList("the timeline's runs", runs);
  for (const run of runs) expectObject("a run of the timeline", run);
  const [width, row, left, top] = [960, 28, 70, 30];
  const x = (time: number): number => Math.round((left + (time / makespan) * (width - left - 10)) * 100) / 100;
  const boxes = runs.flatMap(({ device, stage, segment, microbatch, start, end }) => {
    const fill = fills[segment][stage >= devices && stages > devices ? 1 : 0];
    const [from, to, y] = [x(start), x(end), top + device * row];
    const box = `<rect x="${from}" y="${y}" width="${Math.round((to - from) * 100) / 100}" height="${row - 4}" fill="${fill}" stroke="#fff"/>`;
    if (to - from < 9) return [box];
    const middle = Math.round(((from + to) / 2) * 100) / 100;
    return [box, `<text x="${middle}" y="${y + 16}" text-anchor="middle">${microbatch}</text>`];
  });
  const labels = Array.from({ length: devices }, (_, d) => `<text x="6" y="${top + d * row + 16}">device ${d}</text>`);
  const name = `${title}: ${(100 * bubble).toFixed(1)} % bubble`;
  const height = top + devices * row + 6;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="11">`,
    `<title>${name}</title>`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    `<text x="6" y="18" font-weight="bold">${name}</text>`,
    ...labels,
    ...boxes,
    "</svg>",
    "",
  ].join("\n");
}
