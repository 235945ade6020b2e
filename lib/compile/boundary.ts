// What crosses between stages. Microbatches of different sizes may have other values that do: their tags tell them
// apart.
import type { Graph } from "../ir/graph.ts";
import type { BoundaryValue } from "../passes/actions.ts";
import { type Crossing, crossingsOf } from "../passes/stage.ts";

/** A microbatch graph of one size, sharded and placed on stages. */
export interface MicroGraph {
  readonly graph: Graph;
  readonly crossings: readonly Crossing[];
  /** Tag of its first crossing; the others follow. */
  readonly firstTag: number;
}

function boundaryValues(crossings: readonly Crossing[], firstTag: number): BoundaryValue[] {
  return crossings.map(({ from, to, segment, reader }, i) => ({
    value: firstTag + i,
    from,
    to,
    segment,
    needed: reader,
  }));
}

/** Finds the crossings of every size and gives them tags; sizes with the same crossings share them. */
export function tagCrossings(sizes: ReadonlyMap<number, Graph>): Map<number, MicroGraph> {
  const known = new Map<string, number>();
  const out = new Map<number, MicroGraph>();
  let tags = 0;
  for (const [samples, graph] of sizes) {
    const crossings = crossingsOf(graph);
    const key = JSON.stringify(boundaryValues(crossings, 0));
    const firstTag = known.get(key) ?? tags;
    if (!known.has(key)) tags += crossings.length;
    known.set(key, firstTag);
    out.set(samples, { graph, crossings, firstTag });
  }
  return out;
}

/** The crossings of all sizes, in the order of their tags. A microbatch transfers those of its own size only. */
export function boundaryOf(micro: ReadonlyMap<number, MicroGraph>): BoundaryValue[] {
  const out: BoundaryValue[] = [];
  for (const { crossings, firstTag } of micro.values()) {
    if (firstTag === out.length) out.push(...boundaryValues(crossings, firstTag));
  }
  return out;
}
