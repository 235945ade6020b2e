// Recomputation: which values of the forward are kept for the backward, and which are computed again there. What is
// kept is a minimum cut between what must be kept and what the backward reads, weighed by bytes.
import { dtypeSize } from "../core/dtype.ts";
import { sizeOf } from "../core/shape.ts";
import { type Graph, type Node, type Segment, consumers } from "../ir/graph.ts";
import { axisName } from "../ir/spec.ts";
import { GraphBuilder } from "./graph-builder.ts";
import { viewOps } from "./lower.ts";
import { CutGraph } from "./min-cut.ts";

/**
 * none: everything that the backward reads is kept. selective: results of matrix products and collectives are kept at
 * most, attention, norms and elementwise work are done again. full: only what passes between blocks is kept at most.
 */
export const recomputePolicies = ["none", "selective", "full"] as const;

/** What is computed again in the backward; the later ones keep less and take longer. */
export type RecomputePolicy = (typeof recomputePolicies)[number];

/** What the pass needs to know beyond the graph. */
export interface RematOptions {
  readonly policy: RecomputePolicy;
  /** Sizes of the mesh's axes. */
  readonly sizes: Readonly<Record<string, number>>;
  /** The block that a module is, or lies in; undefined outside all. */
  blockOf(path: string): string | undefined;
}

/** Ops that selective recomputation never does again. */
const costly: ReadonlySet<string> = new Set([
  "einsum",
  "grouped_matmul",
  "grouped_matmul_grad",
  "all_reduce",
  "all_gather",
  "reduce_scatter",
  "all_to_all",
  "ring_shift",
  "broadcast_from",
  "expert_exchange",
]);

/**
 * Returns the placed graph with copies of forward nodes in the backward (B, or W where only that reads them), each
 * right before its first reader, so that as little as the policy allows is kept. The copies compute the same bits:
 * random numbers are counter-based. No stage keeps more than without.
 */
export function recompute(graph: Graph, options: RematOptions): Graph {
  if (options.policy === "none") return graph;
  const again = new Recomputed(graph, options).values();
  return again.size === 0 ? graph : copiesBeforeReaders(graph, again);
}

/** Finds the values to compute again. */
class Recomputed {
  readonly #graph: Graph;
  readonly #options: RematOptions;
  readonly #readers: readonly (readonly number[])[];
  /** Block of each node. */
  readonly #blocks: readonly string[];

  constructor(graph: Graph, options: RematOptions) {
    this.#graph = graph;
    this.#options = options;
    this.#readers = consumers(graph);
    this.#blocks = blocksOf(graph, options);
  }

