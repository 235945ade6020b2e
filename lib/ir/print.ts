// Readable text of types, params and graphs, for errors and debugging.
import { shapeText } from "../core/shape.ts";
import type { Graph, Node, Params, TensorType } from "./graph.ts";
import { specText } from "./spec.ts";

/** Text of a type: `f32[2, 3]`. */
export function typeText(type: TensorType): string {
  return `${type.dtype}${shapeText(type.shape)}`;
}

function paramText(value: unknown): string {
  if (typeof value === "string") return value;
  if (Array.isArray(value)) return `[${value.map(paramText).join(", ")}]`;
  if (typeof value === "object" && value !== null) return paramsText(value as Params);
  return String(value);
}

/** Text of params: `{dim: 0, start: 1}`. */
export function paramsText(params: Params): string {
  return `{${Object.entries(params)
    .map(([name, value]) => `${name}: ${paramText(value)}`)
    .join(", ")}}`;
}

/** One line: `%3: f32[2, 4] [dp, -] = einsum(%1, %2) {equation: m k, k n -> m n}  # h.0.attn forward`. */
export function nodeText(graph: Graph, node: Node): string {
  const results = node.outputs.map((id) => {
    const value = graph.values[id];
    if (value === undefined) return `%${id}: ?`;
    return `%${id}: ${typeText(value.type)}${value.spec === undefined ? "" : ` ${specText(value.spec)}`}`;
  });
  const call = `${node.op}(${node.inputs.map((id) => `%${id}`).join(", ")})`;
  const params = Object.keys(node.params).length === 0 ? "" : ` ${paramsText(node.params)}`;
  return `${results.join(", ")} = ${call}${params}  # ${node.path === "" ? "" : `${node.path} `}${node.phase}`;
}

/** Text of a graph: one line a node, then its outputs. */
export function graphText(graph: Graph): string {
  const lines = graph.nodes.map((node) => nodeText(graph, node));
  const outputs = graph.outputs.map(({ name, value }) => `${name} = %${value}`);
  return [...lines, `return ${outputs.join(", ")}`].join("\n");
}
