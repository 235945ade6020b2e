// A Builder that appends to a Graph: values are value ids. Passes add operations through it.
import { Builder } from "../ir/builder.ts";
import { type Graph, type Params, type Phase, type TensorType, newGraph } from "../ir/graph.ts";
import { getOp } from "../ops/index.ts";

/** Appends nodes to `graph`; new nodes take the builder's current path and phase. */
export class GraphBuilder extends Builder<number> {
  path = "";
  phase: Phase = "forward";
  readonly graph: Graph;

  constructor(graph: Graph = newGraph()) {
    super();
    this.graph = graph;
  }

  override type(value: number): TensorType {
    return this.graph.values[value]!.type;
  }

  override emit(op: string, inputs: readonly number[], params: Params = {}): number[] {
    const types = getOp(op).infer(
      inputs.map((v) => this.type(v)),
      params,
    );
    return this.append(op, inputs, params, types);
  }

  /** Appends a node whose result types are known. */
  append(op: string, inputs: readonly number[], params: Params, types: readonly TensorType[]): number[] {
    const { nodes, values } = this.graph;
    const outputs = types.map((type, index) => {
      values.push({ type, node: nodes.length, index });
      return values.length - 1;
    });
    nodes.push({ op, params, inputs: [...inputs], outputs, path: this.path, phase: this.phase });
    return outputs;
  }
}
