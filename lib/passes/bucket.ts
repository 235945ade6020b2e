// Buckets: reductions of gradients, and gathers of a layer's parameters, are joined to few large exchanges, and placed:
// a reduction as soon as its operands are there, a gather where it is first read, or some layers ahead of that. What is
// in which bucket follows from the graph alone: it is the same for every rank, schedule and microbatch.
import { dtypeSize } from "../core/dtype.ts";
import { sizeOf } from "../core/shape.ts";
import type { Graph, Node } from "../ir/graph.ts";
import { axisName } from "../ir/spec.ts";
import type { BucketParams } from "../ops/bucket.ts";
import { GraphBuilder } from "./graph-builder.ts";
import { duplicable } from "./lower.ts";

/** How exchanges are joined. */
export interface BucketOptions {
  /** Most bytes of a bucket, as a rank holds them whole; a larger tensor is alone. */
  readonly bytes: number;
  /** By how many layers gathers of parameters precede the layer that reads them. */
  readonly prefetch: number;
  readonly sizes: Readonly<Record<string, number>>;
  /** Layer of a node: gathers of several layers are not joined. */
  layer(node: Node): string;
}

/** Exchanges that become one. Positions are indices of nodes. */
interface Bucket {
  readonly members: number[];
  readonly room: string;
  readonly layer: string;
  bytes: number;
  /** The last node that it needs; -1 when leaves are enough. */
  needs: number;
  /** The first node that reads a result. */
  read: number;
}

const joined = new Set(["all_reduce", "all_gather", "reduce_scatter"]);

/** Returns the graph with buckets in place of the exchanges that can be joined. */
export function bucketExchanges(graph: Graph, options: BucketOptions): Graph {
  const sorted = assignsLast(graph);
  const buckets = collect(sorted, options);
  return buckets.length === 0 ? graph : new Emitter(sorted, buckets, options.prefetch).run();
}

/** The graph with assignments at the end: nothing reads them, and so gathers before them can wait for each other. */
function assignsLast(graph: Graph): Graph {
  if (!graph.nodes.some((node) => node.op === "assign")) return graph;
  const order = graph.nodes.map((_, n) => n);
  order.sort((a, b) => Number(graph.nodes[a]!.op === "assign") - Number(graph.nodes[b]!.op === "assign") || a - b);
  const at = new Map(order.map((n, i) => [n, i]));
  return {
    nodes: order.map((n) => graph.nodes[n]!),
    values: graph.values.map((value) => ({ ...value, node: at.get(value.node)! })),
    outputs: graph.outputs,
  };
}

function collect(graph: Graph, options: BucketOptions): Bucket[] {
  const leaf = duplicable(graph);
  const firstRead = graph.values.map(() => graph.nodes.length);
  graph.nodes.forEach((node, n) => {
    for (const v of node.inputs) firstRead[v] = Math.min(firstRead[v]!, n);
  });
  const buckets: Bucket[] = [];
  const bucketOf = new Map<number, Bucket>();
  const open = new Map<string, Bucket>();
  graph.nodes.forEach((node, n) => {
    // Stages meet in an order that all of them keep: what is in a bucket is each stage's own affair.
    const room = joined.has(node.op) && !common(node).axes.includes("pp") ? roomOf(node) : null;
    if (room === null) return;
    const maker = graph.values[node.inputs[0]!]!.node;
    // Another bucket's result is there before its first read, wherever that bucket will be.
    const needs = leaf[maker] ? -1 : Math.max(maker, (bucketOf.get(maker)?.read ?? 0) - 1);
    if (node.op === "all_gather" && needs >= 0 && node.phase !== "update") return; // an activation, wanted at once
    const layer = node.op === "all_gather" && needs < 0 ? options.layer(node) : "";
    const bytes = wholeBytes(graph, node, options.sizes);
    const read = firstRead[node.outputs[0]!]!;
    const key = JSON.stringify([room, layer, node.op, dtypeOf(graph, node), common(node)]);
    const known = open.get(key);
    // What it needs must not come from a member, nor be made after the first read of one.
    if (known && known.bytes + bytes <= options.bytes && needs < known.read && needs < 0 === known.needs < 0) {
      known.members.push(n);
      bucketOf.set(n, known);
      known.bytes += bytes;
      known.needs = Math.max(known.needs, needs);
      known.read = Math.min(known.read, read);
      return;
    }
    const made = { members: [n], room, layer, bytes, needs, read };
    open.set(key, made);
    bucketOf.set(n, made);
    buckets.push(made);
  });
  return buckets;
}

/** Stage and segment of a node of a placed graph, phase of others; null for what each reader makes for itself. */
function roomOf({ stage, segment, phase }: Node): string | null {
  if (stage === undefined) return phase;
  return stage < 0 ? null : `${stage} ${segment}`;
}

function dtypeOf(graph: Graph, node: Node): string {
  return graph.values[node.inputs[0]!]!.type.dtype;
}

/** What members of a bucket have in common: all params but the dim. */
function common({ params }: Node): Omit<BucketParams, "op" | "dims"> {
  const { dim, ...rest } = params;
  return rest as Omit<BucketParams, "op" | "dims">;
}

