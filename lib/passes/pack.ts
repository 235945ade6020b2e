// Packing: places for things that are alive for a while, such that those alive together do not overlap.

/** Bytes that are needed from a first to a last moment; both count. */
export interface Lifetime {
  readonly bytes: number;
  readonly first: number;
  readonly last: number;
}

/** The most bytes alive at one moment: what no packing can be below. */
export function mostAlive(items: readonly Lifetime[]): number {
  const changes = items.flatMap(({ bytes, first, last }) => [[first, bytes] as const, [last + 1, -bytes] as const]);
  changes.sort(([a, x], [b, y]) => a - b || x - y);
  let alive = 0;
  let most = 0;
  for (const [, bytes] of changes) {
    alive += bytes;
    most = Math.max(most, alive);
  }
  return most;
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