  /** Values, by value the segment in which they are made again. */
  values(): Map<number, Segment> {
    const kept = this.#kept();
    const out = new Map<number, Segment>();
    for (const segment of ["B", "W"] as const) {
      const pending = this.#graph.nodes.flatMap((n) =>
        n.segment === segment ? n.inputs.filter((v) => this.#isResidual(v, n)) : [],
      );
      for (let v = pending.pop(); v !== undefined; v = pending.pop()) {
        if (kept.has(v) || out.has(v)) continue;
        out.set(v, segment);
        pending.push(...this.#sources(v));
      }
    }
    return out;
  }

  /** The values of all stages that stay in memory. */
  #kept(): Set<number> {
    const { nodes, values } = this.#graph;
    const cut = new CutGraph();
    const vertices = new Map<number, number>();
    const fixed = this.#fixed();
    values.forEach((value, v) => {
      const node = nodes[value.node]!;
      if (node.segment !== "F" || node.stage! < 0) return;
      const vertex = cut.vertex(this.#weight(v));
      vertices.set(v, vertex);
      if (fixed.has(v)) cut.source(vertex);
      else for (const u of this.#sources(v)) cut.edge(vertices.get(u)!, vertex);
      if (this.#readers[v]!.some((r) => nodes[r]!.segment !== "F" && nodes[r]!.stage === node.stage)) cut.sink(vertex);
    });
    const chosen = cut.cut();
    return new Set([...vertices].flatMap(([v, vertex]) => (chosen.has(vertex) ? [v] : [])));
  }

  /**
   * What it takes to keep a value: nothing where it is in a slot anyway; views are made from what they are views of.
   */
  #weight(v: number): number {
    const { type, spec, node } = this.#graph.values[v]!;
    const { op, stage } = this.#graph.nodes[node]!;
    if (viewOps.has(op)) return Number.POSITIVE_INFINITY;
    if (this.#readers[v]!.some((r) => this.#graph.nodes[r]!.stage! >= 0 && this.#graph.nodes[r]!.stage !== stage))
      return 0;
    const parts = (spec?.dims ?? []).flat().reduce((n, axis) => n * (this.#options.sizes[axisName(axis)] ?? 1), 1);
    return Math.max(1, (sizeOf(type.shape) * dtypeSize(type.dtype)) / parts);
  }

  /** Values that are not made again: by the policy, or because another stage made what they read. */
  #fixed(): Set<number> {
    const { nodes, values } = this.#graph;
    const out = new Set<number>();
    for (let n = nodes.length - 1; n >= 0; n--) {
      const node = nodes[n]!;
      if (node.segment !== "F" || node.stage! < 0) continue;
      const view = viewOps.has(node.op);
      const passes = node.outputs.some((v) =>
        this.#readers[v]!.some((r) => nodes[r]!.segment === "F" && this.#blocks[r] !== this.#blocks[n]),
      );
      const stays = passes || node.outputs.some((v) => out.has(v));
      if (!view && (stays || (this.#options.policy === "selective" && costly.has(node.op)))) {
        for (const v of node.outputs) out.add(v);
      } else if (view && stays) {
        // A view stays by what it is a view of.
        const base = node.inputs[0]!;
        if (nodes[values[base]!.node]!.stage === node.stage) out.add(base);
      }
    }
    return out;
  }

  /** What a value's node reads that this stage made in its forward. */
  #sources(v: number): number[] {
    const node = this.#graph.nodes[this.#graph.values[v]!.node]!;
    return node.inputs.filter((u) => this.#isResidual(u, node));
  }

  #isResidual(v: number, { stage }: Node): boolean {
    const made = this.#graph.nodes[this.#graph.values[v]!.node]!;
    return stage! >= 0 && made.stage === stage && made.segment === "F";
  }
}

/** The block of each node; a node outside all blocks goes with the last thing that it reads. */
function blocksOf(graph: Graph, { blockOf }: RematOptions): string[] {
  const out: string[] = [];
  for (const { path, inputs } of graph.nodes) {
    const followed = inputs.map((v) => out[graph.values[v]!.node]!).filter((b) => b !== "");
    out.push((path === "" ? undefined : blockOf(path)) ?? followed.at(-1) ?? "");
  }
  return out;
}

/**
 * Puts copies of the nodes that make these values into the segments given, before the first node there that reads them.
 */
function copiesBeforeReaders(graph: Graph, again: ReadonlyMap<number, Segment>): Graph {
  const b = new GraphBuilder();
  const map = new Array<number>(graph.values.length);
  const copies = new Map<number, number>();
  const append = (node: Node, inputs: readonly number[]): number[] => {
    b.like(node);
    const types = node.outputs.map((v) => graph.values[v]!.type);
    const made = b.append(node.op, inputs, node.params, types);
    node.outputs.forEach((v, i) => {
      const { spec } = graph.values[v]!;
      if (spec) b.graph.values[made[i]!]!.spec = spec;
    });
    return made;
  };
  const read = (v: number): number => (again.has(v) ? copyOf(v) : map[v]!);
  /** The copy of a value; chains of nodes may be long, so that what is missing is found with a stack. */
  const copyOf = (value: number): number => {
    const pending = [value];
    while (pending.length > 0) {
      const v = pending.at(-1)!;
      const node = graph.nodes[graph.values[v]!.node]!;
      const missing = node.inputs.filter((u) => again.has(u) && !copies.has(u));
      if (copies.has(v)) pending.pop();
      else if (missing.length > 0) pending.push(...missing);
      else {
        pending.pop();
        const segment = node.outputs.some((u) => again.get(u) === "B") ? "B" : "W";
        const inputs = node.inputs.map((u) => copies.get(u) ?? map[u]!);
        const made = append({ ...node, phase: segment === "B" ? "backward" : "weights", segment }, inputs);
        node.outputs.forEach((u, i) => {
          copies.set(u, made[i]!);
        });
      }
    }
    return copies.get(value)!;
  };
  for (const node of graph.nodes) {
    const inBackward = node.segment !== "F" && node.stage! >= 0;
    const inputs = node.inputs.map((v) => (inBackward && madeHere(graph, v, node) ? read(v) : map[v]!));
    for (const [i, v] of append(node, inputs).entries()) map[node.outputs[i]!] = v;
  }
  for (const { name, value } of graph.outputs) b.graph.outputs.push({ name, value: map[value]! });
  return b.graph;
}

function madeHere(graph: Graph, value: number, { stage }: Node): boolean {
  return graph.nodes[graph.values[value]!.node]!.stage === stage;
}
