// Epilogues: what follows a matrix product element by element (bias, activation, residual, cast) becomes part of it, so
// that it is done while the product's tile is in the cache.
import { type DType, isFloat } from "../core/dtype.ts";
import { consumers, type Graph, type Node } from "../ir/graph.ts";
import { type EinsumParams, type Finish, parseEquation, resultGroups } from "../ops/contraction.ts";
import type { ElementStep } from "../ops/expression.ts";
import type { FusedParams } from "../ops/elementwise.ts";
import { copyNode } from "./fuse.ts";
import { GraphBuilder } from "./graph-builder.ts";

/** A product and the node that finishes it; `operands`: the values of the bias and the residual, as far as given. */
interface Finished {
  readonly product: number;
  readonly finish: Finish;
  readonly operands: readonly number[];
}

/**
 * Returns the graph with products that finish their results, to the same bits as if they did not: a product whose own
 * result is rounded (to bfloat16) stays as it is. After `fuse`, whose expressions it reads.
 */
export function fuseEpilogues(graph: Graph): Graph {
  const readers = consumers(graph);
  const kept = new Set(graph.outputs.map((o) => o.value));
  const alone = (value: number): boolean => !kept.has(value) && readers[value]!.length === 1;
  const found = new Map<number, Finished>();
  graph.nodes.forEach((node, n) => {
    const match = matchNode(graph, node, alone);
    if (match) found.set(n, match);
  });
  if (found.size === 0) return graph;
  const absorbed = new Set([...found.values()].map(({ product }) => product));
  const b = new GraphBuilder();
  const map = new Array<number>(graph.values.length).fill(-1);
  graph.nodes.forEach((node, n) => {
    if (absorbed.has(n)) return;
    const match = found.get(n);
    if (match === undefined) {
      b.like(node);
      copyNode(b, graph, node, map);
      return;
    }
    const product = graph.nodes[match.product]!;
    b.like(product);
    const value = node.outputs[0]!;
    const { equation } = product.params as EinsumParams;
    const { type, spec } = graph.values[value]!;
    const params: EinsumParams = { equation, dtype: type.dtype, finish: match.finish };
    const inputs = [...product.inputs, ...match.operands].map((v) => map[v]!);
    const made = b.append("einsum", inputs, params, [type])[0]!;
    if (spec) b.graph.values[made]!.spec = spec;
    map[value] = made;
  });
  for (const { name, value } of graph.outputs) b.graph.outputs.push({ name, value: map[value]! });
  return b.graph;
}

const single = new Set(["add", "gelu", "silu", "cast"]);

function matchNode(graph: Graph, node: Node, alone: (value: number) => boolean): Finished | null {
  if (node.op !== "fused" && !single.has(node.op)) return null;
  const out = graph.values[node.outputs[0]!]!.type;
  if (node.outputs.length !== 1) return null;
  for (const [at, v] of node.inputs.entries()) {
    const n = graph.values[v]!.node;
    const product = graph.nodes[n]!;
    if (product.op !== "einsum" || product.params.finish !== undefined || !alone(v)) continue;
    if (product.stage !== node.stage || product.segment !== node.segment || product.phase !== node.phase) continue;
    const from = graph.values[product.inputs[0]!]!.type.dtype;
    if (!fitsKernel(from, out.dtype)) continue;
    const match = new Matcher(graph, node, product, at).match();
    if (match === null) continue;
    const operands = [match.bias, match.residual].flatMap((i) => (i === null ? [] : [node.inputs[i]!]));
    if (operands.some((x) => !fitsKernel(from, graph.values[x]!.type.dtype))) continue;
    const { activation } = match;
    const finish = { bias: match.bias !== null, activation, residual: match.residual !== null };
    return { product: n, finish, operands };
  }
  return null;
}

/** Whether a product of operands of one dtype can have a result, a bias or a residual of another. */
function fitsKernel(operand: DType, other: DType): boolean {
  return operand === other || ((operand === "bf16" || operand === "f16") && other === "f32");
}

interface Match {
  readonly bias: number | null;
  readonly activation: Finish["activation"];
  readonly residual: number | null;
}

/** Reads an expression backwards as act(product + bias) + residual. Operands are numbers of the node's inputs. */
class Matcher {
  readonly #graph: Graph;
  readonly #node: Node;
  readonly #steps: readonly ElementStep[];
  readonly #product: number;
  readonly #rows: readonly number[];
  readonly #fits: boolean;
  #used = 0;

