// Proof of a memory plan: goes through a device's actions as the device does, and notes who wrote each byte last, so
// that nothing is read that something else has overwritten. It knows addresses and instructions only, no lifetimes.
import { ProgramError } from "../core/errors.ts";
import type { View } from "../ir/lowering.ts";
import type { Action, InSlots } from "./device-action.ts";
import { takeovers } from "./in-place.ts";
import { viewsOf } from "./lifetimes.ts";
import type { Instruction, ProgramBuilder } from "./lower.ts";
import { type MemoryPlan, poolOf } from "./memory.ts";

/** Throws ProgramError naming two buffers that are needed at once and share bytes. */
export function proveMemory(program: ProgramBuilder, actions: readonly Action[], plan: MemoryPlan): void {
  new Replay(program, plan).run(actions);
}

/** A buffer's bytes in the arena. */
interface Place {
  readonly buffer: number;
  readonly begin: number;
  readonly end: number;
}

class Replay {
  readonly #program: ProgramBuilder;
  readonly #plan: MemoryPlan;
  readonly #owners = new Owners();
  /** What each scratch buffer's run of its segment was when it was begun, and that of buffers that last: 0. */
  readonly #begun = new Map<number, number>();
  #action = 0;
  #where: InSlots = nowhere;
  #label = "";

  constructor(program: ProgramBuilder, plan: MemoryPlan) {
    this.#program = program;
    this.#plan = plan;
  }

  run(actions: readonly Action[]): void {
    const sent: (Place | null)[] = [];
    for (const [index, action] of actions.entries()) {
      this.#action = index + 1;
      this.#label = action.kind;
      if (action.kind === "run") {
        this.#where = action;
        for (const i of this.#program.segments[action.segment]!.instructions) this.#instruction(i);
      } else if (action.kind === "wait") {
        this.#check(sent[action.send]!);
        sent[action.send] = null;
      } else {
        for (const item of viewsOf(action)) {
          this.#where = item.where ?? nowhere;
          const writes = item.direction === "write" || item.direction === "receive";
          const place = this.#place(item.view);
          if (writes) this.#write(place);
          else this.#check(place);
          if (item.direction === "send") sent.push(place);
        }
      }
    }
    this.#label = "a send";
    for (const place of sent) this.#check(place);
  }

  #instruction(instruction: Instruction): void {
    const { inputs, outputs, label, kernel } = instruction;
    this.#label = `${kernel} of ${label || "the step"}`;
    const read = inputs.map((view) => this.#place(view));
    for (const place of read) this.#check(place);
    const written = outputs.map((view) => this.#place(view));
    const allowed = takeovers(instruction, this.#program.buffers);
    for (const y of written) {
      for (const x of read) {
        if (!x || !y || x.buffer === y.buffer || x.end <= y.begin || y.end <= x.begin) continue;
        if (x.begin === y.begin && allowed.some((t) => t.taken === x.buffer && t.by === y.buffer)) continue;
        throw this.#refusal(y, `overwrites buffer ${x.buffer}, which the same instruction reads`);
      }
    }
    for (const place of written) this.#write(place);
    for (const place of written) this.#check(place);
  }

  #place({ buffer }: View): Place | null {
    const { bytes } = this.#program.buffers[buffer]!;
    const { region, offset } = this.#plan.locations[buffer]!;
    const pool = poolOf(region);
    if (bytes === 0 || (region !== 0 && !pool)) return null;
    const { stage, slots } = this.#where;
    const begin = offset + (pool ? this.#plan.slotOffset(stage, pool, slots[pool] ?? 0) : 0);
    return { buffer, begin, end: begin + bytes };
  }

  /** What is read must be what was written. */
  #check(place: Place | null): void {
    if (place && !this.#owners.owns(place))
      throw this.#refusal(place, "is needed, and was overwritten or never written");
  }

  /** The first write makes a buffer's bytes its own; later ones must find them so. Slots begin anew. */
  #write(place: Place | null): void {
    if (!place || this.#owners.owns(place)) return;
    const { home, uses } = this.#program.buffers[place.buffer]!;
    const scope = home === "auto" && uses.size === 1 ? this.#action : 0;
    const inSlot = this.#plan.locations[place.buffer]!.region !== 0;
    if (!inSlot && this.#begun.get(place.buffer) === scope) {
      throw this.#refusal(place, "was overwritten between two writes to it");
    }
    this.#begun.set(place.buffer, scope);
    this.#owners.give(place);
  }

  #refusal({ buffer, begin, end }: Place, what: string): ProgramError {
    const known = `buffer ${buffer} at bytes ${begin} to ${end} of the arena`;
    return new ProgramError(`memory plan: ${this.#label} (action ${this.#action}): ${known} ${what}`);
  }
}

const nowhere: InSlots = { stage: 0, slots: {} };

/** Which buffer every byte belongs to, as intervals that do not overlap, in order. */
class Owners {
  readonly #list: Place[] = [];

  /** Index of the first interval that ends behind a byte. */
  #find(byte: number): number {
    let [low, high] = [0, this.#list.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#list[middle]!.end <= byte) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  owns({ buffer, begin, end }: Place): boolean {
    let at = begin;
    for (let i = this.#find(begin); at < end; i++) {
      const known = this.#list[i];
      if (!known || known.buffer !== buffer || known.begin > at) return false;
      at = known.end;
    }
    return true;
  }

  give(place: Place): void {
    const from = this.#find(place.begin);
    let to = from;
    const rest: Place[] = [];
    for (; to < this.#list.length && this.#list[to]!.begin < place.end; to++) {
      const { buffer, begin, end } = this.#list[to]!;
      if (begin < place.begin) rest.push({ buffer, begin, end: place.begin });
      if (end > place.end) rest.push({ buffer, begin: place.end, end });
    }
    const kept = [...rest, place].sort((a, b) => a.begin - b.begin);
    this.#list.splice(from, to - from, ...kept);
  }
}
