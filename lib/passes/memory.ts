// Memory planning: gives every virtual buffer of a program its place, so that the plan's bytes are the real bytes.
import { PlanError } from "../core/errors.ts";
import type { ProgramBuilder, VirtualBuffer } from "./lower.ts";

/** Offsets are multiples of this, in bytes: cache lines, and the widest vector. */
export const alignment = 64;

/** Where a buffer lies: a program region and a byte offset in it. */
export interface Location {
  /** 0 arena, 1 slot, 3 + k bound buffer k (docs/PROGRAM.md). */
  readonly region: number;
  readonly offset: number;
}

/** The plan of one program. */
export interface MemoryPlan {
  readonly locations: readonly Location[];
  readonly arenaBytes: number;
  /** The arena's parts: what lasts for the step, all slots, scratch of the largest segment. */
  readonly stepBytes: number;
  readonly slotBytes: number;
  readonly slots: number;
  readonly scratchBytes: number;
  /** Byte offset of a slot in the arena. */
  slotOffset(slot: number): number;
}

/** Rounds up to the alignment. */
export function align(bytes: number): number {
  return Math.ceil(bytes / alignment) * alignment;
}

/** Plans a program that keeps `slots` microbatches at once. Slots of several variants overlap. */
export function planMemory(program: ProgramBuilder, slots: number): MemoryPlan {
  const { buffers } = program;
  const locations: Location[] = buffers.map(() => ({ region: 0, offset: 0 }));
  let stepBytes = 0;
  const slotSizes = new Map<number, number>();
  const scratch = new Map<number, number[]>();
  buffers.forEach((buffer, index) => {
    const { home, uses, bytes, variant } = buffer;
    if (typeof home === "object") locations[index] = { region: 3 + home.bound, offset: 0 };
    else if (home === "step") {
      locations[index] = { region: 0, offset: stepBytes };
      stepBytes += align(bytes);
    } else if (home === "slot" || uses.size > 1) {
      const offset = slotSizes.get(variant) ?? 0;
      locations[index] = { region: 1, offset };
      slotSizes.set(variant, offset + align(bytes));
    } else {
      for (const segment of uses.keys()) scratch.set(segment, [...(scratch.get(segment) ?? []), index]);
    }
  });
  const slotBytes = Math.max(0, ...slotSizes.values());
  const scratchStart = stepBytes + slots * slotBytes;
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
    slots,
    scratchBytes,
    slotOffset: (slot) => stepBytes + slot * slotBytes,
  };
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
  const placed: number[] = []; // ascending offset
  let total = 0;
  for (const i of order) {
    const item = items[i]!;
    let best = -1;
    let bestGap = Number.POSITIVE_INFINITY;
    let end = 0;
    for (const p of placed) {
      const other = items[p]!;
      if (other.last < item.first || item.last < other.first) continue;
      const gap = offsets[p]! - end;
      if (gap >= item.bytes && gap < bestGap) {
        best = end;
        bestGap = gap;
      }
      end = Math.max(end, offsets[p]! + other.bytes);
    }
    offsets[i] = best >= 0 ? best : end;
    total = Math.max(total, offsets[i]! + item.bytes);
    const at = placed.findIndex((p) => offsets[p]! > offsets[i]!);
    placed.splice(at < 0 ? placed.length : at, 0, i);
  }
  return { offsets, total };
}
