// Memory planning: gives every virtual buffer of a program its place, so that the plan's bytes are the real bytes.
import { PlanError } from "../core/errors.ts";
import type { Segment } from "../ir/graph.ts";
import type { Action } from "./device-action.ts";
import { takeovers } from "./in-place.ts";
import { Lifetimes, type Interval } from "./lifetimes.ts";
import type { ProgramBuilder, VirtualBuffer } from "./lower.ts";
import { type Lifetime, mostAlive, packLifetimes } from "./pack.ts";
import { type Pool, type SlotCounts, poolFor, pools } from "./slots.ts";

/** Offsets are multiples of this, in bytes: cache lines, and the widest vector. */
export const alignment = 64;

/** Where a buffer lies: a program region and a byte offset in it. */
export interface Location {
  /** 0 arena, 1 to 3 a slot of a pool, 4 + k bound buffer k (docs/PROGRAM.md). */
  readonly region: number;
  readonly offset: number;
}

/** The slots of one stage in one pool. */
export interface PoolPlan {
  readonly stage: number;
  readonly pool: Pool;
  readonly slots: number;
  /** Of one slot. */
  readonly bytes: number;
  /** Of the first slot, in the arena. */
  readonly offset: number;
}

/** The plan of one program. */
export interface MemoryPlan {
  readonly locations: readonly Location[];
  readonly arenaBytes: number;
  /** The most that is alive at one moment: what no plan could be below. */
  readonly aliveBytes: number;
  /** What microbatches keep from one of their segments to another, for all that are kept at once; part of the arena. */
  readonly activationBytes: number;
  /** Where several microbatches run; without, everything has a place of its own by its lifetime. */
  readonly pools: readonly PoolPlan[];
  /** Byte offset of a slot in the arena; 0 for a pool that holds nothing. */
  slotOffset(stage: number, pool: Pool, slot: number): number;
}

/** Region of the first bound buffer. */
const firstBound = 1 + pools.length;

/** The pool of a region; null for other regions. */
export function poolOf(region: number): Pool | null {
  return pools[region - 1] ?? null;
}

/** Rounds up to the alignment. */
export function align(bytes: number): number {
  return Math.ceil(bytes / alignment) * alignment;
}

/**
 * Plans a program that does these actions, its stages keeping so many microbatches at once, by pool. Whatever is alive
 * together lies apart; a result may take over the memory of an operand that is not needed any more.
 */
export function planMemory(
  program: ProgramBuilder,
  actions: readonly Action[],
  slots: readonly SlotCounts[] = [],
): MemoryPlan {
  return new Planner(program, new Lifetimes(program, actions), slots).plan();
}

/** Something to be packed: buffers one after the other in one memory, or a pool's slots. */
interface Item {
  bytes: number;
  first: number;
  last: number;
  /** Told where it lies. */
  place(offset: number): void;
}

class Planner {
  readonly #program: ProgramBuilder;
  readonly #lifetimes: Lifetimes;
  readonly #slots: readonly SlotCounts[];
  readonly #locations: Location[];

