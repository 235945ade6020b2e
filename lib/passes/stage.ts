// Staging: which pipeline stage and segment runs each node of a microbatch's graph, and which values cross between
// stages.
import { PlanError } from "../core/errors.ts";
import { type Graph, type Node, type Segment, consumers } from "../ir/graph.ts";
import { GraphBuilder } from "./graph-builder.ts";
import { duplicable, viewOps } from "./lower.ts";

/** A value that one stage makes and another reads. */
export interface Crossing {
  readonly value: number;
  readonly from: number;
  readonly to: number;
  /** Segment of `from` that makes it. */
  readonly segment: Segment;
  /** Segment of `to` that first reads it. */
  readonly reader: Segment;
}

/** How a graph is cut. */
export interface StageOptions {
  readonly stages: number;
  /** Whether the schedule runs the gradients of weights by themselves. */
  readonly splitsWeights: boolean;
  stageOfPath(path: string): number | undefined;
}

/**
 * Gives every node its stage and segment. Stages follow the module's path. A node outside any module follows what it
 * reads (forward: the latest stage; backward: the earliest whose backward it reads, since cotangents flow to earlier
 * stages), or, reading nothing of the kind, its readers; what each reader makes for itself (leaves and views of them)
 * has stage -1.
 */
export function placeStages(graph: Graph, { stages, splitsWeights, stageOfPath }: StageOptions): Graph {
  const copies = duplicable(graph);
  const stageOf = new Array<number>(graph.nodes.length).fill(-1);
  /** Where nodes are, or would be if not each reader made them for itself. */
  const home = new Array<number>(graph.nodes.length).fill(-1);
  const open: number[] = [];
  graph.nodes.forEach((node, n) => {
    const own = node.path === "" ? undefined : stageOfPath(node.path);
    const stage = own ?? (stages === 1 ? 0 : followed(graph, node, home));
    home[n] = stage ?? -1;
    if (copies[n]) return;
    if (stage === undefined) open.push(n);
    else stageOf[n] = stage;
  });
  placeOpen(graph, open, stageOf, stages);
  const segments = segmentsOf(graph, stageOf, splitsWeights);
  const nodes = graph.nodes.map((node, n): Node => ({ ...node, stage: stageOf[n]!, segment: segments[n]! }));
  return stages === 1 ? { ...graph, nodes } : viewsWithReaders({ ...graph, nodes });
}

/**
 * Gives each stage its own views of what crosses to it, so that whole results cross: kernels then see the same layouts
 * wherever the graph is cut, and so sum in the same order.
 */
function viewsWithReaders(graph: Graph): Graph {
  const isView = (v: number): boolean => viewOps.has(graph.nodes[graph.values[v]!.node]!.op);
  const made = (v: number): number => graph.nodes[graph.values[v]!.node]!.stage!;
  const segmentOf = firstSegments(graph, (v, stage) => isView(v) && made(v) >= 0 && made(v) !== stage);
  const b = new GraphBuilder();
  const map = new Array<number>(graph.values.length);
  const views = new Map<string, number>();
  const append = (node: Node, inputs: readonly number[]): void => {
    b.like(node);
    const types = node.outputs.map((v) => graph.values[v]!.type);
    b.append(node.op, inputs, node.params, types).forEach((v, i) => {
      map[node.outputs[i]!] = v;
      const { spec } = graph.values[node.outputs[i]!]!;
      if (spec) b.graph.values[v]!.spec = spec;
    });
  };
  /** A value as a stage reads it. */
  const seen = (value: number, stage: number): number => {
    const segment = segmentOf.get(`${value} ${stage}`);
    if (segment === undefined) return map[value]!;
    const key = `${value} ${stage}`;
    const known = views.get(key);
    if (known !== undefined) return known;
    const node = graph.nodes[graph.values[value]!.node]!;
    const inputs = node.inputs.map((v) => seen(v, stage));
    const whole = map[value]!;
    append({ ...node, stage, segment }, inputs);
    const own = map[value]!;
    map[value] = whole;
    views.set(key, own);
    return own;
  };
  for (const node of graph.nodes) {
    const inputs = node.inputs.map((v) => (node.stage! < 0 ? map[v]! : seen(v, node.stage!)));
    append(node, inputs);
  }
  for (const { name, value } of graph.outputs) b.graph.outputs.push({ name, value: map[value]! });
  return b.graph;
}

