// Packing: places for things that are alive for a while, such that those alive together do not overlap.

/** Bytes that are needed from a first to a last moment; both count. */
export interface Lifetime {
  readonly bytes: number;
  readonly first: number;
  readonly last: number;
}

/** The moment at which most bytes are alive, and how many. */
function fullest(items: readonly Lifetime[]): { readonly at: number; readonly bytes: number } {
  const changes = items.flatMap(({ bytes, first, last }) => [[first, bytes] as const, [last + 1, -bytes] as const]);
  changes.sort(([a, x], [b, y]) => a - b || x - y);
  let alive = 0;
  let most = { at: 0, bytes: 0 };
  for (const [at, bytes] of changes) {
    alive += bytes;
    if (alive > most.bytes) most = { at, bytes: alive };
  }
  return most;
}

/** The most bytes alive at one moment: what no packing can be below. */
export function mostAlive(items: readonly Lifetime[]): number {
  return fullest(items).bytes;
}

/** Places for things, and the bytes of all. */
export interface Packing {
  readonly offsets: number[];
  readonly total: number;
}

/** A packing that takes more than this share of what is alive at most is not the last one tried. */
const goodEnough = 1.005;

/**
 * Offsets for intervals in time such that those alive together do not overlap: one by one, best fit, in some order.
 * That of size is tried first, then others that begin with what is alive at the fullest moment; the best is taken.
 */
export function packLifetimes(items: readonly Lifetime[]): Packing {
  const { at, bytes } = fullest(items);
  const fits = ({ total }: Packing): boolean => total <= goodEnough * bytes;
  const bySize = (a: Lifetime, b: Lifetime): number => b.bytes - a.bytes || a.first - b.first;
  const then = (atFullest: (a: Lifetime, b: Lifetime) => number) => {
    const alive = ({ first, last }: Lifetime): boolean => first <= at && at <= last;
    return (a: Lifetime, b: Lifetime): number =>
      Number(alive(b)) - Number(alive(a)) || (alive(a) && atFullest(a, b)) || bySize(a, b);
  };
  let best = packInOrder(items, bySize);
  for (const order of [then((a, b) => a.first - b.first), then((a, b) => b.last - a.last)]) {
    if (fits(best)) break;
    const other = packInOrder(items, order);
    if (other.total < best.total) best = other;
  }
  return best;
}

function packInOrder(items: readonly Lifetime[], before: (a: Lifetime, b: Lifetime) => number): Packing {
  const offsets = new Array<number>(items.length).fill(0);
  const order = items.map((_, i) => i).sort((a, b) => before(items[a]!, items[b]!));
  const placed = new PlacedItems(items, offsets);
  let total = 0;
  for (const i of order) {
    const { bytes, first, last } = items[i]!;
    let best = -1;
    let bestGap = Number.POSITIVE_INFINITY;
    let end = 0;
    for (const p of placed.near(items[i]!)) {
      const other = items[p]!;
      if (other.last < first || last < other.first) continue;
      const gap = offsets[p]! - end;
      if (gap >= bytes && gap < bestGap) {
        best = end;
        bestGap = gap;
      }
      end = Math.max(end, offsets[p]! + other.bytes);
    }
    offsets[i] = best >= 0 ? best : end;
    total = Math.max(total, offsets[i]! + bytes);
    placed.add(i);
  }
  return { offsets, total };
}

/** Moments of one stretch of time: most scratch lives for a few, so that what else lives then is found in one. */
const stretch = 64;

/** Items that have their places, by offset: all of them, and those alive in each stretch of time. */
class PlacedItems {
  readonly #items: readonly Lifetime[];
  readonly #offsets: readonly number[];
  readonly #all: number[] = [];
  readonly #stretches: number[][] = [];

  constructor(items: readonly Lifetime[], offsets: readonly number[]) {
    this.#items = items;
    this.#offsets = offsets;
  }

  add(i: number): void {
    const { first, last } = this.#items[i]!;
    this.#insert(this.#all, i);
    for (let s = Math.floor(first / stretch); s <= Math.floor(last / stretch); s++) {
      this.#stretches[s] ??= [];
      this.#insert(this.#stretches[s]!, i);
    }
  }

  #insert(list: number[], i: number): void {
    const offset = this.#offsets[i]!;
    let [low, high] = [0, list.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#offsets[list[middle]!]! <= offset) low = middle + 1;
      else high = middle;
    }
    list.splice(low, 0, i);
  }

  /** All that are alive at some time of a lifetime, and others, by offset. */
  near({ first, last }: Lifetime): readonly number[] {
    const s = Math.floor(first / stretch);
    return s === Math.floor(last / stretch) ? (this.#stretches[s] ?? []) : this.#all;
  }
}
