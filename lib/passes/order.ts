// One global order of a pipeline's runs and transfers. Every device's actions are this order's restriction to it, so
// that no two devices can wait for each other, even when a send ends only at its receive.
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

/** The moment at which one value of one microbatch passes from one device to another. */
export interface TransferEvent {
  readonly kind: "transfer";
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

/** A transfer between runs, given by their indices. */
interface Crossing {
  readonly event: TransferEvent;
  readonly maker: number;
  readonly needer: number;
}

/** The runs of all devices in one list, how long each is taken to last, and its neighbours on its device. */
interface Runs {
  readonly list: readonly RunEvent[];
  readonly durations: readonly number[];
  readonly index: ReadonlyMap<string, number>;
  previous(run: number): number | undefined;
  next(run: number): number | undefined;
}

/**
 * Orders all runs and transfers. A value moves right after the run that makes it and right before the run that needs it
 * where both can be; where not (values that skip stages), the stage nearer to the pipeline's start, which holds its
 * microbatches longest, sends it late or receives it early, so that no stage holds more microbatches for it.
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
  const { tight, times } = tightCrossings(crossings, needs, starts.times, runs);
  return merge(runs, crossings, tight, times);
}

function collectRuns(schedule: Schedule): Runs {
  const list = schedule.devices.flatMap((runs, device) => runs.map((r): RunEvent => ({ kind: "run", ...r, device })));
  const neighbour = (run: number, step: number): number | undefined =>
    list[run + step]?.device === list[run]!.device ? run + step : undefined;
  const durations = { F: 1, B: hasWeightSegment(schedule) ? 1 : 2, W: 1 };
  return {
    list,
    durations: list.map((r) => durations[r.segment]),
    index: new Map(list.map((r, i) => [runKey(r.stage, r.segment, r.microbatch), i])),
    previous: (run) => neighbour(run, -1),
    next: (run) => neighbour(run, 1),
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
    if (fromDevice === toDevice) {
      throw new PlanError(`value ${value} crosses from stage ${from} to ${to}, which are on one device`, { details });
    }
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
        event: { kind: "transfer", value, microbatch, from, to, made, needed: need, fromDevice, toDevice },
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

/**
 * The crossings that are tight (sent right after they are made, received right before they are needed), as many kinds as
 * can be at once without prolonging the step, near ones first; and when runs start under the order that these demand: what
 * the receiver does before the needing run ends before the sender does what follows the making one.
 */
function tightCrossings(
  crossings: readonly Crossing[],
  needs: Needs,
  free: readonly number[],
  runs: Runs,
): { tight: ReadonlySet<Crossing>; times: readonly number[] } {
  const kinds = new Map<string, Crossing[]>();
  for (const c of crossings) {
    const { from, to, made, needed } = c.event;
    const key = `${from} ${to} ${made} ${needed}`;
    const list = kinds.get(key);
    if (list) list.push(c);
    else kinds.set(key, [c]);
  }
  const length = (times: readonly number[]): number =>
    times.reduce((max, t, i) => Math.max(max, t + runs.durations[i]!), 0);
  const attempt = (list: readonly Crossing[]): readonly number[] | undefined => {
    const all = needs.map((n) => [...n]);
    for (const { maker, needer } of list) {
      const before = runs.previous(needer);
      const after = runs.next(maker);
      if (before !== undefined && after !== undefined) all[after]!.push(before);
    }
    const result = startTimes(all, runs.durations);
    return "times" in result && length(result.times) === length(free) ? result.times : undefined;
  };
  const span = (list: readonly Crossing[]): number => Math.abs(list[0]!.event.to - list[0]!.event.from);
  let times = attempt(crossings);
  if (times) return { tight: new Set(crossings), times };
  let tight: Crossing[] = [];
  times = free;
  for (const list of [...kinds.values()].sort((a, b) => span(a) - span(b))) {
    const wider = [...tight, ...list];
    const result = attempt(wider);
    if (result) [tight, times] = [wider, result];
  }
  return { tight: new Set(tight), times };
}

/** Puts transfers between the runs: those towards the pipeline's end as late as they may be, the others early. */
function merge(
  runs: Runs,
  crossings: readonly Crossing[],
  tight: ReadonlySet<Crossing>,
  starts: readonly number[],
): PipelineEvent[] {
  const end = (run: number): number => starts[run]! + runs.durations[run]!;
  // Times are whole numbers: a fraction below one is after all that starts earlier, before all that starts then.
  const early = ({ maker }: Crossing, before?: number): number =>
    Math.max(end(maker), before === undefined ? 0 : end(before)) - 0.5;
  const late = ({ needer }: Crossing, after?: number): number =>
    Math.min(starts[needer]!, after === undefined ? Infinity : starts[after]!) - 0.25;
  const timed = runs.list.map((run, i): [number, PipelineEvent] => [starts[i]!, run]);
  for (const c of crossings) {
    const isTight = tight.has(c);
    const time =
      c.event.to > c.event.from
        ? late(c, isTight ? runs.next(c.maker) : undefined)
        : early(c, isTight ? runs.previous(c.needer) : undefined);
    timed.push([time, c.event]);
  }
  return timed.sort(([a], [b]) => a - b).map(([, event]) => event);
}

function refuseCycle(cycle: readonly RunEvent[]): never {
  const words = [...cycle, cycle[0]!].map((r) => `${r.segment} of microbatch ${r.microbatch} on stage ${r.stage}`);
  throw new PlanError(`the schedule cannot run: ${words.join(" needs ")}`, {
    details: { cycle: cycle.map(({ stage, segment, microbatch }) => ({ stage, segment, microbatch })) },
  });
}