/** For the values that a stage is to make for itself (by value and stage), the first segment of it that reads them. */
function firstSegments(graph: Graph, own: (value: number, stage: number) => boolean): Map<string, Segment> {
  const found = new Map<string, Segment>();
  for (const { inputs, stage, segment } of graph.nodes.toReversed()) {
    const pending = stage! < 0 ? [] : inputs.filter((v) => own(v, stage!));
    for (let v = pending.pop(); v !== undefined; v = pending.pop()) {
      const key = `${v} ${stage}`;
      found.set(key, earlier(found.get(key) ?? segment!, segment!));
      pending.push(...graph.nodes[graph.values[v]!.node]!.inputs.filter((x) => own(x, stage!)));
    }
  }
  return found;
}

/**
 * W: what leads to parameters' gradients only, unless something else on the stage, or another stage, reads it: then it
 * is part of B, so that nothing waits for a W but the update.
 */
function segmentsOf(graph: Graph, stageOf: readonly number[], splitsWeights: boolean): Segment[] {
  const segments = graph.nodes.map(({ phase }): Segment => {
    if (phase === "weights") return splitsWeights ? "W" : "B";
    return phase === "backward" ? "B" : "F";
  });
  const readers = consumers(graph);
  for (let n = graph.nodes.length - 1; n >= 0; n--) {
    if (segments[n] !== "W" || stageOf[n]! < 0) continue;
    const stays = graph.nodes[n]!.outputs.every((v) =>
      readers[v]!.every((r) => segments[r] === "W" && stageOf[r] === stageOf[n]),
    );
    if (!stays) segments[n] = "B";
  }
  return segments;
}

/** The stage that a node outside any module follows; undefined when it reads none. */
function followed(graph: Graph, node: Node, stageOf: readonly number[]): number | undefined {
  const forward = node.phase === "forward";
  const sources = node.inputs.map((v) => graph.values[v]!.node);
  const stages = sources
    .filter((s) => stageOf[s]! >= 0 && (forward || graph.nodes[s]!.phase !== "forward"))
    .map((s) => stageOf[s]!);
  if (stages.length === 0) return undefined;
  return forward ? Math.max(...stages) : Math.min(...stages);
}

/**
 * Nodes that follow no stage go where they are first needed: forward to the earliest reader's stage, backward to the
 * latest's.
 */
function placeOpen(graph: Graph, open: readonly number[], stageOf: number[], stages: number): void {
  if (open.length === 0) return;
  const pending = new Set(open);
  for (let n = graph.nodes.length - 1; n >= 0; n--) {
    const reader = stageOf[n]!;
    if (reader < 0) continue;
    for (const v of graph.nodes[n]!.inputs) {
      const source = graph.values[v]!.node;
      if (!pending.has(source)) continue;
      const first = graph.nodes[source]!.phase === "forward" ? Math.min : Math.max;
      stageOf[source] = stageOf[source]! < 0 ? reader : first(stageOf[source]!, reader);
    }
  }
  for (const n of open) if (stageOf[n]! < 0) stageOf[n] = stages - 1;
}

/**
 * The values of a placed graph that cross between stages. Throws PlanError where data would flow to an earlier stage.
 */
export function crossingsOf(graph: Graph): Crossing[] {
  const found = new Map<string, Crossing>();
  for (const node of graph.nodes) {
    const to = node.stage!;
    if (to < 0) continue;
    for (const value of node.inputs) {
      const source = graph.nodes[graph.values[value]!.node]!;
      const from = source.stage!;
      // What each reader makes for itself reads only leaves, so that nothing crosses there.
      if (from < 0 || from === to) continue;
      const segment = source.segment!;
      const reader = node.segment!;
      if (reader === "F" && from > to) {
        throw new PlanError(
          `stage ${to} (${node.path || "no module"}) reads ${source.op} of stage ${from} (${source.path || "no module"}): ` +
            "modules must be placed on stages in the order data flows",
        );
      }
      const key = `${value} ${to}`;
      const known = found.get(key);
      found.set(key, { value, from, to, segment, reader: known ? earlier(known.reader, reader) : reader });
    }
  }
  return [...found.values()];
}

/** Segments in the order in which a microbatch runs them. */
const order: Readonly<Record<Segment, number>> = { F: 0, B: 1, W: 2 };

function earlier(a: Segment, b: Segment): Segment {
  return order[a] < order[b] ? a : b;
}