/** Bytes of the whole side as a rank holds it: what a gather gives, what a reduction takes. */
function wholeBytes(graph: Graph, node: Node, sizes: Readonly<Record<string, number>>): number {
  const { type, spec } = graph.values[node.op === "all_gather" ? node.outputs[0]! : node.inputs[0]!]!;
  const parts = spec!.dims.flat().reduce((n, axis) => n * (sizes[axisName(axis)] ?? 1), 1);
  return Math.ceil((sizeOf(type.shape) * dtypeSize(type.dtype)) / parts);
}

/** Writes the graph anew, buckets in their places. */
class Emitter {
  readonly #graph: Graph;
  readonly #b = new GraphBuilder();
  readonly #map: number[];
  /** Buckets to be placed before and after a node. */
  readonly #before = new Map<number, Bucket[]>();
  readonly #after = new Map<number, Bucket[]>();
  readonly #bucketOf: ReadonlyMap<number, Bucket>;
  readonly #done = new Set<Bucket>();

  constructor(graph: Graph, buckets: readonly Bucket[], prefetch: number) {
    this.#graph = graph;
    this.#map = new Array<number>(graph.values.length);
    this.#bucketOf = new Map(buckets.flatMap((b) => b.members.map((n): [number, Bucket] => [n, b])));
    const place = (list: Map<number, Bucket[]>, at: number, bucket: Bucket): void => {
      list.set(at, [...(list.get(at) ?? []), bucket]);
    };
    for (const bucket of buckets) {
      if (bucket.needs >= 0) place(this.#after, bucket.needs, bucket);
      else place(this.#before, aheadOf(bucket, buckets, prefetch), bucket);
    }
  }

  run(): Graph {
    const { nodes, outputs } = this.#graph;
    nodes.forEach((_, n) => {
      for (const bucket of this.#before.get(n) ?? []) this.#bucket(bucket);
      this.#node(n);
      for (const bucket of this.#after.get(n) ?? []) this.#bucket(bucket);
    });
    for (const bucket of this.#before.get(nodes.length) ?? []) this.#bucket(bucket);
    for (const { name, value } of outputs) this.#b.graph.outputs.push({ name, value: this.#map[value]! });
    return this.#b.graph;
  }

  /** Emits a node, after what it reads and is not there yet: leaves, views of leaves, and buckets at the same place. */
  #node(node: number): void {
    if (this.#bucketOf.has(node)) return; // in the bucket's place
    const pending = [node];
    while (pending.length > 0) {
      const n = pending.at(-1)!;
      const { inputs, outputs } = this.#graph.nodes[n]!;
      const missing = inputs.filter((v) => this.#map[v] === undefined);
      if (missing.length > 0) this.#pull(missing, pending);
      else {
        pending.pop();
        if (outputs.some((v) => this.#map[v] === undefined)) this.#append(n, this.#graph.nodes[n]!);
      }
    }
  }

  /** Emits the buckets that make values, and adds the other makers to a list. */
  #pull(values: readonly number[], makers: number[]): void {
    for (const v of values) {
      const maker = this.#graph.values[v]!.node;
      const bucket = this.#bucketOf.get(maker);
      if (bucket) this.#bucket(bucket);
      else makers.push(maker);
    }
  }

  #append(
    n: number,
    { op, params, inputs }: Pick<Node, "op" | "params" | "inputs">,
    outputs?: readonly number[],
  ): void {
    const node = this.#graph.nodes[n]!;
    this.#b.like(node);
    const results = outputs ?? node.outputs;
    const made = this.#b.append(
      op,
      inputs.map((v) => this.#map[v]!),
      params,
      results.map((v) => this.#graph.values[v]!.type),
    );
    results.forEach((v, i) => {
      this.#map[v] = made[i]!;
      const { spec } = this.#graph.values[v]!;
      if (spec) this.#b.graph.values[made[i]!]!.spec = spec;
    });
  }

  #bucket(bucket: Bucket): void {
    if (this.#done.has(bucket)) return;
    this.#done.add(bucket);
    const { members } = bucket;
    const nodes = members.map((n) => this.#graph.nodes[n]!);
    const inputs = nodes.flatMap((node) => node.inputs);
    const makers: number[] = [];
    this.#pull(
      inputs.filter((v) => this.#map[v] === undefined),
      makers,
    );
    for (const n of makers) this.#node(n);
    const first = nodes[0]!;
    if (members.length === 1) {
      this.#append(members[0]!, first);
      return;
    }
    const params: BucketParams = {
      ...common(first),
      op: first.op as BucketParams["op"],
      dims: first.op === "all_reduce" ? [] : nodes.map((node) => node.params.dim as number),
    };
    const outputs = nodes.flatMap((node) => node.outputs);
    this.#append(members[0]!, { op: "bucket", params, inputs }, outputs);
  }
}

/** Where a bucket of leaves is placed: at its first read, or at that of the layer so many before its own. */
function aheadOf(bucket: Bucket, buckets: readonly Bucket[], prefetch: number): number {
  if (prefetch === 0 || bucket.layer === "") return bucket.read;
  const starts = new Map<string, number>();
  for (const { room, layer, read, needs } of buckets) {
    if (room === bucket.room && layer !== "" && needs < 0) starts.set(layer, Math.min(starts.get(layer) ?? read, read));
  }
  const order = [...starts].sort(([, a], [, b]) => a - b);
  const own = order.findIndex(([layer]) => layer === bucket.layer);
  return Math.min(bucket.read, order[Math.max(0, own - prefetch)]![1]);
}
