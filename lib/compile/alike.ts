// Microbatches of different sizes have graphs of their own, but add their results up in the same cells: so the results
// of all sizes must lie alike. Sharding may not give that by itself (a dim of one sample is not summed, sizes decide
// whose wish wins).
import { PlanError } from "../core/errors.ts";
import { sameShape } from "../core/shape.ts";
import type { Graph, Value } from "../ir/graph.ts";
import { typeText } from "../ir/print.ts";
import { axisName, sameSpec, type ValueSpec } from "../ir/spec.ts";

/** Specs that results are brought to, by name. */
export type FixedSpecs = ReadonlyMap<string, ValueSpec>;

function result(graph: Graph, name: string): Value {
  const output = graph.outputs.find((o) => o.name === name);
  if (output === undefined) throw new PlanError(`microbatches of some sizes have a result "${name}", others have not`);
  return graph.values[output.value]!;
}

/** Throws PlanError for a result whose type depends on the microbatch's size. */
function checkTypes(graphs: ReadonlyMap<number, Graph>): void {
  const [[samples, first], ...rest] = [...graphs] as [[number, Graph], ...[number, Graph][]];
  for (const [n, graph] of rest) {
    if (graph.outputs.length !== first.outputs.length) {
      throw new PlanError(`microbatches of ${samples} and of ${n} samples have different results`);
    }
    for (const { name, value } of first.outputs) {
      const [a, b] = [first.values[value]!.type, result(graph, name).type];
      if (a.dtype === b.dtype && sameShape(a.shape, b.shape)) continue;
      throw new PlanError(
        `result "${name}" is ${typeText(a)} in a microbatch of ${samples} samples and ${typeText(b)} in one of ${n}`,
      );
    }
  }
}

/**
 * Compiles the graph of every size; where specs of a result differ, or turn with the microbatch, all sizes are compiled
 * again with that result summed and split as the first size splits it.
 */
export function alikeGraphs(
  sizes: readonly number[],
  compile: (samples: number, fixed: FixedSpecs) => Graph,
): Map<number, Graph> {
  const all = (fixed: FixedSpecs): Map<number, Graph> => new Map(sizes.map((n) => [n, compile(n, fixed)]));
  const graphs = all(new Map());
  checkTypes(graphs);
  const fixed = new Map<string, ValueSpec>();
  const first = graphs.get(sizes[0]!)!;
  for (const { name, value } of first.outputs) {
    const spec = first.values[value]!.spec!;
    const turns = spec.dims.flat().some((axis) => axis !== axisName(axis));
    const alike = [...graphs.values()].every((graph) => sameSpec(result(graph, name).spec!, spec));
    if (turns || !alike) fixed.set(name, { dims: spec.dims.map((axes) => axes.map(axisName)), partial: {} });
  }
  return fixed.size === 0 ? graphs : all(fixed);
}
