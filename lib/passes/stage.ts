// Staging: which pipeline stage runs each node of a microbatch's graph, and which values cross between stages.
import { PlanError } from "../core/errors.ts";
import type { Graph } from "../ir/graph.ts";
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
 * stage; backward: the earliest), or, reading only leaves, its first reader. Throws PlanError when a value would have to
 * flow backwards in the forward pass.
 */
export function stageGraph(graph: Graph, stages: number, stageOfPath: (path: string) => number | undefined): Staged {
  const copies = duplicable(graph);
  const stageOf = new Array<number>(graph.nodes.length).fill(-1);
  const open: number[] = [];
  graph.nodes.forEach((node, n) => {
    if (copies[n]) return;
    const own = node.path === "" ? undefined : stageOfPath(node.path);
    const sources = node.inputs.map((v) => stageOf[graph.values[v]!.node]!).filter((s) => s >= 0);
    if (own !== undefined) stageOf[n] = own;
    else if (stages === 1) stageOf[n] = 0;
    else if (sources.length > 0) stageOf[n] = node.phase === "forward" ? Math.max(...sources) : Math.min(...sources);
    else open.push(n);
  });
  placeOpen(graph, open, stageOf, stages);
  return { stageOf, crossings: crossingsOf(graph, stageOf) };
}

function placeOpen(graph: Graph, open: readonly number[], stageOf: number[], stages: number): void {
  if (open.length === 0) return;
  const pending = new Set(open);
  for (let n = graph.nodes.length - 1; n >= 0; n--) {
    const reader = stageOf[n]!;
    if (reader < 0) continue;
    for (const v of graph.nodes[n]!.inputs) {
      const source = graph.values[v]!.node;
      if (pending.has(source)) stageOf[source] = stageOf[source]! < 0 ? reader : Math.min(stageOf[source]!, reader);
    }
  }
  for (const n of open) if (stageOf[n]! < 0) stageOf[n] = stages - 1;
}

function crossingsOf(graph: Graph, stageOf: readonly number[]): Crossing[] {
  const found = new Map<string, Crossing>();
  graph.nodes.forEach((node, n) => {
    const to = stageOf[n]!;
    if (to < 0) return;
    for (const value of leafInputs(graph, node.inputs, stageOf)) {
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

/** Inputs, seen through nodes that each reader makes for itself (those read only leaves, so nothing crosses there). */
function leafInputs(graph: Graph, inputs: readonly number[], stageOf: readonly number[]): number[] {
  return inputs.filter((v) => stageOf[graph.values[v]!.node]! >= 0);
}
