// Staging: which pipeline stage runs each node of a microbatch's graph, and which values cross between stages.
import { PlanError } from "../core/errors.ts";
import type { Graph, Node } from "../ir/graph.ts";
import { duplicable } from "./lower.ts";

/** A value that one stage makes and another reads. */
export interface Crossing {
  readonly value: number;
  readonly from: number;
  readonly to: number;
  /** Segment of `from` that makes it. */
  readonly segment: "F" | "B";
  /** Segment of `to` that first reads it. */
  readonly reader: "F" | "B";
}

/** A graph split over stages. */
export interface Staged {
  /** Stage of each node; -1 for those that each reader makes for itself (leaves and views of them). */
  readonly stageOf: readonly number[];
  readonly crossings: readonly Crossing[];
}

/**
 * Assigns nodes to stages by their module's path. A node outside any module follows what it reads (forward: the latest
 * stage; backward: the earliest whose backward it reads, since cotangents flow to earlier stages), or, reading nothing of
 * the kind, its readers. Throws PlanError when a value would have to flow backwards in the forward pass.
 */
export function stageGraph(graph: Graph, stages: number, stageOfPath: (path: string) => number | undefined): Staged {
  const copies = duplicable(graph);
  const stageOf = new Array<number>(graph.nodes.length).fill(-1);
  const open: number[] = [];
  graph.nodes.forEach((node, n) => {
    if (copies[n]) return;
    const own = node.path === "" ? undefined : stageOfPath(node.path);
    const stage = own ?? (stages === 1 ? 0 : followed(graph, node, stageOf));
    if (stage === undefined) open.push(n);
    else stageOf[n] = stage;
  });
  placeOpen(graph, open, stageOf, stages);
  return { stageOf, crossings: crossingsOf(graph, stageOf) };
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

/** Nodes that follow no stage go where they are first needed: forward to the earliest reader's stage, backward to the latest's. */
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

function crossingsOf(graph: Graph, stageOf: readonly number[]): Crossing[] {
  const found = new Map<string, Crossing>();
  graph.nodes.forEach((node, n) => {
    const to = stageOf[n]!;
    if (to < 0) return;
    for (const value of stagedInputs(graph, node.inputs, stageOf)) {
      const source = graph.nodes[graph.values[value]!.node]!;
      const from = stageOf[graph.values[value]!.node]!;
      if (from === to) continue;
      const segment = source.phase === "backward" ? "B" : "F";
      const reader = node.phase === "backward" ? "B" : "F";
      if (reader === "F" && from > to) {
        throw new PlanError(
          `stage ${to} (${node.path || "no module"}) reads ${source.op} of stage ${from} (${source.path || "no module"}): ` +
            "modules must be placed on stages in the order data flows",
        );
      }
      const key = `${value} ${to}`;
      const known = found.get(key);
      if (!known) found.set(key, { value, from, to, segment, reader });
      else if (reader === "F") found.set(key, { ...known, reader });
    }
  });
  return [...found.values()];
}

/** Inputs that some stage makes; what each reader makes for itself reads only leaves, so that nothing crosses there. */
function stagedInputs(graph: Graph, inputs: readonly number[], stageOf: readonly number[]): number[] {
  return inputs.filter((v) => stageOf[graph.values[v]!.node]! >= 0);
}
