// Context parallelism: puts a step's sequences in the order in which its ranks hold them. A causal sequence cut into
// contiguous parts would give the last rank most of the work; so each rank holds a part from the front and one from
// the back (the zig-zag split), and the parts of all ranks, joined, are the sequence in another order. Inputs are
// permuted when they are loaded; this pass finds every dim that runs along them, by the factors that link dims, and
// makes the graph mean the same: indices become positions, which are an input; causal attention is told positions;
// what needs the true order gets it.
import { type DType, isFloat } from "../core/dtype.ts";
import type { Graph, Node, Params, TensorType } from "../ir/graph.ts";
import type { FactorMap } from "../ir/op.ts";
import { getOp } from "../ops/index.ts";
import { GraphBuilder, type GraphValue, GraphValueBuilder } from "./graph-builder.ts";

/** Where a step's sequences are. */
export interface Sequences {
  /** Dim of each input (by name) that runs along the sequence, the sample's dim counted. */
  readonly inputs: ReadonlyMap<string, number>;
  /** Tokens of a sequence. */
  readonly length: number;
}

/** Inputs that a step with permuted sequences gets, i32 [length], besides the user's. */
export const sequenceInput = {
  /** The position of each token, in the order in which ranks hold them; split as the sequences are. */
  positions: "$positions",
  /** The same, whole on every device. */
  allPositions: "$allPositions",
  /** Where in that order each position is, whole on every device. */
  places: "$places",
} as const;

/** Returns the graph with its sequences permuted and its results in their true order. */
export function permuteSequences(graph: Graph, sequences: Sequences): Graph {
  const links = graph.nodes.map((node) => linkedDims(graph, node));
  return new Permuter(graph, sequences, links, marksOf(graph, links, sequences.inputs)).run();
}

/** For each value, whether each of its dims runs along the sequence of one of the inputs (by name, with that dim). */
export function sequenceDims(graph: Graph, inputs: ReadonlyMap<string, number>): boolean[][] {
  return marksOf(
    graph,
    graph.nodes.map((node) => linkedDims(graph, node)),
    inputs,
  );
}

type Links = { readonly inputs: Names; readonly outputs: Names };

/** Dims of a node's operands and results by factor: those that may be reordered alike. Positions stand for indices. */
function linkedDims(graph: Graph, node: Node): Links {
  const inputs = node.inputs.map((v) => graph.values[v]!.type);
  const outputs = node.outputs.map((v) => graph.values[v]!.type);
  const map = factorsOf(node, inputs, outputs);
  const sizes = new Map<string, Set<number>>();
  const note = (names: Names, types: readonly TensorType[]): void => {
    names.forEach((list, i) => {
      list.forEach((name, d) => {
        if (name !== null) sizes.set(name, (sizes.get(name) ?? new Set()).add(types[i]!.shape[d]!));
      });
    });
  };
  note(map.inputs, inputs);
  note(map.outputs, outputs);
  const links = (name: string | null): string | null => {
    return name === null || map.ordered?.includes(name) || sizes.get(name)!.size > 1 ? null : name;
  };
  const merged = (own: Names, unsplit: Names | undefined): Names =>
    own.map((list, i) => list.map((name, d) => links(name) ?? unsplit?.[i]?.[d] ?? null));
  return { inputs: merged(map.inputs, map.unsplit?.inputs), outputs: merged(map.outputs, map.unsplit?.outputs) };
}

type Names = readonly (readonly (string | null)[])[];

/** Operands of an attention before the marks; 0 for other ops. */
function attentionOperands(node: Node): number {
  return node.op === "attention" ? 3 : node.op === "attention_grad" ? 6 : 0;
}

/** Causal attention that goes by indices. */
function attendsByIndex(node: Node): boolean {
  return attentionOperands(node) > 0 && node.params.causal === true && node.params.positions === false;
}

function factorsOf(node: Node, inputs: readonly TensorType[], outputs: readonly TensorType[]): FactorMap {
  const { sharding } = getOp(node.op);
  if (!attendsByIndex(node)) return sharding.factors(inputs, outputs, node.params);
  const fixed = attentionOperands(node);
  const mark = (of: TensorType): TensorType => ({ dtype: "i32", shape: of.shape.slice(0, 2) });
  const types = [...inputs.slice(0, fixed), mark(inputs[0]!), mark(inputs[1]!), ...inputs.slice(fixed)];
  const map = sharding.factors(types, outputs, { ...node.params, positions: true });
  const without = (names: Names): Names => [...names.slice(0, fixed), ...names.slice(fixed + 2)];
  const unsplit = map.unsplit && { inputs: without(map.unsplit.inputs), outputs: map.unsplit.outputs };
  return { ...map, inputs: without(map.inputs), ...(unsplit ? { unsplit } : {}) };
}

