// Profiles of training steps: a Chrome trace that Perfetto draws, and where the time went by op.
import type { PlannedRun } from "../compile/runs.ts";

/** An instruction or a wait as a device did it; seconds since its step began. */
export interface TimedEvent {
  readonly device: number;
  readonly op: string;
  /** The module whose work it is, or other words for it. */
  readonly label: string;
  readonly begin: number;
  readonly end: number;
}

/** A step that was profiled; `began` in seconds on any clock that all steps share. */
export interface ProfiledStep {
  readonly step: number;
  readonly began: number;
  readonly seconds: number;
  readonly events: readonly TimedEvent[];
}

/** A device of the mesh: its name, and the runs of its plan. */
export interface ProfiledDevice {
  readonly rank: number;
  readonly device: string;
  readonly runs: readonly PlannedRun[];
}

/** Time of all devices in one op, or doing nothing (`idle`). */
export interface OpTime {
  readonly op: string;
  /** Of one step, all devices together. */
  readonly calls: number;
  readonly seconds: number;
  /** Of the time of all devices, 0 to 1. */
  readonly share: number;
}

/** What goes on between instructions. */
const between: ReadonlySet<string> = new Set(["feed", "fetch", "transfer", "wait"]);

/**
 * A trace in Chrome's JSON format: the mesh is a process, each device a thread with its pipeline's runs and, inside of
 * them, instructions by module and op. Times in microseconds.
 */
export function chromeTrace(mesh: string, devices: readonly ProfiledDevice[], steps: readonly ProfiledStep[]): string {
  const named = (name: string, tid: number, value: string) => {
    return { name, ph: "M", pid: 0, tid, args: { name: value } };
  };
  const zero = Math.min(...steps.map(({ began }) => began));
  const slice = (tid: number, name: string, cat: string, begin: number, end: number, args: object = {}) => {
    return { name, cat, ph: "X", pid: 0, tid, ts: 1e6 * begin, dur: Math.max(0, 1e6 * (end - begin)), args };
  };
  const events: object[] = [named("process_name", 0, mesh), named("thread_name", 0, "steps")];
  for (const { rank, device } of devices) events.push(named("thread_name", rank + 1, device));
  for (const { step, began, seconds, events: timed } of steps) {
    const at = began - zero;
    events.push(slice(0, `step ${step}`, "step", at, at + seconds));
    for (const device of devices) {
      const own = timed.filter((event) => event.device === device.rank);
      const tid = device.rank + 1;
      for (const { name, begin, end } of runSlices(device.runs, own)) {
        events.push(slice(tid, name, "run", at + begin, at + end));
      }
      for (const { op, label, begin, end } of own) {
        const name = label === "" || label === op ? op : `${label} (${op})`;
        events.push(slice(tid, name, op, at + begin, at + end, { op, label }));
      }
    }
  }
  return `${JSON.stringify({ displayTimeUnit: "ms", traceEvents: events })}\n`;
}

/** Runs of pipeline stages, from their first instruction to their last. */
function runSlices(runs: readonly PlannedRun[], events: readonly TimedEvent[]) {
  const instructions = events.filter(({ op }) => !between.has(op));
  let next = 0;
  return runs.flatMap(({ segment, stage, microbatch, instructions: count }) => {
    const own = instructions.slice(next, next + count);
    next += count;
    if (segment === null || own.length === 0) return [];
    const name = `stage ${stage} ${segment} microbatch ${microbatch}`;
    return [{ name, begin: own[0]!.begin, end: own.at(-1)!.end }];
  });
}

/** Time by op, most first; `idle` is what devices spent on nothing that was recorded. */
export function timeByOp(devices: number, steps: readonly ProfiledStep[]): OpTime[] {
  const total = devices * steps.reduce((sum, { seconds }) => sum + seconds, 0);
  const ops = new Map<string, { calls: number; seconds: number }>();
  let busy = 0;
  for (const { op, begin, end } of steps.flatMap(({ events }) => events)) {
    const known = ops.get(op) ?? { calls: 0, seconds: 0 };
    ops.set(op, { calls: known.calls + 1, seconds: known.seconds + end - begin });
    busy += end - begin;
  }
  ops.set("idle", { calls: 0, seconds: Math.max(0, total - busy) });
  const row = ([op, { calls, seconds }]: readonly [string, { calls: number; seconds: number }]): OpTime => {
    return { op, calls: calls / steps.length, seconds: seconds / steps.length, share: seconds / total };
  };
  return [...ops].map(row).sort((a, b) => b.seconds - a.seconds);
}

/** The rows as aligned text, a line each. */
export function opTable(rows: readonly OpTime[]): string {
  const head = ["op", "calls a step", "ms a step", "share"];
  const cells = rows.map(({ op, calls, seconds, share }) => [
    op,
    op === "idle" ? "" : String(Math.round(10 * calls) / 10),
    (1e3 * seconds).toFixed(3),
    `${(100 * share).toFixed(1)} %`,
  ]);
  const widths = head.map((name, i) => Math.max(name.length, ...cells.map((row) => row[i]!.length)));
  const line = (row: readonly string[]): string =>
    row.map((text, i) => (i === 0 ? text.padEnd(widths[i]!) : text.padStart(widths[i]!))).join("  ");
  return [head, ...cells].map(line).join("\n");
}
