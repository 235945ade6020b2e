// Runs a Graph through the reference evaluator.
import { ProgramError } from "../../lib/core/errors.ts";
import type { Graph, Node } from "../../lib/ir/graph.ts";
import { verify } from "../../lib/ir/verify.ts";
import { getOp } from "../../lib/ops/index.ts";
import type { Dense } from "./dense.ts";
import { evaluateOp } from "./reference.ts";

/** Values of `input` nodes by name and of `parameter` nodes by id. */
export type Feeds = ReadonlyMap<string, Dense>;

function fed(node: Node, feeds: Feeds): Dense {
  const name = (node.op === "input" ? node.params.name : node.params.id) as string;
  const value = feeds.get(name);
  if (value === undefined) throw new ProgramError(`no value for ${node.op} ${name}`);
  return value;
}

/** The graph's outputs, by name. */
export function evaluate(graph: Graph, feeds: Feeds): Map<string, Dense> {
  verify(graph, getOp);
  const values = new Array<Dense>(graph.values.length);
  for (const node of graph.nodes) {
    const types = node.outputs.map((id) => graph.values[id]!.type);
    const results =
      node.op === "input" || node.op === "parameter"
        ? [fed(node, feeds)]
        : evaluateOp(
            node.op,
            node.inputs.map((id) => values[id]!),
            types,
            node.params,
          );
    node.outputs.forEach((id, i) => {
      values[id] = results[i]!;
    });
  }
  return new Map(graph.outputs.map(({ name, value }) => [name, values[value]!]));
}
