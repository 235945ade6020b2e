// Fusion: chains of elementwise ops become one `fused` node, so that values between them never reach memory.
import type { Graph, Node, Value } from "../ir/graph.ts";
import { sameAxes } from "../ir/spec.ts";
import { elementOps } from "../ops/kernels.ts";
import type { ElementStep } from "../ops/expression.ts";
import { GraphBuilder } from "./graph-builder.ts";

/** Longest expression and most operands of one fused node. */
const maxSteps = 48;
const maxInputs = 24;

function isElementwise(node: Node): boolean {
  return (
    node.op === "cast" || (node.op in elementOps && node.op !== "const" && node.op !== "iota" && node.op !== "round_to")
  );
}

function sameSplit(a: Value, b: Value): boolean {
  const [sa, sb] = [a.spec!, b.spec!];
  return sa.dims.length === sb.dims.length && sa.dims.every((axes, d) => sameAxes(axes, sb.dims[d]!));
}

/**
 * Replaces each maximal group of elementwise nodes with one reader outside the group by a fused node. Nothing is fused
 * across phases, stages and segments, nor what each reader makes for itself.
 */
export function fuse(graph: Graph): Graph {
  const groupOf = groupNodes(graph);
  const members = new Map<number, number[]>();
  groupOf.forEach((root, n) => {
    if (root >= 0) members.set(root, [...(members.get(root) ?? []), n]);
  });
  const inlined = inlinedConstants(graph, groupOf, members);
  const b = new GraphBuilder();
  const map = new Array<number>(graph.values.length).fill(-1);
  graph.nodes.forEach((node, n) => {
    const root = groupOf[n]!;
    const group = root >= 0 ? members.get(root)! : [];
    if ((group.length > 1 && n !== root) || inlined.has(node.outputs[0]!)) return;
    b.like(node);
    if (root >= 0) emitFused(b, graph, group, map, inlined);
    else copyNode(b, graph, node, map);
  });
  for (const { name, value } of graph.outputs) b.graph.outputs.push({ name, value: map[value]! });
  return b.graph;
}

/**
 * Constants that only fused nodes read, which then hold them themselves; a group of constants alone keeps its operands.
 */
function inlinedConstants(
  graph: Graph,
  groupOf: readonly number[],
  members: ReadonlyMap<number, number[]>,
): Set<number> {
  const isConstant = (v: number): boolean => graph.nodes[graph.values[v]!.node]!.op === "constant";
  const found = new Set(graph.nodes.flatMap((node) => (node.op === "constant" ? node.outputs : [])));
  const pure = new Set<number>();
  for (const [root, group] of members) {
    const inside = new Set(group.flatMap((n) => graph.nodes[n]!.outputs));
    if (group.every((n) => graph.nodes[n]!.inputs.every((v) => inside.has(v) || isConstant(v)))) pure.add(root);
  }
  graph.nodes.forEach((node, n) => {
    if (groupOf[n]! < 0 || pure.has(groupOf[n]!)) for (const v of node.inputs) found.delete(v);
  });
  for (const { value } of graph.outputs) found.delete(value);
  return found;
}

/** For each node the last node of its group, itself when alone; -1 for nodes that are not elementwise. */
function groupNodes(graph: Graph): number[] {
  const readers: number[][] = graph.values.map(() => []);
  graph.nodes.forEach((node, n) => {
    for (const v of node.inputs) readers[v]!.push(n);
  });
  const kept = new Set(graph.outputs.map((o) => o.value));
  const groupOf = new Array<number>(graph.nodes.length).fill(-1);
  const steps = new Map<number, number>();
  const inputs = new Map<number, Set<number>>();
  for (let n = graph.nodes.length - 1; n >= 0; n--) {
    const node = graph.nodes[n]!;
    if (!isElementwise(node)) continue;
    const value = node.outputs[0]!;
    const root = kept.has(value) ? -1 : commonGroup(readers[value]!, groupOf);
    const joins = root >= 0 && fits(graph, node, root) && steps.get(root)! < maxSteps;
    const reads = joins ? new Set([...inputs.get(root)!].filter((v) => v !== value)) : new Set<number>();
    for (const v of node.inputs) reads.add(v);
    if (joins && reads.size <= maxInputs) {
      groupOf[n] = root;
      steps.set(root, steps.get(root)! + 1);
      inputs.set(root, reads);
    } else {
      groupOf[n] = n;
      steps.set(n, 1);
      inputs.set(n, new Set(node.inputs));
    }
  }
  return groupOf;
}

