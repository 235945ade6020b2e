// Gradients of a parameter that is read twice, once as a table: the second is added to the first as soon as it is made,
// where the step has one microbatch, so that both need the memory of one.
import type { Graph, Node } from "../ir/graph.ts";
import { sameSpec } from "../ir/spec.ts";
import { GraphBuilder } from "../passes/graph-builder.ts";
import type { MicroGraph } from "./boundary.ts";

/** Cells that take another one's place in the closing graph, their sum, by that one's name. */
export type TiedCells = ReadonlyMap<string, string>;

/** The closing graph without the sums of cells that one segment makes, and the cells that are no more. */
export function tieCells(closing: Graph, { graph: micro }: MicroGraph): { graph: Graph; tied: TiedCells } {
  const { nodes, values } = closing;
  const readers = values.map(() => 0);
  for (const v of [...nodes.flatMap((n) => n.inputs), ...closing.outputs.map((o) => o.value)]) readers[v]!++;
  const tied = new Map<string, string>();
  const b = new GraphBuilder();
  const map: number[] = [];
  for (const node of nodes) {
    const pair = node.op === "add" ? node.inputs.map((v) => nodes[values[v]!.node]!) : [];
    const alone = node.inputs.every(
      (v) => readers[v] === 1 && sameSpec(values[v]!.spec!, values[node.outputs[0]!]!.spec!),
    );
    if (alone && pair.every((n) => n.op === "input") && madeTogether(micro, pair)) {
      const [kept, other] = pair.map(({ params }) => params.name as string) as [string, string];
      tied.set(other, kept);
      map[node.outputs[0]!] = map[node.inputs[0]!]!;
      continue;
    }
    b.like(node);
    const made = b.append(
      node.op,
      node.inputs.map((v) => map[v]!),
      node.params,
      node.outputs.map((v) => values[v]!.type),
    );
    node.outputs.forEach((v, i) => {
      map[v] = made[i]!;
      const { spec } = values[v]!;
      if (spec) b.graph.values[made[i]!]!.spec = spec;
    });
  }
  for (const { name, value } of closing.outputs) b.graph.outputs.push({ name, value: map[value]! });
  return { graph: b.graph, tied };
}

/** True for two cells that one segment of a stage makes, one of them by adding rows of a table up. */
function madeTogether({ nodes, values, outputs }: Graph, pair: readonly Node[]): boolean {
  const makers = pair.map(({ params }) => {
    const output = outputs.find(({ name }) => name === params.name);
    return output && nodes[values[output.value]!.node]!;
  });
  const [x, y] = makers;
  if (makers.length !== 2 || !x || !y || x === y) return false;
  return (
    x.stage! >= 0 && x.stage === y.stage && x.segment === y.segment && makers.some((m) => m!.op === "embedding_grad")
  );
}
