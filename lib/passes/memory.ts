// Memory planning: gives every virtual buffer of a program its place, so that the plan's bytes are the real bytes.
import { PlanError } from "../core/errors.ts";
import type { Segment } from "../ir/graph.ts";
import type { ProgramBuilder, VirtualBuffer } from "./lower.ts";
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
  /** The arena's parts: what lasts for the step, all slots, scratch of the largest segment. */
  readonly stepBytes: number;
  readonly slotBytes: number;
  readonly scratchBytes: number;
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

/** Plans a program whose stages keep so many microbatches at once, by pool. Slots of several variants overlap. */
export function planMemory(program: ProgramBuilder, slots: readonly SlotCounts[]): MemoryPlan {
  const { buffers } = program;
  const locations: Location[] = buffers.map(() => ({ region: 0, offset: 0 }));
  let stepBytes = 0;
  const sizes = new PoolSizes();
  const scratch = new Map<number, number[]>();
  buffers.forEach((buffer, index) => {
    const { home, uses, bytes } = buffer;
    if (typeof home === "object") locations[index] = { region: firstBound + home.bound, offset: 0 };
    else if (home === "step") {
      locations[index] = { region: 0, offset: stepBytes };
      stepBytes += align(bytes);
    } else if (home === "slot" || uses.size > 1) {
      const pool = poolFor(partsThatUse(program, buffer));
      locations[index] = { region: 1 + pools.indexOf(pool), offset: sizes.add(buffer, pool) };
    } else {
      for (const segment of uses.keys()) {
        const known = scratch.get(segment);
        if (known) known.push(index);
        else scratch.set(segment, [index]);
      }
    }
  });
  const planned = sizes.place(slots, stepBytes);
  const slotBytes = planned.reduce((sum, p) => sum + p.slots * p.bytes, 0);
  const scratchStart = stepBytes + slotBytes;
  let scratchBytes = 0;
  for (const [segment, list] of scratch) {
    const { offsets, total } = packLifetimes(list.map((i) => lifetime(buffers[i]!, segment)));
    list.forEach((i, k) => {
      locations[i] = { region: 0, offset: scratchStart + offsets[k]! };
    });
    scratchBytes = Math.max(scratchBytes, total);
  }
  refuseBeyond(scratchStart + scratchBytes, "a device's activations");
  for (const { bytes } of buffers) refuseBeyond(bytes, "a tensor");
  return {
    locations,
    arenaBytes: scratchStart + scratchBytes,
    stepBytes,
    slotBytes,
    scratchBytes,
    pools: planned,
    slotOffset(stage, pool, slot) {
      const own = planned.find((p) => p.stage === stage && p.pool === pool);
      return own ? own.offset + slot * own.bytes : 0;
    },
  };
}

/** The parts of a stage's work that touch a buffer. */
function partsThatUse({ segments }: ProgramBuilder, { uses, fedFor }: VirtualBuffer): Set<Segment> {
  const parts = [...uses.keys()].flatMap((s) => segments[s]!.part ?? []);
  return new Set([...parts, ...fedFor]);
}

/** Sizes of slots while buffers are added to them. */
class PoolSizes {
  readonly #sizes = new Map<string, Map<number, number>>();

  /** Adds a buffer; returns its offset in the slot. */
  add({ stage, variant, bytes }: VirtualBuffer, pool: Pool): number {
    const key = `${stage} ${pool}`;
    const byVariant = this.#sizes.get(key) ?? new Map<number, number>();
    this.#sizes.set(key, byVariant);
    const offset = byVariant.get(variant) ?? 0;
    byVariant.set(variant, offset + align(bytes));
    return offset;
  }

  /** Lays the slots out one after the other. */
  place(counts: readonly SlotCounts[], start: number): PoolPlan[] {
    let offset = start;
    return [...this.#sizes].map(([key, byVariant]) => {
      const [stage, pool] = key.split(" ") as [string, Pool];
      const slots = counts[Number(stage)]?.[pool] ?? 0;
      const plan = { stage: Number(stage), pool, slots, bytes: Math.max(...byVariant.values()), offset };
      offset += slots * plan.bytes;
      return plan;
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

/** A buffer's bytes and the first and last instruction that touch it. */
export interface Lifetime {
  readonly bytes: number;
  readonly first: number;
  readonly last: number;
}

function lifetime(buffer: VirtualBuffer, segment: number): Lifetime {
  return { bytes: align(buffer.bytes), ...buffer.uses.get(segment)! };
}

/** Offsets for intervals in time such that those alive together do not overlap: largest first, best fit. */
export function packLifetimes(items: readonly Lifetime[]): { offsets: number[]; total: number } {
  const offsets = new Array<number>(items.length).fill(0);
  const order = items
    .map((_, i) => i)
    .sort((a, b) => items[b]!.bytes - items[a]!.bytes || items[a]!.first - items[b]!.first);
  const placed = new PlacedItems(items, offsets);
  let total = 0;
  for (const i of order) {
    const item = items[i]!;
    let best = -1;
    let bestGap = Number.POSITIVE_INFINITY;
    let end = 0;
    for (const p of placed.alongside(item)) {
      const gap = offsets[p]! - end;
      if (gap >= item.bytes && gap < bestGap) {
        best = end;
        bestGap = gap;
      }
      end = Math.max(end, offsets[p]! + items[p]!.bytes);
    }
    offsets[i] = best >= 0 ? best : end;
    total = Math.max(total, offsets[i]! + item.bytes);
    placed.add(i);
  }
  return { offsets, total };
}

/**
 * Instructions of one stretch of time: most scratch lives for a few, so that few stretches are to be looked through.
 */
const stretch = 64;

/** Items that have their places, found by the time in which they are alive. */
class PlacedItems {
  readonly #items: readonly Lifetime[];
  readonly #offsets: readonly number[];
  readonly #stretches: number[][] = [];
  /** When each item was placed; and the search in which it was last met. */
  readonly #turn: number[];
  readonly #met: number[];
  #turns = 0;
  #searches = 0;

  constructor(items: readonly Lifetime[], offsets: readonly number[]) {
    this.#items = items;
    this.#offsets = offsets;
    this.#turn = items.map(() => 0);
    this.#met = items.map(() => 0);
  }

  add(i: number): void {
    this.#turn[i] = ++this.#turns;
    const { first, last } = this.#items[i]!;
    for (let s = Math.floor(first / stretch); s <= Math.floor(last / stretch); s++) {
      this.#stretches[s] ??= [];
      this.#stretches[s]!.push(i);
    }
  }

  /** Those that are alive at some time of a lifetime, by offset, then in the order in which they were placed. */
  alongside({ first, last }: Lifetime): number[] {
    const search = ++this.#searches;
    const found: number[] = [];
    for (let s = Math.floor(first / stretch); s <= Math.floor(last / stretch); s++) {
      for (const p of this.#stretches[s] ?? []) {
        const other = this.#items[p]!;
        if (this.#met[p] === search || other.last < first || last < other.first) continue;
        this.#met[p] = search;
        found.push(p);
      }
    }
    return found.sort((a, b) => this.#offsets[a]! - this.#offsets[b]! || this.#turn[a]! - this.#turn[b]!);
  }
}