/** Dims linked to one of an input's that runs along its sequence do so too. */
function marksOf(graph: Graph, all: readonly Links[], inputs: ReadonlyMap<string, number>): boolean[][] {
  const first: number[] = [];
  let count = 0;
  for (const { type } of graph.values) {
    first.push(count);
    count += type.shape.length;
  }
  const parent = Array.from({ length: count }, (_, i) => i);
  const root = (i: number): number => {
    let at = i;
    while (parent[at] !== at) at = parent[at] = parent[parent[at]!]!;
    return at;
  };
  graph.nodes.forEach((node, n) => {
    const links = all[n]!;
    const seen = new Map<string, number>();
    const join = (names: Names, values: readonly number[]): void => {
      names.forEach((list, i) => {
        list.forEach((name, d) => {
          if (name === null) return;
          const own = first[values[i]!]! + d;
          const other = seen.get(name);
          if (other === undefined) seen.set(name, own);
          else parent[root(own)] = root(other);
        });
      });
    };
    join(links.inputs, node.inputs);
    join(links.outputs, node.outputs);
  });
  const permuted = new Set<number>();
  for (const node of graph.nodes) {
    const dim = node.op === "input" ? inputs.get(node.params.name as string) : undefined;
    if (dim !== undefined) permuted.add(root(first[node.outputs[0]!]! + dim));
  }
  return graph.values.map(({ type }, v) => type.shape.map((_, d) => permuted.has(root(first[v]! + d))));
}

/** Rewrites a graph node by node. */
class Permuter {
  readonly #graph: Graph;
  readonly #sequences: Sequences;
  readonly #links: readonly Links[];
  readonly #marked: readonly (readonly boolean[])[];
  readonly #to = new GraphBuilder();
  readonly #b = new GraphValueBuilder(this.#to);
  /** Each value with its marked dims permuted. */
  readonly #map: number[] = [];
  /** Values in their true order along a dim. */
  readonly #true = new Map<string, number>();
  readonly #leaves = new Map<string, GraphValue>();

  constructor(graph: Graph, sequences: Sequences, links: readonly Links[], marked: readonly (readonly boolean[])[]) {
    this.#graph = graph;
    this.#sequences = sequences;
    this.#links = links;
    this.#marked = marked;
  }

