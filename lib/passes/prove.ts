// Proves, before anything runs, that a pipeline's actions end and never overwrite what is still needed.
import { PlanError } from "../core/errors.ts";
import type { StageAction, StageTransfer } from "./actions.ts";
import { type Segment, checkRuns, segmentsOf } from "./schedule.ts";
import { type Passage, type Posting, execute, touches as touchesOf } from "./simulate.ts";
import { type Pool, type SlotCounts, type SlotTouch, lastTouches, poolsIn, slotKey } from "./slots.ts";

type Actions = readonly (readonly StageAction[])[];

/** What the actions are to hold to besides fitting each other. */
export interface ProofExpectations {
  /** Microbatches of the step; by default as many as the largest microbatch run says. */
  readonly microbatches?: number;
  /** Slots each stage has, by pool; by default any number. */
  readonly slots?: readonly SlotCounts[];
}

/**
 * Throws PlanError unless the actions (one list per device) are right whatever the timing and without any buffering (a
 * send is through only when its receive was posted): every stage runs every microbatch's segments once and in order,
 * sends and receives match one to one and between two devices in one order, a value is sent after it is made and
 * received before it is needed, no device waits for ever, no slot is given away while its microbatch or a send from it
 * still needs it, and every send has been waited for at the end. The error names stages and values.
 */
export function prove(actions: Actions, expected: ProofExpectations = {}): void {
  proveRuns(actions, expected.microbatches);
  actions.forEach((list, device) => {
    proveTransfersFit(list);
    proveSlots(list, expected.slots);
    proveWaits(list, device);
  });
  const { devices, passages } = execute(actions, { stages: noTimes(actions) });
  proveMatches(passages);
  proveStreams(actions, passages);
  if (devices.some((done, d) => done.length < actions[d]!.length)) {
    reportDeadlock(
      actions,
      devices.map((done) => done.length),
      passages,
    );
  }
}

function noTimes(actions: Actions): Record<Segment, number>[] {
  const stages = actions.flat().flatMap((a) => (a.kind === "run" ? [a.stage] : []));
  return Array.from({ length: Math.max(-1, ...stages) + 1 }, () => ({ F: 0, B: 0, W: 0 }));
}

function proveRuns(actions: Actions, microbatches?: number): void {
  const runs = actions.map((list) => list.filter((a) => a.kind === "run"));
  const all = runs.flat();
  const segments = segmentsOf(all);
  const count = microbatches ?? Math.max(-1, ...all.map((r) => r.microbatch)) + 1;
  runs.forEach((list, device) => {
    if (list.length === 0) throw new PlanError(`device ${device} runs nothing`, { details: { device } });
    for (const stage of new Set(list.map((r) => r.stage))) {
      const own = list.filter((r) => r.stage === stage);
      checkRuns(own, segments, count, `stage ${stage}`);
    }
  });
}

/** Sends follow the run that makes the value, receives precede the run that needs it. */
function proveTransfersFit(list: readonly StageAction[]): void {
  const ran = new Set<string>();
  for (const touch of touchesOf(list)) {
    const run = `${touch.stage} ${touch.segment} ${touch.microbatch}`;
    if ("kind" in touch) ran.add(run);
    else if (touch.direction === "send" && !ran.has(run)) refuse(touch, `before ${touch.segment} has made it`);
    else if (touch.direction === "receive" && ran.has(run)) refuse(touch, `after ${touch.segment} needed it`);
  }
}

/** A slot belongs to one microbatch from its first touch to its last, and until its sends have been waited for. */
function proveSlots(list: readonly StageAction[], limits?: readonly SlotCounts[]): void {
  const ledger = new SlotLedger(list, limits);
  let sends = 0;
  for (const action of list) {
    if (action.kind === "wait") ledger.underway.delete(action.send);
    else if (action.kind === "run") ledger.touch(action);
    else if (action.kind === "handover") {
      ledger.touch(action.send);
      ledger.touch(action.receive);
    } else {
      // All sends are posted before anything is received, whatever the order in the list.
      for (const item of action.items) if (item.direction === "send") ledger.underway.set(sends++, item);
      for (const item of action.items) ledger.touch(item);
    }
  }
}

/** Who owns which slot while a list is gone through. */
class SlotLedger {
  /** Sends that may not have been received yet. */
  readonly underway = new Map<number, StageTransfer>();
  readonly #last: ReadonlyMap<string, number>;
  readonly #limits: readonly SlotCounts[] | undefined;
  readonly #slotOf = new Map<string, number>();
  readonly #owners = new Map<string, number>();
  #position = 0;

  constructor(list: readonly StageAction[], limits?: readonly SlotCounts[]) {
    this.#last = lastTouches(touchesOf(list));
    this.#limits = limits;
  }

  touch(t: SlotTouch): void {
    for (const pool of poolsIn(t.slots)) this.#take(t, pool, t.slots[pool]!);
    this.#position++;
  }

