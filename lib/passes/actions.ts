// Turns a schedule and the values that cross stages into each device's list of actions, with slots and waits.
import { type BoundaryValue, type PipelineEvent, type TransferEvent, globalOrder } from "./order.ts";
import { type Schedule, type Segment, checkSchedule, hasWeightSegment } from "./schedule.ts";
import { type Pool, type SlotCounts, type Slots, poolsIn, poolsOf, slotKey } from "./slots.ts";

export type { BoundaryValue } from "./order.ts";

/** Runs a segment of one microbatch, whose residuals lie in `slots`. */
export interface RunAction {
  readonly kind: "run";
  readonly stage: number;
  readonly segment: Segment;
  readonly microbatch: number;
  readonly slots: Slots;
}

/** One side of a value's passage. `slots` are the microbatch's on this side. */
export interface StageTransfer {
  readonly direction: "send" | "receive";
  readonly value: number;
  readonly microbatch: number;
  readonly stage: number;
  readonly peerStage: number;
  /** The segment of `stage` that made it (send), or that needs it first (receive). */
  readonly segment: Segment;
  readonly slots: Slots;
}

/** Posts all sends, then completes all receives; the members do not wait for each other. */
export interface TransferAction {
  readonly kind: "transfer";
  readonly items: readonly StageTransfer[];
}

/** Hands a value from one stage to another on the same device: both sides at once. */
export interface HandoverAction {
  readonly kind: "handover";
  readonly send: StageTransfer;
  readonly receive: StageTransfer;
}

/** Waits until the device's send number `send`, counted from 0 in posting order, was received. */
export interface WaitAction {
  readonly kind: "wait";
  readonly send: number;
}

/** One thing a device does in a pipelined step. */
export type StageAction = RunAction | TransferAction | HandoverAction | WaitAction;

/** What every device does. */
export interface PipelineActions {
  /** One list per device. */
  readonly devices: readonly (readonly StageAction[])[];
  /** Slots of each stage: the most microbatches whose residuals it holds at once, by pool. */
  readonly slots: readonly SlotCounts[];
}

/**
 * The actions of a schedule. A microbatch has its slots from the first value received for it (or its F) to its last run
 * or until its last value was received; slots are as few as that allows. What is sent must stay untouched in its slot
 * until the slot is given away: a wait precedes that, and at the end of the step every send has been waited for. Throws
 * PlanError for a schedule that is not complete, or that cannot bring a value to where it is needed.
 */
export function pipelineActions(schedule: Schedule, boundary: readonly BoundaryValue[]): PipelineActions {
  checkSchedule(schedule);
  const events = globalOrder(schedule, boundary);
  const splits = hasWeightSegment(schedule);
  const slots: SlotCounts[] = Array.from({ length: schedule.stages }, () => ({ FB: 0, FW: 0, BW: 0 }));
  const devices = stepsOfDevices(events, schedule.devices.length).map((steps) => {
    const writer = new DeviceWriter(steps, splits);
    for (const [stage, counts] of writer.slotCounts) slots[stage] = counts;
    return writer.actions;
  });
  return { devices, slots };
}

/** Place in the global order at which each value is received. */
function receivedAt(events: readonly PipelineEvent[]): Map<string, number> {
  return new Map(events.flatMap((e, at) => (e.kind === "receive" ? [[passageKey(e), at] as const] : [])));
}

function passageKey({ value, microbatch, from, to }: TransferEvent): string {
  return `${value} ${microbatch} ${from} ${to}`;
}

/** An event as one device sees it, before it has slots. */
type Side = Omit<RunAction, "slots"> | ({ readonly kind: "item" } & Omit<StageTransfer, "slots">);

/** What a device does at a place in the global order; `until`: the place up to which its slots are needed for that. */
interface Step {
  readonly at: number;
  readonly until: number;
  /** Two where a value stays on the device. */
  readonly sides: readonly Side[];
}

function stepsOfDevices(events: readonly PipelineEvent[], devices: number): Step[][] {
  const out = Array.from({ length: devices }, (): Step[] => []);
  const received = receivedAt(events);
  events.forEach((event, at) => {
    if (event.kind === "run") {
      const { stage, segment, microbatch, device } = event;
      out[device]!.push({ at, until: at, sides: [{ kind: "run", stage, segment, microbatch }] });
      return;
    }
    const { kind, value, microbatch, from, to, made, needed, fromDevice, toDevice } = event;
    const common = { kind: "item", value, microbatch } as const;
    const send: Side = { ...common, direction: "send", stage: from, peerStage: to, segment: made };
    const receive: Side = { ...common, direction: "receive", stage: to, peerStage: from, segment: needed };
    if (kind === "handover") out[fromDevice]!.push({ at, until: at, sides: [send, receive] });
    else if (kind === "receive") out[toDevice]!.push({ at, until: at, sides: [receive] });
    else out[fromDevice]!.push({ at, until: received.get(passageKey(event))!, sides: [send] });
  });
  return out;
}