  run(): Graph {
    const { nodes, outputs } = this.#graph;
    nodes.forEach((node, n) => {
      this.#to.path = node.path;
      this.#to.phase = node.phase;
      this.#results(node, this.#links[n]!).forEach((v, i) => {
        this.#map[node.outputs[i]!] = v.id;
      });
    });
    for (const { name, value } of outputs) {
      const maker = nodes[this.#graph.values[value]!.node]!;
      this.#to.path = maker.path;
      this.#to.phase = maker.phase;
      const dims = this.#dims(value);
      this.#to.graph.outputs.push({ name, value: dims.reduce((v, d) => this.#ordered(v, d), this.#map[value]!) });
    }
    return this.#to.graph;
  }

  /** Dims of a value that are permuted. */
  #dims(value: number): number[] {
    return this.#marked[value]!.flatMap((is, d) => (is ? [d] : []));
  }

  #results(node: Node, links: Links): GraphValue[] {
    const dims = this.#dims(node.outputs[0]!);
    if (dims.length === 0) return this.#plain(node, links);
    if (node.op === "iota") return [this.#positionsAlong(node, dims)];
    if (node.op === "random") return this.#random(node, dims);
    if (node.op === "input" || node.op === "parameter") return [this.#stored(node, dims)];
    return this.#plain(node, links);
  }

  /** What comes from outside is in its true order, but for the dims of inputs that are permuted as they are loaded. */
  #stored(node: Node, dims: readonly number[]): GraphValue {
    const value = this.#emit(node, [])[0]!;
    const loaded = node.op === "input" ? this.#sequences.inputs.get(node.params.name as string) : undefined;
    const rest = dims.filter((d) => d !== loaded);
    return rest.reduce((x, d) => this.#reordered(x, d, "allPositions"), value);
  }

  #emit(node: Node, inputs: readonly GraphValue[], params: Params = node.params): GraphValue[] {
    return this.#b.emit(node.op, inputs, params);
  }

  /** The node on permuted operands; in the true order along dims where it needs that. */
  #plain(node: Node, links: Links): GraphValue[] {
    const byIndex = attendsByIndex(node) && node.inputs.slice(0, 2).some((v) => this.#marked[v]![1]);
    const inputs = node.inputs.map((v, i): GraphValue => {
      if (node.op === "embedding" && i === 1 && this.#marked[node.inputs[0]!]![0]) return this.#rowsOf(v);
      if (node.op === "embedding_grad" && i === 1 && this.#marked[node.outputs[0]!]![0]) return this.#rowsOf(v);
      const lookup = node.op === "embedding" && i === 0;
      const lost = this.#dims(v).filter((d) => links.inputs[i]![d] === null && !(lookup && d === 0));
      return { id: lost.reduce((x, d) => this.#ordered(x, d), this.#map[v]!) };
    });
    const results = byIndex ? this.#attend(node, inputs) : this.#emit(node, inputs);
    return results.map((y, o) => {
      const scatter = node.op === "embedding_grad" && o === 0;
      const made = this.#dims(node.outputs[o]!).filter((d) => links.outputs[o]![d] === null);
      return made.filter((d) => !(scatter && d === 0)).reduce((x, d) => this.#reordered(x, d, "allPositions"), y);
    });
  }

  /** Causal attention by positions instead of indices. */
  #attend(node: Node, inputs: readonly GraphValue[]): GraphValue[] {
    const fixed = attentionOperands(node);
    const marks = node.inputs.slice(0, 2).map((v, i) => {
      const { shape } = this.#graph.values[v]!.type;
      const permuted = this.#marked[v]![1];
      const line = permuted ? this.#leaf(i === 0 ? "positions" : "allPositions") : this.#iota(shape[1]!);
      return this.#spread(line, shape.slice(0, 2), 1);
    });
    const operands = [...inputs.slice(0, fixed), ...marks, ...inputs.slice(fixed)];
    return this.#emit(node, operands, { ...node.params, positions: true });
  }

  #iota(size: number): GraphValue {
    return this.#b.one("iota", [], { dim: 0, shape: [size] });
  }

  /** A vector along one dim of a shape. */
  #spread(line: GraphValue, shape: readonly number[], dim: number): GraphValue {
    const row = shape.map((n, d) => (d === dim ? n : 1));
    return this.#b.broadcastTo(this.#b.reshape(line, row), shape);
  }

  #positionsAlong(node: Node, dims: readonly number[]): GraphValue {
    const { dim, shape } = node.params as { dim: number; shape: readonly number[] };
    return dims.includes(dim) ? this.#spread(this.#leaf("positions"), shape, dim) : this.#emit(node, [])[0]!;
  }

  /** Numbers drawn for an element depend on its position, wherever it lies. */
  #random(node: Node, dims: readonly number[]): GraphValue[] {
    const known = node.params.indexed as readonly number[];
    const indexed = [...new Set([...known, ...dims])].sort((a, b) => a - b);
    const operands = indexed.map((d): GraphValue => {
      const given = known.indexOf(d);
      return given >= 0 ? { id: this.#map[node.inputs[given + 1]!]! } : this.#leaf("positions");
    });
    return this.#emit(node, [{ id: this.#map[node.inputs[0]!]! }, ...operands], { ...node.params, indexed });
  }

  /** Rows of a permuted table for indices that count true ones; what is no row of it stays none. */
  #rowsOf(ids: number): GraphValue {
    const own: GraphValue = { id: this.#map[ids]! };
    const { length } = this.#sequences;
    const places = this.#b.reshape(this.#b.cast(this.#leaf("places"), "f64"), [length, 1]);
    const found = this.#b.reshape(this.#b.one("embedding", [places, own]), this.#b.shape(own));
    const inside = this.#b.one("and", [this.#b.binary("le", 0, own), this.#b.binary("lt", own, length)]);
    return this.#b.select(inside, this.#b.cast(found, "i32"), -1);
  }

  /** A value in its true order along a dim. */
  #ordered(value: number, dim: number): number {
    const key = `${value} ${dim} ${this.#to.phase}`;
    const known = this.#true.get(key) ?? this.#reordered({ id: value }, dim, "places").id;
    this.#true.set(key, known);
    return known;
  }

  /** Element i along a dim is element ids[i] of x. */
  #reordered(x: GraphValue, dim: number, ids: keyof typeof sequenceInput): GraphValue {
    const shape = this.#b.shape(x);
    const dtype = this.#b.dtype(x);
    const others = shape.flatMap((_, d) => (d === dim ? [] : [d]));
    const order = [dim, ...others];
    const table = this.#b.reshape(this.#b.transpose(this.#b.cast(x, tableType(dtype)), order), [
      shape[dim]!,
      others.reduce((n, d) => n * shape[d]!, 1),
    ]);
    const rows = this.#b.one("embedding", [table, this.#leaf(ids)]);
    const wide = this.#b.reshape(
      rows,
      order.map((d) => shape[d]!),
    );
    const back = shape.map((_, d) => order.indexOf(d));
    return this.#b.cast(this.#b.transpose(wide, back), dtype);
  }

  #leaf(name: keyof typeof sequenceInput): GraphValue {
    const known = this.#leaves.get(name);
    if (known) return known;
    const params = { name: sequenceInput[name], dtype: "i32", shape: [this.#sequences.length] };
    const { path, phase } = this.#to;
    this.#to.path = "";
    this.#to.phase = "forward";
    const made = this.#b.one("input", [], params);
    this.#to.path = path;
    this.#to.phase = phase;
    this.#leaves.set(name, made);
    return made;
  }
}

/** A type that the rows of a table can have and that holds every value of another. */
function tableType(dtype: DType): DType {
  return isFloat(dtype) ? dtype : "f64";
}
