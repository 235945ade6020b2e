// What sharding looks ahead for: specs that results want, and narrow sums that meet in a wide one.
import { dtypeSize } from "../core/dtype.ts";
import { consumers, type Graph, type Node } from "../ir/graph.ts";
import type { ValueSpec } from "../ir/spec.ts";
import { getOp } from "../ops/index.ts";
import type { ShardOptions } from "./shard.ts";

/** Specs that results want, carried backwards through ops that keep dims (so that leaves are made split). */
export function wantedSpecs(graph: Graph, options: ShardOptions): (ValueSpec | null)[] {
  const wanted: (ValueSpec | null)[] = graph.values.map(() => null);
  for (const { name, value } of graph.outputs) {
    wanted[value] ??= options.outputSpec(name) ?? options.wantedSpec?.(name) ?? null;
  }
  for (let n = graph.nodes.length - 1; n >= 0; n--) {
    const node = graph.nodes[n]!;
    const spec = node.outputs.length === 1 ? wanted[node.outputs[0]!] : null;
    if (!spec) continue;
    const shape = graph.values[node.outputs[0]!]!.type.shape;
    const record = getOp(node.op);
    if (record.sharding.linear !== "joint") continue;
    for (const v of node.inputs) {
      const type = graph.values[v]!.type;
      if (type.shape.length === shape.length && type.shape.every((d, i) => d === shape[i])) wanted[v] ??= spec;
    }
  }
  return wanted;
}

/**
 * Casts of products to a wider dtype that only a sum of such casts reads (the gradients of an operand of several
 * products, in bf16): where all of them are partial, one reduction of the wide sum does for all.
 */
export function castsIntoSums(graph: Graph): Set<Node> {
  const readers = consumers(graph);
  const bytes = (v: number): number => dtypeSize(graph.values[v]!.type.dtype);
  const sums = new Set<number>();
  graph.nodes.forEach((node, n) => {
    const [from, to] = [node.inputs[0]!, node.outputs[0]!];
    const makes = (v: number): boolean => sums.has(graph.values[v]!.node);
    const product = node.op === "cast" && graph.nodes[graph.values[from]!.node]!.op === "einsum";
    if ((product && bytes(to) > bytes(from)) || (node.op === "add" && node.inputs.every(makes))) sums.add(n);
  });
  const intoSum = (v: number): boolean => {
    return readers[v]!.length === 1 && readers[v]!.every((n) => sums.has(n) && graph.nodes[n]!.op === "add");
  };
  return new Set(graph.nodes.filter((node, n) => node.op === "cast" && sums.has(n) && intoSum(node.outputs[0]!)));
}