function commonGroup(readers: readonly number[], groupOf: readonly number[]): number {
  const first = readers[0];
  if (first === undefined) return -1;
  const group = groupOf[first]!;
  return readers.every((r) => groupOf[r] === group) ? group : -1;
}

function fits(graph: Graph, node: Node, root: number): boolean {
  const other = graph.nodes[root]!;
  return sameSplit(graph.values[node.outputs[0]!]!, graph.values[other.outputs[0]!]!) && sameRoom(node, other);
}

/** Nodes of a placed graph share a stage and segment; those of others a phase. */
function sameRoom(a: Node, b: Node): boolean {
  if (a.stage === undefined) return a.phase === b.phase;
  return a.stage >= 0 && a.stage === b.stage && a.segment === b.segment;
}

/** Copies a node of `graph`; `map` gives the copies of its values, and takes those of its results. */
export function copyNode(b: GraphBuilder, graph: Graph, node: Node, map: number[]): void {
  const outputs = b.append(
    node.op,
    node.inputs.map((v) => map[v]!),
    node.params,
    node.outputs.map((v) => graph.values[v]!.type),
  );
  node.outputs.forEach((v, i) => {
    map[v] = outputs[i]!;
    b.graph.values[outputs[i]!]!.spec = graph.values[v]!.spec!;
  });
}

/** Emits a group (ascending node numbers, the root last) as one node. */
function emitFused(
  b: GraphBuilder,
  graph: Graph,
  group: readonly number[],
  map: number[],
  inlined: ReadonlySet<number>,
): void {
  const root = graph.nodes[group.at(-1)!]!;
  const inside = new Set(group.flatMap((n) => graph.nodes[n]!.outputs));
  const inputs: number[] = [];
  const constants: number[] = [];
  for (const n of group) {
    for (const v of graph.nodes[n]!.inputs) {
      const list = inlined.has(v) ? constants : inputs;
      if (!inside.has(v) && !list.includes(v)) list.push(v);
    }
  }
  if (group.length === 1 && constants.length === 0) {
    copyNode(b, graph, root, map);
    return;
  }
  const numbers = new Map<number, number>();
  for (const [i, v] of inputs.entries()) numbers.set(v, i);
  const expression: ElementStep[] = constants.map((v, i) => {
    numbers.set(v, inputs.length + i);
    const { value, dtype } = graph.nodes[graph.values[v]!.node]!.params as {
      value: number;
      dtype: ElementStep["dtype"];
    };
    return { op: "constant", dtype, inputs: [], attrs: { value } };
  });
  for (const n of group) {
    const node = graph.nodes[n]!;
    const { dtype } = graph.values[node.outputs[0]!]!.type;
    expression.push({ op: node.op, dtype, inputs: node.inputs.map((v) => numbers.get(v)!), attrs: node.params });
    numbers.set(node.outputs[0]!, inputs.length + expression.length - 1);
  }
  const value = root.outputs[0]!;
  const made = b.append(
    "fused",
    inputs.map((v) => map[v]!),
    { expression, outputs: [numbers.get(value)!] },
    [graph.values[value]!.type],
  )[0]!;
  map[value] = made;
  b.graph.values[made]!.spec = graph.values[value]!.spec!;
}
