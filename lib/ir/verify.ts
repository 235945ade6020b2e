// Checks what passes promise of a Graph: ids that agree, an order that can be executed, types that the records infer.
import { MeshworkError, ProgramError } from "../core/errors.ts";
import { sameShape } from "../core/shape.ts";
import type { Graph, Node } from "./graph.ts";
import type { OpRecord } from "./op.ts";
import { nodeText, typeText } from "./print.ts";

function fail(graph: Graph, index: number, problem: string, cause?: unknown): never {
  const node = graph.nodes[index]!;
  const details = { node: index, op: node.op, path: node.path };
  throw new ProgramError(`node ${index}, ${nodeText(graph, node)}: ${problem}`, { details, cause });
}

/** Every value names the node that makes it, and that node names the value. */
function verifyValues(graph: Graph): void {
  graph.values.forEach((value, id) => {
    if (graph.nodes[value.node]?.outputs[value.index] !== id) {
      throw new ProgramError(
        `value %${id} says it is result ${value.index} of node ${value.node}, which does not make it`,
      );
    }
  });
  graph.nodes.forEach((node, n) => {
    node.outputs.forEach((id, i) => {
      const value = graph.values[id];
      if (value === undefined) fail(graph, n, `its result ${i}, %${id}, is not a value`);
      if (value.node !== n || value.index !== i)
        fail(graph, n, `its result ${i}, %${id}, belongs to node ${value.node}`);
    });
  });
}

function verifyTypes(graph: Graph, n: number, node: Node, record: OpRecord): void {
  const inputs = node.inputs.map((id) => graph.values[id]!.type);
  let types: ReturnType<OpRecord["infer"]>;
  try {
    types = record.infer(inputs, node.params);
  } catch (error) {
    if (!(error instanceof MeshworkError)) throw error;
    fail(graph, n, error.message, error);
  }
  if (types.length !== node.outputs.length)
    fail(graph, n, `it has ${node.outputs.length} results, not ${types.length}`);
  types.forEach((type, i) => {
    const found = graph.values[node.outputs[i]!]!.type;
    if (type.dtype !== found.dtype || !sameShape(type.shape, found.shape)) {
      fail(graph, n, `its result ${i} should be ${typeText(type)}`);
    }
  });
}

function verifySpecs(graph: Graph): void {
  graph.values.forEach((value, id) => {
    if (value.spec !== undefined && value.spec.dims.length !== value.type.shape.length) {
      fail(graph, value.node, `the spec of %${id} has ${value.spec.dims.length} dims`);
    }
  });
}

/**
 * Throws ProgramError, naming the node and its path, unless the graph is sound: ids agree, each node follows what it
 * reads, ops are known to `lookup` (which throws for others), types are those that the records infer, specs have their
 * values' ranks, and outputs exist.
 */
export function verify(graph: Graph, lookup: (op: string) => OpRecord): void {
  verifyValues(graph);
  graph.nodes.forEach((node, n) => {
    for (const id of node.inputs) {
      const value = graph.values[id];
      if (value === undefined) fail(graph, n, `it reads %${id}, which is not a value`);
      if (value.node >= n) fail(graph, n, `it reads %${id}, which node ${value.node} makes only later`);
    }
    let record: OpRecord;
    try {
      record = lookup(node.op);
    } catch (error) {
      if (!(error instanceof MeshworkError)) throw error;
      fail(graph, n, error.message, error);
    }
    verifyTypes(graph, n, node, record);
  });
  verifySpecs(graph);
  for (const { name, value } of graph.outputs) {
    if (graph.values[value] === undefined) throw new ProgramError(`output ${name} is %${value}, which is not a value`);
  }
}
