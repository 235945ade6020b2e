// The Graph: plain cloneable data that every pass reads and writes. Values are numbered, nodes are in execution order.
import type { DType } from "../core/dtype.ts";
import type { Shape } from "../core/shape.ts";
import type { ValueSpec } from "./spec.ts";

/** Dtype and (global, logical) shape of a value. */
export interface TensorType {
  readonly dtype: DType;
  readonly shape: Shape;
}

/** Typed parameters of a node: plain data, no closures. */
export type Params = Readonly<Record<string, unknown>>;

/**
 * Which part of a training step a node belongs to. "weights": the part of the backward that leads to parameters'
 * gradients only, to no activation's.
 */
export type Phase = "forward" | "backward" | "weights" | "update";

/** A part of a pipeline stage's work: forward, backward (for inputs), backward for weights. */
export type Segment = "F" | "B" | "W";

/** One operation. */
export interface Node {
  readonly op: string;
  readonly params: Params;
  /** Ids of the values it reads. */
  readonly inputs: readonly number[];
  /** Ids of the values it makes. */
  readonly outputs: readonly number[];
  /** Path of the module it was made in ("" outside any); gradient nodes inherit that of the node they differentiate. */
  readonly path: string;
  readonly phase: Phase;
  /** Pipeline stage that runs it; -1: each that reads it. Set by the stage pass, as is `segment`. */
  readonly stage?: number;
  readonly segment?: Segment;
}

/** One value. */
export interface Value {
  readonly type: TensorType;
  /** Index of the node that makes it, and which of its outputs it is. */
  readonly node: number;
  readonly index: number;
  /** How it is split over the mesh; set by the shard pass. */
  spec?: ValueSpec;
}

/** A result of a graph. */
export interface Output {
  readonly name: string;
  readonly value: number;
}

/** A computation: nodes in an order in which each follows what it reads. */
export interface Graph {
  readonly nodes: Node[];
  readonly values: Value[];
  readonly outputs: Output[];
}

/** An empty graph. */
export function newGraph(): Graph {
  return { nodes: [], values: [], outputs: [] };
}

/** Types of a graph's results, by name. */
export function outputTypes({ outputs, values }: Graph): Map<string, TensorType> {
  return new Map(outputs.map(({ name, value }) => [name, values[value]!.type]));
}

/** The node that makes a value. */
export function producer(graph: Graph, value: number): Node {
  return graph.nodes[graph.values[value]!.node]!;
}

/** For each value, the indices of the nodes that read it, ascending. */
export function consumers(graph: Graph): number[][] {
  const out: number[][] = graph.values.map(() => []);
  graph.nodes.forEach((node, n) => {
    for (const v of new Set(node.inputs)) out[v]!.push(n);
  });
  return out;
}
