// When each virtual buffer of a device's program is alive: from the first action or instruction that touches it to the
// last, in the order in which the device does them.
import type { View } from "../ir/lowering.ts";
import type { Action, InSlots } from "./device-action.ts";
import type { ProgramBuilder } from "./lower.ts";

/** The first and last moment at which something is touched; both count. */
export interface Interval {
  readonly first: number;
  readonly last: number;
}

/** A run of actions, by index, some of which come again for other microbatches. */
interface Loop {
  readonly begin: number;
  end: number;
}

/**
 * The clock of a program and the lifetimes of its buffers. An instruction takes a moment. Where segments run once for
 * each of several microbatches, all that happens from the first such run to the last is a loop. In it every segment has
 * one stretch of time, in which what only it touches lives; all else that is touched in the loop lives as long as the
 * loop.
 */
export class Lifetimes {
  /** The moment of each segment's first instruction; missing for those that never run. */
  readonly begins = new Map<number, number>();
  /** The loops' times, in order. */
  readonly loops: Interval[] = [];
  /** By buffer; undefined where nothing touches it. */
  readonly #of: ({ first: number; last: number } | undefined)[] = [];
  /** Time of each action that is no run, and of each run's loop. */
  readonly #actions: Interval[] = [];
  readonly #loopOf = new Map<number, Interval>();
  #end = 0;

  constructor(program: ProgramBuilder, actions: readonly Action[]) {
    this.#tick(program, actions);
    program.buffers.forEach(({ uses, home }, buffer) => {
      const scratch = home === "auto" && uses.size === 1;
      for (const [segment, { first, last }] of uses) {
        const begin = this.begins.get(segment);
        if (begin === undefined) continue;
        const loop = scratch ? undefined : this.#loopOf.get(segment);
        this.#touch(buffer, loop ?? { first: begin + first, last: begin + last });
      }
    });
    this.#touchByActions(actions);
  }

  /** When a buffer is alive; null where nothing touches it. */
  of(buffer: number): Interval | null {
    return this.#of[buffer] ?? null;
  }

  #touch(buffer: number, { first, last }: Interval): void {
    const known = this.#of[buffer];
    if (!known) this.#of[buffer] = { first, last };
    else {
      known.first = Math.min(known.first, first);
      known.last = Math.max(known.last, last);
    }
  }

  /** Gives every action, and every segment's instructions, their time. */
  #tick(program: ProgramBuilder, actions: readonly Action[]): void {
    const loops = loopsOf(actions);
    let at = 0;
    let next = 0;
    let loop: { first: number; last: number } | null = null;
    actions.forEach((action, index) => {
      if (loops[next]?.begin === index) {
        loop = { first: at++, last: 0 };
        this.loops.push(loop);
      }
      if (action.kind === "run") {
        if (!this.begins.has(action.segment)) {
          this.begins.set(action.segment, at);
          at += program.segments[action.segment]!.instructions.length;
        }
        if (loop) this.#loopOf.set(action.segment, loop);
      }
      this.#actions.push(loop ?? { first: at, last: at });
      at++;
      if (loop && loops[next]!.end === index) {
        loop.last = at++;
        loop = null;
        next++;
      }
    });
    this.#end = at;
  }

  /** What is sent lives until the send is known to have been received. */
  #touchByActions(actions: readonly Action[]): void {
    const sent: number[] = [];
    const waited = new Set<number>();
    actions.forEach((action, index) => {
      const time = this.#actions[index]!;
      for (const { view, direction } of viewsOf(action)) {
        this.#touch(view.buffer, time);
        if (direction === "send") sent.push(view.buffer);
      }
      if (action.kind !== "wait") return;
      this.#touch(sent[action.send]!, time);
      waited.add(action.send);
    });
    sent.forEach((buffer, send) => {
      if (!waited.has(send)) this.#touch(buffer, { first: this.#end, last: this.#end });
    });
  }
}

/** What an action itself does to memory, in the slots where it does. */
export interface Touch {
  readonly view: View;
  readonly direction: "send" | "receive" | "read" | "write";
  readonly where?: InSlots;
}

/** The views that an action itself touches. */
export function viewsOf(action: Action): Touch[] {
  switch (action.kind) {
    case "feed":
      return [{ view: action.view, direction: "write", where: action }];
    case "fetch":
      return [{ view: action.view, direction: "read" }];
    case "handover":
      return [
        { view: action.from.view, direction: "read", where: action.from },
        { view: action.to.view, direction: "write", where: action.to },
      ];
    case "transfer":
      return action.items.map((item) => ({ ...item, where: item }));
    default:
      return [];
  }
}

/** What would come twice where a program has loops: a segment, or a buffer that is filled from outside. */
function namesOf(action: Action): string[] {
  if (action.kind === "run" || action.kind === "handover") return [`segment ${action.segment}`];
  return viewsOf(action).flatMap(({ view, direction }) =>
    direction === "receive" || direction === "write" ? [`buffer ${view.buffer}`] : [],
  );
}

/** The loops of a program, in order. */
function loopsOf(actions: readonly Action[]): Loop[] {
  const ranges = new Map<string, Loop>();
  actions.forEach((action, index) => {
    for (const name of namesOf(action)) {
      const known = ranges.get(name);
      if (known) known.end = index;
      else ranges.set(name, { begin: index, end: index });
    }
  });
  const loops: Loop[] = [];
  for (const range of ranges.values()) {
    // Ranges come in the order in which they begin.
    if (range.begin === range.end) continue;
    const before = loops.at(-1);
    if (before && range.begin <= before.end) before.end = Math.max(before.end, range.end);
    else loops.push(range);
  }
  return loops;
}
