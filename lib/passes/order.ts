// One global order of a pipeline's runs, sends and receives. Every device's actions are this order's restriction to it,
// and whatever an action waits for comes before it: so no two devices can wait for each other.
import { PlanError } from "../core/errors.ts";
import { type Schedule, type ScheduledRun, type Segment, hasWeightSegment, stageDevices } from "./schedule.ts";

/** A value made in one stage and needed in another, once per microbatch. */
export interface BoundaryValue {
  readonly value: number;
  readonly from: number;
  readonly to: number;
  /** The segment of `from` that makes it. */
  readonly segment: Segment;
  /** The first segment of `to` that needs it; the same as `segment` when not given. */
  readonly needed?: Segment;
}

/** A run of a segment, in the global order. */
export interface RunEvent extends ScheduledRun {
  readonly kind: "run";
  readonly device: number;
}

/** One side of a value's way from one stage to another; `handover`: both, where the stages are on one device. */
export interface TransferEvent {
  readonly kind: "send" | "receive" | "handover";
  readonly value: number;
  readonly microbatch: number;
  readonly from: number;
  readonly to: number;
  readonly made: Segment;
  readonly needed: Segment;
  readonly fromDevice: number;
  readonly toDevice: number;
}

export type PipelineEvent = RunEvent | TransferEvent;

/** A value's way between runs, given by their indices. */
interface Crossing {
  readonly passage: Omit<TransferEvent, "kind">;
  readonly maker: number;
  readonly needer: number;
}

/** The runs of all devices in one list, how long each is taken to last, and what precedes it on its device. */
interface Runs {
  readonly list: readonly RunEvent[];
  readonly durations: readonly number[];
  readonly index: ReadonlyMap<string, number>;
  previous(run: number): number | undefined;
}

/**
 * Orders all runs, sends and receives. A value is sent when it is made and received right before the run that needs it;
 * only where that would make a later stage hold its microbatch longer (values that skip stages on their way back) it is
 * received as soon as it is made. What one device sends another is received in the same order, as a stream demands.
 * Throws PlanError when the schedule cannot bring a value from where it is made to where it is needed.
 */
export function globalOrder(schedule: Schedule, boundary: readonly BoundaryValue[]): PipelineEvent[] {
  const runs = collectRuns(schedule);
  const crossings = collectCrossings(schedule, boundary, runs);
  const needs = runs.list.map((_, i) => {
    const previous = runs.previous(i);
    return previous === undefined ? [] : [previous];
  });
  for (const { maker, needer } of crossings) needs[needer]!.push(maker);
  const starts = startTimes(needs, runs.durations);
  if ("cycle" in starts) refuseCycle(starts.cycle.map((i) => runs.list[i]!));
  return merge(runs, crossings, starts.times);
}

function collectRuns(schedule: Schedule): Runs {
  const list = schedule.devices.flatMap((runs, device) => runs.map((r): RunEvent => ({ kind: "run", ...r, device })));
  const durations = { F: 1, B: hasWeightSegment(schedule) ? 1 : 2, W: 1 };
  return {
    list,
    durations: list.map((r) => durations[r.segment]),
    index: new Map(list.map((r, i) => [runKey(r.stage, r.segment, r.microbatch), i])),
    previous: (run) => (list[run - 1]?.device === list[run]!.device ? run - 1 : undefined),
  };
}

function runKey(stage: number, segment: Segment, microbatch: number): string {
  return `${stage} ${segment} ${microbatch}`;
}

function collectCrossings(schedule: Schedule, boundary: readonly BoundaryValue[], runs: Runs): Crossing[] {
  const devices = stageDevices(schedule);
  const splits = hasWeightSegment(schedule);
  const actual = (segment: Segment): Segment => (segment === "W" && !splits ? "B" : segment);
  const seen = new Set<string>();
  return boundary.flatMap(({ value, from, to, segment, needed = segment }) => {
    const fromDevice = devices[from];
    const toDevice = devices[to];
    const details = { value, from, to };
    if (fromDevice === undefined || toDevice === undefined) {
      throw new PlanError(
        `value ${value} crosses from stage ${from} to ${to}, but there are ${schedule.stages} stages`,
        { details },
      );
    }
    if (from === to) throw new PlanError(`value ${value} crosses from stage ${from} to itself`, { details });
    const key = `${value} ${from} ${to}`;
    if (seen.has(key)) throw new PlanError(`value ${value} crosses from stage ${from} to ${to} twice`, { details });
    seen.add(key);
    const [made, need] = [actual(segment), actual(needed)];
    return Array.from({ length: schedule.microbatches }, (_, microbatch): Crossing => {
      const maker = runs.index.get(runKey(from, made, microbatch));
      const needer = runs.index.get(runKey(to, need, microbatch));
      if (maker === undefined || needer === undefined) {
        const words = `value ${value} crosses from ${made} of stage ${from} to ${need} of stage ${to}`;
        throw new PlanError(`${words}, which schedule ${schedule.name} does not run`, { details });
      }
      return {
        passage: { value, microbatch, from, to, made, needed: need, fromDevice, toDevice },
        maker,
        needer,
      };
    });
  });
}

