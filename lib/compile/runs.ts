// Which runs of segments a device's actions are, so that profiles of instructions can be read as timelines.
import type { Segment } from "../ir/graph.ts";
import type { Action } from "../passes/device-action.ts";
import type { ProgramBuilder } from "../passes/lower.ts";

/** A run of instructions in a row. */
export interface PlannedRun {
  /** Null: not a stage's work on a microbatch, but what surrounds it (counts, copies between stages, the update). */
  readonly segment: Segment | null;
  readonly stage: number;
  readonly microbatch: number;
  readonly instructions: number;
}

/** The runs of a device in order. */
export function runsOf({ segments }: ProgramBuilder, actions: readonly Action[]): PlannedRun[] {
  return actions.flatMap((action): PlannedRun[] => {
    if (action.kind !== "run" && action.kind !== "handover") return [];
    const { part, instructions } = segments[action.segment]!;
    const stage = action.kind === "run" ? action.stage : action.to.stage;
    return [{ segment: part, stage, microbatch: action.microbatch, instructions: instructions.length }];
  });
}
