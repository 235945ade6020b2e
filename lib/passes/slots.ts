// Slots: the memory of one microbatch on one stage, in pools by how long it is needed.
import type { Segment } from "../ir/graph.ts";

/**
 * Pools of slots, in the order of their regions in programs: what is needed from the forward to the backward, from the
 * forward to the gradients of weights, and from the backward to those. Without a W segment there is only the first.
 */
export const pools = ["FB", "FW", "BW"] as const;

/** A pool of slots of one stage. */
export type Pool = (typeof pools)[number];

/** The slots that a microbatch has on a stage at a moment, by pool. */
export type Slots = Readonly<Partial<Record<Pool, number>>>;

/** How many slots each pool of a stage has. */
export type SlotCounts = Readonly<Record<Pool, number>>;

/** The pools that a segment, or a transfer of what it made or needs, may touch. */
export function poolsOf(segment: Segment, splitsWeights: boolean): readonly Pool[] {
  if (!splitsWeights) return ["FB"];
  return { F: ["FB", "FW"] as const, B: pools, W: ["FW", "BW"] as const }[segment];
}

/** The pool of memory that these segments touch. */
export function poolFor(segments: ReadonlySet<Segment>): Pool {
  if (!segments.has("W")) return "FB";
  return segments.has("F") ? "FW" : "BW";
}

/** Something that touches a microbatch's slots on a stage. */
export interface SlotTouch {
  readonly stage: number;
  readonly microbatch: number;
  readonly slots: Slots;
}

/** Tells the slots of one microbatch on one stage in one pool from all others. */
export function slotKey({ stage, microbatch }: Omit<SlotTouch, "slots">, pool: Pool): string {
  return `${stage} ${microbatch} ${pool}`;
}

/** Index of the last touch of each microbatch's slot. */
export function lastTouches(touches: readonly SlotTouch[]): Map<string, number> {
  return new Map(touches.flatMap((t, i) => poolsIn(t.slots).map((pool) => [slotKey(t, pool), i] as const)));
}

/** The pools in which slots are held. */
export function poolsIn(slots: Slots): Pool[] {
  return pools.filter((pool) => slots[pool] !== undefined);
}

/** Per stage and pool, how many slots the lists use. */
export function slotsUsed(lists: readonly (readonly SlotTouch[])[]): SlotCounts[] {
  const used: Record<Pool, number>[] = [];
  for (const { stage, slots } of lists.flat()) {
    const counts = used[stage] ?? { FB: 0, FW: 0, BW: 0 };
    for (const pool of poolsIn(slots)) counts[pool] = Math.max(counts[pool], slots[pool]! + 1);
    used[stage] = counts;
  }
  return used;
}
