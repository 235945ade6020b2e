// Proves, before anything runs, that a pipeline's actions end and never overwrite what is still needed.
import { PlanError } from "../core/errors.ts";
import type { StageAction, StageTransfer } from "./actions.ts";
import { type Segment, checkRuns, segmentsOf } from "./schedule.ts";
import { type Passage, type Posting, execute, touches as touchesOf } from "./simulate.ts";

type Actions = readonly (readonly StageAction[])[];

/** What the actions are to hold to besides fitting each other. */
export interface ProofExpectations {
  /** Microbatches of the step; by default as many as the largest microbatch run says. */
  readonly microbatches?: number;
  /** Slots each stage has; by default any number. */
  readonly slots?: readonly number[];
}

/**
 * Throws PlanError unless the actions (one list per device) are right whatever the timing and without any buffering:
 * every stage runs every microbatch's segments once and in order, sends and receives match one to one, a value is sent
 * after it is made and received before it is needed, no device waits for ever, no slot is given away while its microbatch
 * or a send from it still needs it, and every send has been waited for at the end. The error names stages and values.
 */
export function prove(actions: Actions, expected: ProofExpectations = {}): void {
  proveRuns(actions, expected.microbatches);
  actions.forEach((list, device) => {
    proveTransfersFit(list);
    proveSlots(list, expected.slots);
    proveWaits(list, device);
  });
  const { devices, passages } = execute(actions, { stages: noTimes(actions) }, { unbuffered: true });
  proveMatches(passages);
  const stuck = devices.flatMap((done, d) => (done.length < actions[d]!.length ? [d] : []));
  if (stuck.length > 0)
    reportDeadlock(
      stuck,
      devices.map((done) => done.length),
      passages,
    );
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
function proveSlots(list: readonly StageAction[], limits?: readonly number[]): void {
  const key = (t: { stage: number; microbatch: number }): string => `${t.stage} ${t.microbatch}`;
  const touches = touchesOf(list);
  const last = new Map(touches.map((t, i) => [key(t), i]));
  const slotOf = new Map<string, number>();
  const owners = new Map<string, number>();
  const underway = new Map<number, StageTransfer>();
  let position = 0;
  let sends = 0;
  const touch = (t: { stage: number; microbatch: number; slot: number }): void => {
    const { stage, microbatch, slot } = t;
    const details = { stage, microbatch, slot };
    const lose = (what: string): never => {
      throw new PlanError(`slot ${slot} of stage ${stage} is given to microbatch ${microbatch} while ${what}`, {
        details,
      });
    };
    const limit = limits?.[stage];
    if (limit !== undefined && slot >= limit) {
      throw new PlanError(`stage ${stage} has ${limit} slots, but microbatch ${microbatch} is to lie in slot ${slot}`, {
        details,
      });
    }
    const known = slotOf.get(key(t));
    if (known !== undefined && known !== slot) {
      throw new PlanError(`microbatch ${microbatch} lies in slot ${known} of stage ${stage}, not in ${slot}`, {
        details,
      });
    }
    const owner = owners.get(`${stage} ${slot}`);
    if (owner !== undefined && owner !== microbatch) {
      if (last.get(key({ stage, microbatch: owner }))! >= position) lose(`microbatch ${owner} still needs it`);
      for (const sent of underway.values()) {
        if (sent.stage === stage && sent.slot === slot) {
          lose(
            `value ${sent.value} of microbatch ${sent.microbatch} may still be on its way to stage ${sent.peerStage}`,
          );
        }
      }
    }
    slotOf.set(key(t), slot);
    owners.set(`${stage} ${slot}`, microbatch);
    position++;
  };
  for (const action of list) {
    if (action.kind === "wait") underway.delete(action.send);
    else if (action.kind === "run") touch(action);
    else {
      // All sends are posted before anything is received, whatever the order in the list.
      for (const item of action.items) if (item.direction === "send") underway.set(sends++, item);
      for (const item of action.items) touch(item);
    }
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

/** Follows from a stuck device what each waits for until a device comes up again. */
function reportDeadlock(stuck: readonly number[], reached: readonly number[], passages: readonly Passage[]): never {
  const waiting = (device: number): { mine: Posting; other: Posting } => {
    for (const { send, receive } of passages) {
      for (const [mine, other] of [[send!, receive!] as const, [receive!, send!] as const]) {
        if (mine.device === device && mine.action === reached[device] && other.time === undefined)
          return { mine, other };
      }
    }
    throw new PlanError(`device ${device} waits for a send that it has not posted`, { details: { device } });
  };
  const path: number[] = [];
  let device = stuck[0]!;
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

function passageText({ direction, value, microbatch, peerStage }: StageTransfer): string {
  return `value ${value} of microbatch ${microbatch} ${direction === "send" ? "to" : "from"} stage ${peerStage}`;
}

function refuse(item: StageTransfer, what: string): never {
  throw new PlanError(`stage ${item.stage} ${item.direction}s ${passageText(item)} ${what}`, {
    details: { stage: item.stage, peerStage: item.peerStage, value: item.value, microbatch: item.microbatch },
  });
}
