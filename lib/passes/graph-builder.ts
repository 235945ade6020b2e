// Appends nodes to a Graph: how passes write their result. Values are value ids.
import type { DType } from "../core/dtype.ts";
import { Builder } from "../ir/builder.ts";
import { type Graph, type Node, type Params, type Phase, type TensorType, newGraph } from "../ir/graph.ts";
import { getOp } from "../ops/index.ts";

/** Appends nodes to `graph`; new nodes take the builder's current path and phase. */
export class GraphBuilder {
  path = "";
  phase: Phase = "forward";
  /** Stage and segment of new nodes, once there are any. */
  placed: Pick<Node, "stage" | "segment"> = {};
  readonly graph: Graph;

  constructor(graph: Graph = newGraph()) {
    this.graph = graph;
  }

  type(value: number): TensorType {
    return this.graph.values[value]!.type;
  }

  emit(op: string, inputs: readonly number[], params: Params = {}): number[] {
    const types = getOp(op).infer(
      inputs.map((v) => this.type(v)),
      params,
    );
    return this.append(op, inputs, params, types);
  }

  /** Makes new nodes like this one: with its path, phase, stage and segment. */
  like({ path, phase, stage, segment }: Node): void {
    this.path = path;
    this.phase = phase;
    this.placed = { ...(stage === undefined ? {} : { stage }), ...(segment === undefined ? {} : { segment }) };
  }

  cast(value: number, dtype: DType): number {
    return this.type(value).dtype === dtype ? value : this.emit("cast", [value], { dtype })[0]!;
  }

  /** Appends a node whose result types are known. */
  append(op: string, inputs: readonly number[], params: Params, types: readonly TensorType[]): number[] {
    const { nodes, values } = this.graph;
    const outputs = types.map((type, index) => {
      values.push({ type, node: nodes.length, index });
      return values.length - 1;
    });
    nodes.push({ op, params, inputs: [...inputs], outputs, path: this.path, phase: this.phase, ...this.placed });
    return outputs;
  }
}

/** A value id as the Builder interface takes it, where a plain number means a constant. */
export interface GraphValue {
  readonly id: number;
}

/** The Builder interface over a GraphBuilder: for decompositions, which are written against it. */
export class GraphValueBuilder extends Builder<GraphValue> {
  readonly #target: GraphBuilder;

  constructor(target: GraphBuilder) {
    super();
    this.#target = target;
  }

  override type(value: GraphValue): TensorType {
    return this.#target.type(value.id);
  }

  override emit(op: string, inputs: readonly GraphValue[], params: Params = {}): GraphValue[] {
    const ids = inputs.map((v) => v.id);
    return this.#target.emit(op, ids, params).map((id) => ({ id }));
  }
}