/**
 * One pool of slots of one stage: the lowest free one is taken, and each remembers sends from it that may be under way.
 */
class SlotPool {
  readonly free: boolean[] = [];
  readonly pending: number[][] = [];

  take(): number {
    const lowest = this.free.indexOf(true);
    const slot = lowest === -1 ? this.free.length : lowest;
    this.free[slot] = false;
    this.pending[slot] ??= [];
    return slot;
  }
}

/** Writes the actions of one device. */
class DeviceWriter {
  readonly actions: StageAction[] = [];
  readonly #splits: boolean;
  readonly #pools = new Map<string, SlotPool>();
  /** For each microbatch's slot, the place in the global order up to which it is needed. */
  readonly #last = new Map<string, number>();
  /** Slots in use: their keys and pools. */
  readonly #used = new Map<string, { readonly pool: SlotPool; readonly slot: number }>();
  #group: StageTransfer[] = [];
  /** Sends that must have been received before the open group begins. */
  #waits: number[] = [];
  #sends = 0;
  #groupStart = 0;

  constructor(steps: readonly Step[], splits: boolean) {
    this.#splits = splits;
    for (const { until, sides } of steps) {
      for (const key of sides.flatMap((side) => this.#keys(side)))
        this.#last.set(key, Math.max(until, this.#last.get(key) ?? 0));
    }
    for (const { at, sides } of steps) {
      this.#release(at);
      this.#step(sides);
    }
    this.#flush();
    this.#emitWaits([...this.#pools.values()].flatMap((pool) => pool.pending.flat()));
  }

  get slotCounts(): Map<number, SlotCounts> {
    const out = new Map<number, Record<Pool, number>>();
    for (const [key, pool] of this.#pools) {
      const [stage, name] = key.split(" ") as [string, Pool];
      const counts = out.get(Number(stage)) ?? { FB: 0, FW: 0, BW: 0 };
      out.set(Number(stage), { ...counts, [name]: pool.free.length });
    }
    return out;
  }

  #keys(side: Side): string[] {
    return poolsOf(side.segment, this.#splits).map((pool) => slotKey(side, pool));
  }

  #pool(stage: number, pool: Pool): SlotPool {
    const key = `${stage} ${pool}`;
    const known = this.#pools.get(key) ?? new SlotPool();
    this.#pools.set(key, known);
    return known;
  }

  #step(sides: readonly Side[]): void {
    const [side, other] = sides.map((s) => ({ ...s, slots: this.#held(s) }));
    if (side!.kind === "run") {
      this.#flush();
      this.actions.push(side!);
    } else if (other?.kind === "item") {
      this.#flush();
      const [send, receive] = [side!, other].map(itemOf) as [StageTransfer, StageTransfer];
      this.actions.push({ kind: "handover", send, receive });
    } else this.#transfer(itemOf(side!));
  }

  /** The microbatch's slots, given to it once the sends of each slot's last owner are through. */
  #held(side: Side): Slots {
    const slots: Partial<Record<Pool, number>> = {};
    for (const name of poolsOf(side.segment, this.#splits)) {
      const key = slotKey(side, name);
      const pool = this.#pool(side.stage, name);
      const known = this.#used.get(key) ?? { pool, slot: this.#open(pool) };
      this.#used.set(key, known);
      slots[name] = known.slot;
    }
    return slots;
  }

  #open(pool: SlotPool): number {
    const slot = pool.take();
    const waits = pool.pending[slot]!.splice(0);
    if (waits.some((send) => send >= this.#groupStart)) this.#flush();
    this.#waits.push(...waits);
    return slot;
  }

  /** Gives back the slots that nothing needs any more at a place in the global order. */
  #release(at: number): void {
    for (const [key, { pool, slot }] of this.#used) {
      if (this.#last.get(key)! >= at) continue;
      pool.free[slot] = true;
      this.#used.delete(key);
    }
  }

  #transfer(item: StageTransfer): void {
    this.#group.push(item);
    if (item.direction === "receive") return;
    const send = this.#sends++;
    for (const name of poolsIn(item.slots)) this.#pool(item.stage, name).pending[item.slots[name]!]!.push(send);
  }

  #flush(): void {
    this.#emitWaits(this.#waits.splice(0));
    if (this.#group.length > 0) this.actions.push({ kind: "transfer", items: this.#group });
    this.#group = [];
    this.#groupStart = this.#sends;
  }

  /** A send is waited for once, however many slots it keeps. */
  #emitWaits(sends: readonly number[]): void {
    for (const send of [...new Set(sends)].sort((a, b) => a - b)) {
      if (this.#waited.has(send)) continue;
      this.#waited.add(send);
      this.actions.push({ kind: "wait", send });
    }
  }

  readonly #waited = new Set<number>();
}

function itemOf(side: Side & { readonly slots: Slots }): StageTransfer {
  if (side.kind === "run") throw new TypeError("a run is no transfer");
  const { kind: _, ...item } = side;
  return item;
}
