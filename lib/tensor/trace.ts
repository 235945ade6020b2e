// The object graph that tensors are made of while a function is traced, and its flattening to a Graph.
import { ProgramError, ShapeError } from "../core/errors.ts";
import { maxRank } from "../core/shape.ts";
import { Builder } from "../ir/builder.ts";
import { type Graph, newGraph, type Params, type Phase, type TensorType } from "../ir/graph.ts";
import { typeText } from "../ir/print.ts";
import { getOp } from "../ops/index.ts";

let created = 0;

/** One operation of the object graph. */
export class SymNode {
  readonly op: string;
  readonly params: Params;
  /** What it reads. Emptied once its values exist elsewhere, so that what came before can be freed. */
  inputs: readonly Sym[];
  readonly outputs: readonly Sym[];
  /** Path of the module that made it; "" while outside any. */
  path: string;
  phase: Phase;
  /** Creation order in this process: greater than that of every node it reads. */
  readonly seq: number;

  constructor(
    op: string,
    params: Params,
    inputs: readonly Sym[],
    types: readonly TensorType[],
    path: string,
    phase: Phase,
  ) {
    this.op = op;
    this.params = params;
    this.inputs = inputs;
    this.outputs = types.map((type, index) => ({ node: this, index, type }));
    this.path = path;
    this.phase = phase;
    this.seq = created++;
  }
}

/** Nodes made from now on have this creation number or a greater one. */
export function nextSeq(): number {
  return created;
}

/** A value of the object graph: an output of a node. There is one object per value, so that `===` compares values. */
export interface Sym {
  readonly node: SymNode;
  readonly index: number;
  readonly type: TensorType;
}

/** Every node that the given values depend on, in creation order (which is a topological order). */
export function reachable(from: readonly Sym[]): SymNode[] {
  const seen = new Set<SymNode>();
  const stack = from.map((sym) => sym.node);
  for (let node = stack.pop(); node !== undefined; node = stack.pop()) {
    if (seen.has(node)) continue;
    seen.add(node);
    for (const input of node.inputs) if (!seen.has(input.node)) stack.push(input.node);
  }
  return [...seen].sort((a, b) => a.seq - b.seq);
}

/** A value to be computed, by name. */
export interface NamedSym {
  readonly name: string;
  readonly sym: Sym;
}

/** Builds the object graph. New nodes get the current `path` and `phase`. */
export class SymBuilder extends Builder<Sym> {
  path = "";
  phase: Phase = "forward";

  override emit(op: string, inputs: readonly Sym[], params: Params = {}): Sym[] {
    const types = getOp(op).infer(
      inputs.map((sym) => sym.type),
      params,
    );
    for (const type of types) {
      if (type.shape.length > maxRank) {
        throw new ShapeError(
          `${op}: its result ${typeText(type)} has ${type.shape.length} dims; ${maxRank} are the most`,
        );
      }
    }
    return [...new SymNode(op, params, [...inputs], types, this.path, this.phase).outputs];
  }

  override type(value: Sym): TensorType {
    return value.type;
  }

  /** What the outputs depend on, as a Graph whose nodes are in creation order. */
  flatten(outputs: readonly NamedSym[]): Graph {
    return flatten(outputs);
  }
}

/** What the outputs depend on, as a Graph whose nodes are in creation order. */
export function flatten(outputs: readonly NamedSym[]): Graph {
  const graph = newGraph();
  const ids = new Map<Sym, number>();
  const idOf = (sym: Sym): number => {
    const id = ids.get(sym);
    if (id === undefined) throw new ProgramError(`a value of ${sym.node.op} is read before it is made`);
    return id;
  };
  for (const { op, params, inputs, outputs: results, path, phase } of reachable(outputs.map(({ sym }) => sym))) {
    const read = inputs.map(idOf);
    const made = results.map((sym, index) => {
      const id = graph.values.length;
      ids.set(sym, id);
      graph.values.push({ type: sym.type, node: graph.nodes.length, index });
      return id;
    });
    graph.nodes.push({ op, params, inputs: read, outputs: made, path, phase });
  }
  for (const { name, sym } of outputs) graph.outputs.push({ name, value: idOf(sym) });
  return graph;
}
