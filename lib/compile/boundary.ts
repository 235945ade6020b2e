// What crosses between stages. Microbatches of different sizes may have other values that do: their tags tell them apart.
import type { Graph } from "../ir/graph.ts";
import type { BoundaryValue } from "../passes/actions.ts";
import type { Staged } from "../passes/stage.ts";

/** A microbatch graph of one size, sharded and staged. */
export interface MicroGraph {
  readonly graph: Graph;
  readonly staged: Staged;
  /** Tag of its first crossing; the others follow. */
  readonly firstTag: number;
}

function boundaryValues({ crossings }: Staged, firstTag: number): BoundaryValue[] {
  return crossings.map(({ from, to, segment, reader }, i) => ({
    value: firstTag + i,
    from,
    to,
    segment,
    needed: reader,
  }));
}

/** Gives tags to the crossings of every size; sizes with the same crossings share them. */
export function tagCrossings(sizes: ReadonlyMap<number, Omit<MicroGraph, "firstTag">>): Map<number, MicroGraph> {
  const known = new Map<string, number>();
  const out = new Map<number, MicroGraph>();
  let tags = 0;
  for (const [samples, { graph, staged }] of sizes) {
    const key = JSON.stringify(boundaryValues(staged, 0));
    const firstTag = known.get(key) ?? tags;
    if (!known.has(key)) tags += staged.crossings.length;
    known.set(key, firstTag);
    out.set(samples, { graph, staged, firstTag });
  }
  return out;
}

/** The crossings of all sizes, in the order of their tags. A microbatch transfers those of its own size only. */
export function boundaryOf(micro: ReadonlyMap<number, MicroGraph>): BoundaryValue[] {
  const out: BoundaryValue[] = [];
  for (const { staged, firstTag } of micro.values()) {
    if (firstTag === out.length) out.push(...boundaryValues(staged, firstTag));
  }
  return out;
}
