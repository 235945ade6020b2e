// Minimum vertex cuts: the cheapest set of vertices that separates sources from sinks (Dinic's algorithm).

interface Edge {
  readonly to: number;
  readonly back: number;
  capacity: number;
}

/** A directed graph whose vertices have capacities; edges have none. */
export class CutGraph {
  readonly #edges: Edge[][] = [[], []];
  readonly #source = 0;
  readonly #sink = 1;

  /** Adds a vertex and returns its number. Infinity: it is never cut. */
  vertex(capacity: number): number {
    const inside = this.#edges.push([], []) - 2;
    this.#link(inside, inside + 1, capacity);
    return inside;
  }

  edge(from: number, to: number): void {
    this.#link(from + 1, to, Number.POSITIVE_INFINITY);
  }

  /** Marks a vertex that must be on the sources' side, so that it may be cut itself. */
  source(vertex: number): void {
    this.#link(this.#source, vertex, Number.POSITIVE_INFINITY);
  }

  sink(vertex: number): void {
    this.#link(vertex + 1, this.#sink, Number.POSITIVE_INFINITY);
  }

  /**
   * The vertices of the cheapest cut, of those the one nearest to the sinks. There must be one: every path from a
   * source to a sink has a vertex of finite capacity.
   */
  cut(): Set<number> {
    for (let levels = this.#levels(); levels[this.#sink]! >= 0; levels = this.#levels()) this.#block(levels);
    const behind = this.#reachesSink();
    const out = new Set<number>();
    for (let v = 2; v < this.#edges.length; v += 2) if (!behind[v] && behind[v + 1]) out.add(v);
    return out;
  }

  #link(from: number, to: number, capacity: number): void {
    this.#edges[from]!.push({ to, back: this.#edges[to]!.length, capacity });
    this.#edges[to]!.push({ to: from, back: this.#edges[from]!.length - 1, capacity: 0 });
  }

  /** Distances from the source along edges with room; -1 where there is no way. */
  #levels(): number[] {
    const levels = this.#edges.map(() => -1);
    levels[this.#source] = 0;
    const queue = [this.#source];
    for (const at of queue) {
      for (const { to, capacity } of this.#edges[at]!) {
        if (capacity <= 0 || levels[to]! >= 0) continue;
        levels[to] = levels[at]! + 1;
        queue.push(to);
      }
    }
    return levels;
  }

  /** Pushes flow along shortest ways until each is full: depth first, by a stack, since ways may be long. */
  #block(levels: readonly number[]): void {
    const next = this.#edges.map(() => 0);
    const path: Edge[] = [];
    for (let at = this.#source; ; ) {
      if (at === this.#sink) {
        const flow = path.reduce((least, e) => Math.min(least, e.capacity), Number.POSITIVE_INFINITY);
        for (const edge of path) {
          edge.capacity -= flow;
          this.#edges[edge.to]![edge.back]!.capacity += flow;
        }
        path.length = 0;
        at = this.#source;
        continue;
      }
      const edges = this.#edges[at]!;
      const edge = edges[next[at]!];
      if (edge === undefined) {
        const last = path.pop();
        if (last === undefined) return;
        at = this.#edges[last.to]![last.back]!.to;
        next[at]!++;
      } else if (edge.capacity > 0 && levels[edge.to] === levels[at]! + 1) {
        path.push(edge);
        at = edge.to;
      } else next[at]!++;
    }
  }

  /** From which vertices the sink can be reached along edges with room. */
  #reachesSink(): boolean[] {
    const reaches = this.#edges.map(() => false);
    reaches[this.#sink] = true;
    const queue = [this.#sink];
    for (const at of queue) {
      for (const { to, back } of this.#edges[at]!) {
        if (reaches[to] || this.#edges[to]![back]!.capacity <= 0) continue;
        reaches[to] = true;
        queue.push(to);
      }
    }
    return reaches;
  }
}