/** Runs that must precede each run. */
type Needs = readonly (readonly number[])[];

/** When each run starts if it starts as soon as it may; or a cycle, each run needing the next one. */
function startTimes(
  needs: Needs,
  durations: readonly number[],
): { readonly times: number[] } | { readonly cycle: number[] } {
  const followers: number[][] = needs.map(() => []);
  needs.forEach((list, i) => {
    for (const n of list) followers[n]!.push(i);
  });
  const open = needs.map((list) => list.length);
  const times = needs.map(() => 0);
  const ready = open.flatMap((n, i) => (n === 0 ? [i] : []));
  for (let run = ready.pop(); run !== undefined; run = ready.pop()) {
    for (const f of followers[run]!) {
      times[f] = Math.max(times[f]!, times[run]! + durations[run]!);
      if (--open[f]! === 0) ready.push(f);
    }
  }
  let at = open.findIndex((n) => n > 0);
  if (at === -1) return { times };
  const path: number[] = [];
  while (!path.includes(at)) {
    path.push(at);
    at = needs[at]!.find((n) => open[n]! > 0)!;
  }
  return { cycle: path.slice(path.indexOf(at)) };
}

/** Puts sends and receives between the runs. */
function merge(runs: Runs, crossings: readonly Crossing[], starts: readonly number[]): PipelineEvent[] {
  const end = (run: number): number => starts[run]! + runs.durations[run]!;
  // Runs start at whole numbers: a fraction below one is after all that starts earlier, before all that starts then.
  const sent = ({ maker }: Crossing): number => end(maker) - 0.75;
  const received = (crossing: Crossing): number => {
    const { maker, needer, passage } = crossing;
    if (passage.to > passage.from) return starts[needer]! - 0.25;
    const previous = isNext(crossing) ? runs.previous(needer) : undefined;
    return Math.max(end(maker), previous === undefined ? 0 : end(previous)) - 0.5;
  };
  const timed = runs.list.map((run, i): [number, PipelineEvent] => [starts[i]!, run]);
  const channels = new Map<string, Crossing[]>();
  for (const crossing of crossings) {
    const { fromDevice, toDevice } = crossing.passage;
    if (fromDevice === toDevice) timed.push([received(crossing), { kind: "handover", ...crossing.passage }]);
    else {
      const key = `${fromDevice} ${toDevice}`;
      const list = channels.get(key);
      if (list) list.push(crossing);
      else channels.set(key, [crossing]);
    }
  }
  for (const list of channels.values()) {
    let last = Number.NEGATIVE_INFINITY;
    for (const crossing of list.toSorted((a, b) => received(a) - received(b))) {
      last = Math.max(last, sent(crossing));
      timed.push([last, { kind: "send", ...crossing.passage }]);
      timed.push([received(crossing), { kind: "receive", ...crossing.passage }]);
    }
  }
  return timed.sort(([a], [b]) => a - b).map(([, event]) => event);
}

/**
 * True for a gradient that goes to the stage before: its sender need not hold it longer than until that stage is free.
 */
function isNext({ passage: { from, to, made } }: Crossing): boolean {
  return from === to + 1 && made !== "F";
}

function refuseCycle(cycle: readonly RunEvent[]): never {
  const words = [...cycle, cycle[0]!].map((r) => `${r.segment} of microbatch ${r.microbatch} on stage ${r.stage}`);
  throw new PlanError(`the schedule cannot run: ${words.join(" needs ")}`, {
    details: { cycle: cycle.map(({ stage, segment, microbatch }) => ({ stage, segment, microbatch })) },
  });
}
