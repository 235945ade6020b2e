// Turns a schedule and the values that cross stages into each device's list of actions, with slots and waits.
import { type BoundaryValue, type PipelineEvent, globalOrder } from "./order.ts";
import { type Schedule, type Segment, checkSchedule } from "./schedule.ts";

export type { BoundaryValue } from "./order.ts";

/** Runs a segment of one microbatch, whose residuals lie in `slot`. */
export interface RunAction {
  readonly kind: "run";
  readonly stage: number;
  readonly segment: Segment;
  readonly microbatch: number;
  readonly slot: number;
}

/** One side of a value's passage. `slot` is the microbatch's slot on this side. */
export interface StageTransfer {
  readonly direction: "send" | "receive";
  readonly value: number;
  readonly microbatch: number;
  readonly stage: number;
  readonly peerStage: number;
  /** The segment of `stage` that made it (send), or that needs it first (receive). */
  readonly segment: Segment;
  readonly slot: number;
}

/** Posts all sends, then completes all receives; the members do not wait for each other. */
export interface TransferAction {
  readonly kind: "transfer";
  readonly items: readonly StageTransfer[];
}

/** Waits until the device's send number `send`, counted from 0 in posting order, was received. */
export interface WaitAction {
  readonly kind: "wait";
  readonly send: number;
}

/** One thing a device does in a pipelined step. */
export type StageAction = RunAction | TransferAction | WaitAction;

/** What every device does. */
export interface PipelineActions {
  /** One list per device. */
  readonly devices: readonly (readonly StageAction[])[];
  /** Slots of each stage: the most microbatches whose residuals it holds at once. */
  readonly slots: readonly number[];
}

/**
 * The actions of a schedule. A microbatch has its slot from the first value received for it (or its F) to its last run or
 * send; slots are as few as that allows. What is sent must stay untouched in its slot until the slot is given away: a
 * wait precedes that, and at the end of the step every send has been waited for.
 * Throws PlanError for a schedule that is not complete, or that cannot bring a value to where it is needed.
 */
export function pipelineActions(schedule: Schedule, boundary: readonly BoundaryValue[]): PipelineActions {
  checkSchedule(schedule);
  const events = globalOrder(schedule, boundary);
  const slots = new Array<number>(schedule.stages).fill(0);
  const devices = schedule.devices.map((_, device) => {
    const writer = new DeviceWriter(events.flatMap((e) => sideOf(e, device)));
    for (const [stage, count] of writer.slotCounts) slots[stage] = count;
    return writer.actions;
  });
  return { devices, slots };
}

/** An event as one device sees it. */
type Side = Omit<RunAction, "slot"> | ({ readonly kind: "item" } & Omit<StageTransfer, "slot">);

function sideOf(event: PipelineEvent, device: number): Side[] {
  if (event.kind === "run") {
    const { stage, segment, microbatch } = event;
    return event.device === device ? [{ kind: "run", stage, segment, microbatch }] : [];
  }
  const { value, microbatch, from, to, made, needed } = event;
  const common = { kind: "item", value, microbatch } as const;
  if (event.fromDevice === device) return [{ ...common, direction: "send", stage: from, peerStage: to, segment: made }];
  if (event.toDevice === device)
    return [{ ...common, direction: "receive", stage: to, peerStage: from, segment: needed }];
  return [];
}

/** The slots of one stage: the lowest free one is taken, and each remembers sends from it that may be under way. */
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
  readonly #pools = new Map<number, SlotPool>();
  readonly #slots = new Map<string, number>();
  #group: StageTransfer[] = [];
  /** Sends that must have been received before the open group begins. */
  #waits: number[] = [];
  #sends = 0;
  #groupStart = 0;

  constructor(sides: readonly Side[]) {
    const key = (s: Side): string => `${s.stage} ${s.microbatch}`;
    const last = new Map(sides.map((s, i) => [key(s), i]));
    sides.forEach((side, i) => {
      const slot = this.#slots.get(key(side)) ?? this.#open(side, key(side));
      if (side.kind === "run") this.#run({ ...side, slot });
      else this.#transfer(side, slot);
      if (last.get(key(side)) === i) this.#pools.get(side.stage)!.free[slot] = true;
    });
    this.#flush();
    const rest = [...this.#pools.values()].flatMap((pool) => pool.pending.flat()).sort((a, b) => a - b);
    this.#emitWaits(rest);
  }

  get slotCounts(): [stage: number, count: number][] {
    return [...this.#pools].map(([stage, pool]) => [stage, pool.free.length]);
  }

  /** Gives a microbatch its slot once the sends of the slot's last owner are through. */
  #open(side: Side, key: string): number {
    const pool = this.#pools.get(side.stage) ?? new SlotPool();
    this.#pools.set(side.stage, pool);
    const slot = pool.take();
    this.#slots.set(key, slot);
    const waits = pool.pending[slot]!.splice(0);
    if (waits.some((send) => send >= this.#groupStart)) this.#flush();
    this.#waits.push(...waits);
    return slot;
  }

  #run(action: RunAction): void {
    this.#flush();
    this.actions.push(action);
  }

  #transfer(side: Side & { readonly kind: "item" }, slot: number): void {
    const { direction, value, microbatch, stage, peerStage, segment } = side;
    this.#group.push({ direction, value, microbatch, stage, peerStage, segment, slot });
    if (direction === "send") this.#pools.get(stage)!.pending[slot]!.push(this.#sends++);
  }

  #flush(): void {
    this.#emitWaits(this.#waits.splice(0));
    if (this.#group.length > 0) this.actions.push({ kind: "transfer", items: this.#group });
    this.#group = [];
    this.#groupStart = this.#sends;
  }

  #emitWaits(sends: readonly number[]): void {
    for (const send of sends) this.actions.push({ kind: "wait", send });
  }
}