  #take(t: SlotTouch, pool: Pool, slot: number): void {
    const { stage, microbatch } = t;
    const fail = (what: string): never => {
      throw new PlanError(what, { details: { stage, microbatch, pool, slot } });
    };
    const limit = this.#limits?.[stage]?.[pool];
    if (limit !== undefined && slot >= limit) {
      fail(`stage ${stage} has ${limit} ${pool} slots, but microbatch ${microbatch} is to lie in slot ${slot}`);
    }
    const key = slotKey(t, pool);
    const known = this.#slotOf.get(key);
    if (known !== undefined && known !== slot) {
      fail(`microbatch ${microbatch} lies in ${pool} slot ${known} of stage ${stage}, not in ${slot}`);
    }
    const owner = this.#owners.get(`${stage} ${pool} ${slot}`);
    if (owner !== undefined && owner !== microbatch) {
      const given = `${pool} slot ${slot} of stage ${stage} is given to microbatch ${microbatch} while`;
      if (this.#last.get(slotKey({ stage, microbatch: owner }, pool))! >= this.#position)
        fail(`${given} microbatch ${owner} still needs it`);
      for (const sent of this.underway.values()) {
        if (sent.stage !== stage || sent.slots[pool] !== slot) continue;
        const { value, microbatch: of, peerStage } = sent;
        fail(`${given} value ${value} of microbatch ${of} may still be on its way to stage ${peerStage}`);
      }
    }
    this.#slotOf.set(key, slot);
    this.#owners.set(`${stage} ${pool} ${slot}`, microbatch);
  }
}

/** Waits name sends that were posted before, and at the end no send is left without one. */
function proveWaits(list: readonly StageAction[], device: number): void {
  const open = new Map<number, StageTransfer>();
  let sends = 0;
  for (const action of list) {
    if (action.kind === "wait") {
      if (action.send >= sends || action.send < 0) {
        throw new PlanError(`device ${device} waits for its send ${action.send} when it has posted ${sends}`, {
          details: { device, send: action.send },
        });
      }
      open.delete(action.send);
    } else if (action.kind === "transfer") {
      for (const item of action.items) if (item.direction === "send") open.set(sends++, item);
    }
  }
  for (const item of open.values()) refuse(item, "and never waits until it was received");
}

/** Sends and receives of each value meet one to one and in the same order of microbatches. */
function proveMatches(passages: readonly Passage[]): void {
  for (const { send, receive } of passages) {
    if (!receive) refuse(send!.item, `which never receives it`);
    if (!send) refuse(receive.item, `which never sends it`);
    const [a, b] = [send.item, receive.item];
    if (a.microbatch !== b.microbatch) {
      throw new PlanError(
        `stage ${a.stage} sends value ${a.value} of microbatch ${a.microbatch} ` +
          `when stage ${b.stage} expects microbatch ${b.microbatch}`,
        { details: { value: a.value, stages: [a.stage, b.stage], microbatches: [a.microbatch, b.microbatch] } },
      );
    }
  }
}

/** A device receives from another in the order in which that sends: messages of a stream do not pass each other. */
function proveStreams(actions: Actions, passages: readonly Passage[]): void {
  const senders = new Map(passages.map(({ send, receive }) => [receive!.item, send!]));
  const order = new Map(actions.flatMap((list) => touchesOf(list).map((touch, i) => [touch, i] as const)));
  const last = new Map<string, { readonly at: number; readonly item: StageTransfer }>();
  actions.forEach((list, device) => {
    for (const touch of touchesOf(list)) {
      const sender = "kind" in touch ? undefined : senders.get(touch);
      if ("kind" in touch || !sender) continue;
      const stream = `${sender.device} ${device}`;
      const before = last.get(stream);
      const at = order.get(sender.item)!;
      if (before && before.at > at) {
        const text = passageText(before.item);
        refuse(touch, `after ${text}, although stage ${touch.peerStage} sends it before`);
      }
      last.set(stream, { at, item: touch });
    }
  });
}

/** Follows from a stuck device what each waits for until a device comes up again. */
function reportDeadlock(actions: Actions, reached: readonly number[], passages: readonly Passage[]): never {
  const waiting = (device: number): { mine: Posting; other: Posting } => {
    const action = actions[device]![reached[device]!]!;
    for (const { send, receive } of passages) {
      const [mine, other] = action.kind === "wait" ? [send!, receive!] : [receive!, send!];
      const own =
        action.kind === "wait" ? numberOf(actions[device]!, mine) === action.send : mine.action === reached[device];
      if (mine.device === device && own && other.time === undefined) return { mine, other };
    }
    throw new PlanError(`device ${device} waits for a send that it has not posted`, { details: { device } });
  };
  const path: number[] = [];
  let device = reached.findIndex((n, d) => n < actions[d]!.length);
  while (!path.includes(device)) {
    path.push(device);
    device = waiting(device).other.device;
  }
  const cycle = path.slice(path.indexOf(device)).map((d) => waiting(d).mine.item);
  const words = cycle.map((i) => `stage ${i.stage} waits to ${i.direction} ${passageText(i)}`);
  throw new PlanError(`the pipeline would wait for ever: ${words.join("; ")}`, {
    details: {
      stages: cycle.map((i) => i.stage),
      values: cycle.map((i) => i.value),
      cycle: cycle.map(({ stage, peerStage, direction, value, microbatch }) => ({
        stage,
        peerStage,
        direction,
        value,
        microbatch,
      })),
    },
  });
}

/** Which of its device's sends a posting is, counted in posting order. */
function numberOf(list: readonly StageAction[], posting: Posting): number {
  const sends = list.flatMap((a) => (a.kind === "transfer" ? a.items.filter((i) => i.direction === "send") : []));
  return sends.indexOf(posting.item);
}

function passageText({ direction, value, microbatch, peerStage }: StageTransfer): string {
  return `value ${value} of microbatch ${microbatch} ${direction === "send" ? "to" : "from"} stage ${peerStage}`;
}

function refuse(item: StageTransfer, what: string): never {
  throw new PlanError(`stage ${item.stage} ${item.direction}s ${passageText(item)} ${what}`, {
    details: { stage: item.stage, peerStage: item.peerStage, value: item.value, microbatch: item.microbatch },
  });
}