  constructor(graph: Graph, node: Node, product: Node, at: number) {
    this.#graph = graph;
    this.#node = node;
    this.#product = at;
    const inputs = node.inputs.map((_, i) => i);
    const { dtype } = graph.values[node.outputs[0]!]!.type;
    const one: ElementStep = { op: node.op, dtype, inputs, attrs: node.params };
    this.#steps = node.op === "fused" ? (node.params as FusedParams).expression : [one];
    const { fits, rows } = resultGroups(parseEquation((product.params as EinsumParams).equation));
    this.#fits = fits;
    this.#rows = rows;
  }

  /** Null when the expression is another, or has steps beside. */
  match(): Match | null {
    const { params, inputs } = this.#node;
    const last = this.#node.op === "fused" ? (params as FusedParams).outputs[0]! : inputs.length;
    if (!this.#fits || inputs.filter((v) => v === inputs[this.#product]).length !== 1) return null;
    const found = this.#withResidual(last);
    return found !== null && this.#used === this.#steps.length && this.#keepsBits(last) ? found : null;
  }

  /** Whether nothing but the result is rounded on the way: the kernel keeps what is between in full precision. */
  #keepsBits(last: number): boolean {
    const wide = this.#dtype(this.#product);
    if (wide !== "f32" && wide !== "f64") return false;
    return this.#steps.every(({ op, dtype, inputs }, k) => {
      if (k + this.#node.inputs.length === last) return true;
      return dtype === wide && (op !== "cast" || this.#dtype(inputs[0]!) !== "f64" || wide === "f64");
    });
  }

  #dtype(value: number): DType {
    return this.#step(value)?.dtype ?? this.#graph.values[this.#node.inputs[value]!]!.type.dtype;
  }

  #step(value: number): ElementStep | undefined {
    return this.#steps[value - this.#node.inputs.length];
  }

  /** The value before casts between floats. */
  #uncast(value: number): number {
    let at = value;
    for (let step = this.#step(at); step?.op === "cast"; step = this.#step(at)) {
      if (!isFloat(step.dtype)) return at;
      this.#used++;
      at = step.inputs[0]!;
    }
    return at;
  }

  /** Tries a reading; forgets the steps that it took when it fails. */
  #attempt<T>(read: () => T | null): T | null {
    const used = this.#used;
    const found = read();
    if (found === null) this.#used = used;
    return found;
  }

  /** An addition's operands, either first. */
  #sum<T>(value: number, read: (a: number, b: number) => T | null): T | null {
    const step = this.#step(value);
    if (step?.op !== "add") return null;
    const [a, b] = step.inputs as readonly [number, number];
    for (const [x, y] of [[a, b] as const, [b, a] as const]) {
      const found = this.#attempt(() => {
        this.#used++;
        return read(x, y);
      });
      if (found !== null) return found;
    }
    return null;
  }

  /** An operand that is not the product. */
  #operand(value: number): number | null {
    const at = this.#uncast(value);
    return at < this.#node.inputs.length && at !== this.#product ? at : null;
  }

  #withResidual(value: number): Match | null {
    const at = this.#uncast(value);
    const plain = this.#attempt(() => this.#activated(at));
    if (plain) return plain;
    return this.#sum(at, (x, y) => {
      const residual = this.#operand(y);
      const inner = residual === null ? null : this.#activated(x);
      return inner && { ...inner, residual };
    });
  }

  #activated(value: number): Match | null {
    const at = this.#uncast(value);
    const step = this.#step(at);
    if (step?.op !== "gelu" && step?.op !== "silu") return this.#biased(at, null);
    this.#used++;
    return this.#biased(step.inputs[0]!, step.op);
  }

  #biased(value: number, activation: Finish["activation"]): Match | null {
    const at = this.#uncast(value);
    if (at === this.#product) return { bias: null, activation, residual: null };
    return this.#sum(at, (x, y) => {
      const bias = this.#operand(y);
      if (bias === null || !this.#isBias(bias) || this.#uncast(x) !== this.#product) return null;
      return { bias, activation, residual: null };
    });
  }

  /** True for values that are the same for all rows of the product. */
  #isBias(input: number): boolean {
    const node = this.#graph.nodes[this.#graph.values[this.#node.inputs[input]!]!.node]!;
    if (node.op !== "broadcast") return false;
    const { shape } = this.#graph.values[node.inputs[0]!]!.type;
    const whole = this.#graph.values[node.outputs[0]!]!.type.shape;
    return shape.every((n, d) => (this.#rows.includes(d) ? n === 1 : n === whole[d]));
  }
}
