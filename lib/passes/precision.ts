// Precision: places the casts after differentiation. Contractions and attention compute in the compute type; norms,
// softmax, losses and reductions stay in float32; parameters and what the step returns keep their dtype.
import type { DType } from "../core/dtype.ts";
import type { Graph, Node } from "../ir/graph.ts";
import { GraphBuilder } from "./graph-builder.ts";

/** The compute type of a step. */
export type Precision = "f32" | "bf16" | "fp16";

/** Ops that run in the compute type: their f32 operands are cast to it, their f32 results cast back. */
const narrowOps = new Set([
  "einsum",
  "attention",
  "attention_grad",
  "expert_dispatch",
  "grouped_matmul",
  "grouped_matmul_grad",
  "expert_return",
]);

/** Returns the graph with casts for a precision. */
export function placeCasts(graph: Graph, precision: Precision): Graph {
  if (precision === "f32") return graph;
  const type = precision === "fp16" ? "f16" : "bf16";
  const b = new GraphBuilder();
  const map = new Array<number>(graph.values.length);
  const narrowed = new Map<string, number>();
  const narrow = (value: number, phase: string): number => {
    if (b.type(value).dtype !== "f32") return value;
    const key = `${value} ${phase === "weights" ? "backward" : phase}`;
    const known = narrowed.get(key) ?? uncast(b, value, type) ?? b.cast(value, type);
    narrowed.set(key, known);
    return known;
  };
  for (const node of graph.nodes) {
    b.path = node.path;
    b.phase = node.phase;
    const inputs = node.inputs.map((v) => map[v]!);
    const isNarrow = narrowOps.has(node.op) && node.outputs.some((v) => graph.values[v]!.type.dtype === "f32");
    const outputs = b.emit(
      node.op,
      isNarrow ? narrowInputs(node, inputs, (v) => narrow(v, node.phase), b) : inputs,
      node.params,
    );
    node.outputs.forEach((v, i) => {
      map[v] = isNarrow ? b.cast(outputs[i]!, graph.values[v]!.type.dtype) : outputs[i]!;
    });
  }
  for (const { name, value } of graph.outputs) b.graph.outputs.push({ name, value: map[value]! });
  return b.graph;
}

/** The value of the compute type that a value was cast from. */
function uncast({ graph }: GraphBuilder, value: number, type: DType): number | undefined {
  const node = graph.nodes[graph.values[value]!.node]!;
  const from = node.op === "cast" ? node.inputs[0]! : undefined;
  return from !== undefined && graph.values[from]!.type.dtype === type ? from : undefined;
}

/** The log-sum-exp that attention keeps is float32 in every precision. */
function narrowInputs(node: Node, inputs: readonly number[], narrow: (v: number) => number, b: GraphBuilder): number[] {
  return inputs.map((v, i) => (node.op === "attention_grad" && i === 4 ? b.cast(v, "f32") : narrow(v)));
}
