// The pipeline simulator: runs the devices' action lists on given times, without buffering.
import { PlanError } from "../core/errors.ts";
import type { RunAction, StageAction, StageTransfer, TransferAction } from "./actions.ts";
import type { Segment } from "./schedule.ts";
import { type SlotCounts, slotsUsed } from "./slots.ts";

/** How long the segments of one stage take, in any unit. Segments not given take no time. */
export type SegmentTimes = Readonly<Partial<Record<Segment, number>>>;

/** What a simulation runs on. */
export interface SimulationTimes {
  /** One entry per stage. */
  readonly stages: readonly SegmentTimes[];
  /** From the moment both sides of a transfer are there to its end; 0 when not given. */
  readonly transfer?: number | ((item: StageTransfer) => number);
}

/** An action with the times at which it began and ended. */
export interface TimedAction {
  readonly action: StageAction;
  readonly start: number;
  readonly end: number;
}

export interface Simulation {
  /** One list per device. */
  readonly devices: readonly (readonly TimedAction[])[];
  /** When the last device ended. */
  readonly makespan: number;
  /** The part of all devices' time in which they ran no segment, 0 to 1. */
  readonly bubble: number;
  /** Per stage and pool, the most microbatches held at once. */
  readonly peakSlots: readonly SlotCounts[];
}

/** One side of a passage: where it is in the lists, and when it was posted. */
export interface Posting {
  readonly item: StageTransfer;
  readonly device: number;
  /** Index of its transfer in the device's list. */
  readonly action: number;
  time?: number;
}

/** A send and its receive; either may be missing in lists that are wrong. */
export interface Passage {
  send?: Posting;
  receive?: Posting;
}

/** How far the devices came. */
export interface Execution {
  /** Per device, the actions that ended: all of them, or those before the one it is stuck in. */
  readonly devices: readonly (readonly TimedAction[])[];
  readonly passages: readonly Passage[];
}

type Actions = readonly (readonly StageAction[])[];

/**
 * Runs the devices' lists on the times. Nothing is buffered: a value has passed when it was sent, its receive is there
 * and the transfer's time is over, and only then does a wait for its send end. Throws PlanError when a device waits for
 * ever.
 */
export function simulate(actions: Actions, times: SimulationTimes): Simulation {
  const { devices } = execute(actions, times);
  const stuck = devices.flatMap((timed, d) => (timed.length < actions[d]!.length ? [d] : []));
  if (stuck.length > 0) {
    throw new PlanError(`devices ${stuck.join(", ")} wait for ever; prove() names what for`, {
      details: { devices: stuck },
    });
  }
  const makespan = Math.max(0, ...devices.map((timed) => timed.at(-1)?.end ?? 0));
  const busy = devices
    .flat()
    .reduce((sum, { action, start, end }) => (action.kind === "run" ? sum + end - start : sum), 0);
  const bubble = makespan === 0 ? 0 : 1 - busy / (makespan * devices.length);
  return { devices, makespan, bubble, peakSlots: slotsUsed(actions.map(touches)) };
}

/** Runs the lists until every device has ended or nothing moves. */
export function execute(actions: Actions, times: SimulationTimes): Execution {
  const passages = matchTransfers(actions);
  const machine = new Machine(passages, times);
  const devices = actions.map((): TimedAction[] => []);
  for (let moved = true; moved; ) {
    moved = false;
    actions.forEach((list, device) => {
      const timed = devices[device]!;
      for (let action = list[timed.length]; action !== undefined; action = list[timed.length]) {
        const start = timed.at(-1)?.end ?? 0;
        const end = machine.end(action, device, timed.length, start);
        if (end === undefined) break;
        timed.push({ action, start, end });
        moved = true;
      }
    });
  }
  return { devices, passages };
}

/** Pairs the k-th send of a value from stage to stage with the k-th receive. */
function matchTransfers(actions: Actions): Passage[] {
  const channels = new Map<string, Passage[]>();
  const counts = new Map<string, number>();
  actions.forEach((list, device) => {
    list.forEach((a, action) => {
      if (a.kind !== "transfer") return;
      for (const item of a.items) {
        const channel = channelOf(item);
        const passages = channels.get(channel) ?? [];
        channels.set(channel, passages);
        const side = `${channel} ${item.direction}`;
        const k = counts.get(side) ?? 0;
        counts.set(side, k + 1);
        passages[k] ??= {};
        passages[k][item.direction] = { item, device, action };
      }
    });
  });
  return [...channels.values()].flat();
}

function channelOf({ direction, value, stage, peerStage }: StageTransfer): string {
  const [from, to] = direction === "send" ? [stage, peerStage] : [peerStage, stage];
  return `${from} ${to} ${value}`;
}

/** Finds when actions end. */
class Machine {
  readonly #times: SimulationTimes;
  /** The passages of each transfer, by device and index of the action. */
  readonly #byAction = new Map<string, Passage[]>();
  /** The passages of each device's sends, in posting order. */
  readonly #sends = new Map<number, Passage[]>();

  constructor(passages: readonly Passage[], times: SimulationTimes) {
    this.#times = times;
    for (const passage of passages) {
      for (const side of [passage.send, passage.receive]) {
        if (!side) continue;
        const key = `${side.device} ${side.action}`;
        const list = this.#byAction.get(key);
        if (list) list.push(passage);
        else this.#byAction.set(key, [passage]);
      }
    }
  }

  /** When an action that starts at `start` ends; undefined while that hangs on something that has not happened. */
  end(action: StageAction, device: number, index: number, start: number): number | undefined {
    if (action.kind === "run") return start + this.#duration(action.stage, action.segment);
    if (action.kind === "handover") return start;
    if (action.kind === "wait") {
      const sent = this.#sends.get(device)?.[action.send];
      return sent && this.#latest([sent], start);
    }
    return this.#transfer(action, device, index, start);
  }

  #transfer(action: TransferAction, device: number, index: number, start: number): number | undefined {
    const passages = this.#byAction.get(`${device} ${index}`) ?? [];
    const own = (p: Passage): Posting => (p.send?.device === device && p.send.action === index ? p.send : p.receive!);
    if (passages.some((p) => own(p).time === undefined)) {
      const sends = this.#sends.get(device) ?? [];
      this.#sends.set(device, sends);
      for (const item of action.items) {
        const passage = passages.find((p) => own(p).item === item)!;
        own(passage).time = start;
        if (item.direction === "send") sends.push(passage);
      }
    }
    return this.#latest(
      passages.filter((p) => own(p).item.direction === "receive"),
      start,
    );
  }

  /** When the last of the passages is over, but not before `start`. */
  #latest(passages: readonly Passage[], start: number): number | undefined {
    let latest = start;
    for (const { send, receive } of passages) {
      if (send?.time === undefined || receive?.time === undefined) return undefined;
      const { transfer = 0 } = this.#times;
      const duration = typeof transfer === "number" ? transfer : transfer(send.item);
      latest = Math.max(latest, Math.max(send.time, receive.time) + duration);
    }
    return latest;
  }

  #duration(stage: number, segment: Segment): number {
    const times = this.#times.stages[stage];
    if (!times) throw new PlanError(`no times are given for stage ${stage}`, { details: { stage } });
    return times[segment] ?? 0;
  }
}

/** The runs and sides of transfers in a list, in order: all that touches slots. */
export function touches(list: readonly StageAction[]): (RunAction | StageTransfer)[] {
  return list.flatMap((a): readonly (RunAction | StageTransfer)[] => {
    if (a.kind === "wait") return [];
    if (a.kind === "run") return [a];
    return a.kind === "handover" ? [a.send, a.receive] : a.items;
  });
}