  constructor(program: ProgramBuilder, lifetimes: Lifetimes, slots: readonly SlotCounts[]) {
    this.#program = program;
    this.#lifetimes = lifetimes;
    this.#slots = slots;
    this.#locations = program.buffers.map(({ home }) => ({
      region: typeof home === "object" ? firstBound + home.bound : 0,
      offset: 0,
    }));
  }

  plan(): MemoryPlan {
    const { buffers } = this.#program;
    const own: number[] = [];
    const slotBuffers = new PoolSizes();
    let kept = 0;
    buffers.forEach((buffer, index) => {
      const lifetime = this.#lifetimes.of(index);
      if (typeof buffer.home === "object" || !lifetime) return;
      const crosses = keptByMicrobatches(this.#program, buffer);
      if (crosses && this.#lifetimes.loops.length > 0) {
        const pool = poolFor(partsThatUse(this.#program, buffer));
        this.#locations[index] = { region: 1 + pools.indexOf(pool), offset: slotBuffers.add(buffer, pool, lifetime) };
      } else {
        own.push(index);
        if (crosses) kept += align(buffer.bytes);
      }
    });
    const planned: PoolPlan[] = [];
    const items = this.#inLoops([...this.#memories(own), ...slotBuffers.items(this.#slots, planned)]);
    const { offsets, total } = packLifetimes(items);
    for (const [i, item] of items.entries()) item.place(offsets[i]!);
    refuseBeyond(total, "a device's activations");
    for (const { bytes } of buffers) refuseBeyond(bytes, "a tensor");
    return {
      locations: this.#locations,
      arenaBytes: total,
      aliveBytes: mostAlive(items),
      activationBytes: kept + planned.reduce((sum, p) => sum + p.slots * p.bytes, 0),
      pools: planned,
      slotOffset(stage, pool, slot) {
        const known = planned.find((p) => p.stage === stage && p.pool === pool);
        return known ? known.offset + slot * known.bytes : 0;
      },
    };
  }

  /** Memories for buffers: one for each, but one for all that take it over from each other. */
  #memories(buffers: readonly number[]): Item[] {
    const memories = new Map<number, Lifetime & { last: number; readonly buffers: number[] }>();
    for (const b of buffers) {
      memories.set(b, { bytes: align(this.#program.buffers[b]!.bytes), ...this.#lifetimes.of(b)!, buffers: [b] });
    }
    for (const [segment, begin] of this.#lifetimes.begins) {
      this.#program.segments[segment]!.instructions.forEach((instruction, i) => {
        const begun = instruction.outputs.some(({ buffer }) => memories.get(buffer)?.first === begin + i);
        if (!begun || !instruction.inputs.some(({ buffer }) => memories.get(buffer)?.last === begin + i)) return;
        for (const { taken, by } of takeovers(instruction, this.#program.buffers)) {
          const [before, after] = [memories.get(taken), memories.get(by)];
          if (!before || !after || before.last !== begin + i || after.first !== begin + i) continue;
          if (before.buffers.at(-1) !== taken) continue;
          before.last = after.last;
          before.buffers.push(...after.buffers);
          for (const b of after.buffers) memories.set(b, before);
        }
      });
    }
    return [...new Set(memories.values())].map(({ bytes, first, last, buffers: members }) => ({
      bytes,
      first,
      last,
      place: (offset) => {
        for (const b of members) this.#locations[b] = { region: 0, offset };
      },
    }));
  }

  /** The items, those that live as long as a loop or longer side by side as one: not looked through again and again. */
  #inLoops(items: Item[]): Item[] {
    const { loops } = this.#lifetimes;
    const through = (i: Item): boolean => loops.some((loop) => i.first <= loop.first && loop.last <= i.last);
    const long = items.filter(through);
    if (long.length === 0) return items;
    const whole: Item = {
      bytes: long.reduce((sum, i) => sum + i.bytes, 0),
      first: Math.min(...long.map((i) => i.first)),
      last: Math.max(...long.map((i) => i.last)),
      place(offset) {
        let at = offset;
        for (const item of long) {
          item.place(at);
          at += item.bytes;
        }
      },
    };
    return [whole, ...items.filter((i) => !through(i))];
  }
}

/** True for what a microbatch keeps from one of its segments to another. */
function keptByMicrobatches({ segments }: ProgramBuilder, { home, uses }: VirtualBuffer): boolean {
  if (home === "auto" && uses.size > 1) return [...uses.keys()].some((s) => segments[s]!.part !== null);
  return home === "slot";
}

/** The parts of a stage's work that touch a buffer. */
function partsThatUse({ segments }: ProgramBuilder, { uses, fedFor }: VirtualBuffer): Set<Segment> {
  const parts = [...uses.keys()].flatMap((s) => segments[s]!.part ?? []);
  return new Set([...parts, ...fedFor]);
}

/** The slots of stages while buffers are added to them. Slots of several variants overlap. */
class PoolSizes {
  readonly #pools = new Map<string, { readonly byVariant: Map<number, number>; first: number; last: number }>();

  /** Adds a buffer; returns its offset in the slot. */
  add({ stage, variant, bytes }: VirtualBuffer, pool: Pool, { first, last }: Interval): number {
    const key = `${stage} ${pool}`;
    const known = this.#pools.get(key) ?? { byVariant: new Map(), first, last };
    this.#pools.set(key, known);
    known.first = Math.min(known.first, first);
    known.last = Math.max(known.last, last);
    const offset = known.byVariant.get(variant) ?? 0;
    known.byVariant.set(variant, offset + align(bytes));
    return offset;
  }

  /** A pool's slots lie one after the other. Tells `planned` where they are. */
  items(counts: readonly SlotCounts[], planned: PoolPlan[]): Item[] {
    return [...this.#pools].map(([key, { byVariant, first, last }]) => {
      const [stage, pool] = key.split(" ") as [string, Pool];
      const slots = counts[Number(stage)]?.[pool] ?? 0;
      const bytes = Math.max(...byVariant.values());
      return {
        bytes: slots * bytes,
        first,
        last,
        place: (offset) => void planned.push({ stage: Number(stage), pool, slots, bytes, offset }),
      };
    });
  }
}

/** What a program can address: offsets are counted in units of the alignment, in 31 bits. */
const mostBytes = 2 ** 31 * alignment;

function refuseBeyond(bytes: number, what: string): void {
  if (bytes < mostBytes) return;
  const gib = (n: number): string => `${(n / 2 ** 30).toFixed(0)} GiB`;
  throw new PlanError(
    `${what} would take ${gib(bytes)}; ${gib(mostBytes)} are the most: split it over more devices, or use a smaller batch`,
    { details: { bytes, most: mostBytes } },
  );
}
