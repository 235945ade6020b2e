// The work of pipeline stages: predicted seconds of their segments, by the cost model.
import type { Graph, Segment } from "../ir/graph.ts";
import { type DeviceRates, nodeSeconds } from "../passes/cost.ts";
import { type Schedule, hasWeightSegment } from "../passes/schedule.ts";
import type { SegmentTimes } from "../passes/simulate.ts";

/** Seconds of a stage's segments for one microbatch. */
export type StageWork = Readonly<Record<Segment, number>>;

/** Predicted seconds of each stage's segments; what each reader makes for itself counts for nothing. */
export function workOf(
  graph: Graph,
  { stages }: Schedule,
  sizes: Readonly<Record<string, number>>,
  rates: DeviceRates,
): StageWork[] {
  const sums = Array.from({ length: stages }, () => ({ F: 0, B: 0, W: 0 }));
  for (const node of graph.nodes) {
    if (node.stage! >= 0) sums[node.stage!]![node.segment!] += nodeSeconds(graph, node, sizes, rates);
  }
  return sums;
}

/** The work as the simulator takes it for a schedule. */
export function timesOf(work: readonly StageWork[], schedule: Schedule): SegmentTimes[] {
  return work.map(({ F, B, W }) => (hasWeightSegment(schedule) ? { F, B, W } : { F, B: B + W }));
}
