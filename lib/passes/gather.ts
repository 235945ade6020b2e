// Gathering: parameters that lie split over more axes than they are used with (ZeRO-3) are gathered where they are
// read.
import { dtypeSize } from "../core/dtype.ts";
import type { Graph, Node } from "../ir/graph.ts";
import { type ValueSpec, sameSpec } from "../ir/spec.ts";
import { GraphBuilder } from "./graph-builder.ts";

/** How long gathered parameters are kept: memory against communication. */
export type Regather = "segment" | "step";

/** What the pass needs to know beyond the graph. */
export interface GatherOptions {
  /** Spec of a parameter as it lies on the devices. */
  storedSpec(node: Node): ValueSpec;
  /** Spec with which a parameter is read. */
  usedSpec(node: Node): ValueSpec;
  /** Segment and stage of a node. */
  room(node: Pick<Node, "path" | "phase">): string;
  /** "segment": each segment gathers for itself, and forgets after use; "step": stages gather once a step. */
  readonly regather: Regather;
}

/**
 * Puts a reshard between a parameter and its readers, one for each room. A cast to a smaller dtype is done on the
 * shards, so that the smaller one is gathered. Updates read parameters as they lie.
 */
export function gatherParameters(graph: Graph, options: GatherOptions): Graph {
  const used = storedValues(graph, options);
  if (used.size === 0) return graph;
  const b = new GraphBuilder();
  const map = new Array<number>(graph.values.length);
  const gathered = new Map<string, number>();
  const gather = (value: number, node: Node): number => {
    const once = options.regather === "step" && node.phase !== "update";
    const phase = once ? "forward" : node.phase;
    const key = `${value} ${options.room({ path: node.path, phase })}`;
    const known = gathered.get(key);
    if (known !== undefined) return known;
    b.phase = phase;
    const { dims } = used.get(value)!;
    const made = b.emit("reshard", [map[value]!], once ? { dims, once } : { dims })[0]!;
    b.phase = node.phase;
    gathered.set(key, made);
    return made;
  };
  for (const node of graph.nodes) {
    b.path = node.path;
    b.phase = node.phase;
    const onShard = node.phase === "update" || used.has(node.outputs[0]!);
    const inputs = node.inputs.map((v) => (used.has(v) && !onShard ? gather(v, node) : map[v]!));
    const types = node.outputs.map((v) => graph.values[v]!.type);
    for (const [i, v] of b.append(node.op, inputs, node.params, types).entries()) map[node.outputs[i]!] = v;
  }
  for (const { name, value } of graph.outputs) b.graph.outputs.push({ name, value: map[value]! });
  return b.graph;
}

/** Parameters that are gathered for use, and their casts to smaller dtypes: the specs with which they are read. */
function storedValues(graph: Graph, options: GatherOptions): Map<number, ValueSpec> {
  const used = new Map<number, ValueSpec>();
  const bytes = (value: number): number => dtypeSize(graph.values[value]!.type.dtype);
  for (const node of graph.nodes) {
    const output = node.outputs[0]!;
    if (node.op === "parameter") {
      const spec = options.usedSpec(node);
      if (!sameSpec(spec, options.storedSpec(node))) used.set(output, spec);
    } else if (node.op === "cast" && node.phase !== "update") {
      const spec = used.get(node.inputs[0]!);
      if (spec && bytes(output) < bytes(node.inputs[0]!)) used.set(output, spec);
    }
  }
  return used;
}
