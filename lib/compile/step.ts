// Compiling a step: a microbatch's graph, run for every microbatch on a pipeline schedule, then a closing graph.
// Training, evaluation and single evaluations of a function are all steps.
import type { DType } from "../core/dtype.ts";
import { PlanError } from "../core/errors.ts";
import { type Graph, newGraph, type TensorType } from "../ir/graph.ts";
import type { MeshLayout } from "../ir/mesh.ts";
import type { ValueSpec } from "../ir/spec.ts";
import { cutByStage } from "../passes/close.ts";
import type { BoundaryValue } from "../passes/actions.ts";
import type { DeviceRates } from "../passes/cost.ts";
import type { PoolPlan } from "../passes/memory.ts";
import type { RecomputePolicy } from "../passes/remat.ts";
import { type Schedule, stageDevices } from "../passes/schedule.ts";
import { alikeGraphs } from "./alike.ts";
import { type MicroGraph, tagCrossings } from "./boundary.ts";
import type { ExpertReserve } from "./expert-plan.ts";
import { updateName } from "./names.ts";
import { type PassOptions, runGraphPasses, timed } from "./passes.ts";
import { assemblePrograms } from "./assemble.ts";
import type { SequenceLayout } from "./sequence.ts";
import type { PlannedRun } from "./runs.ts";
import { tieCells } from "./tied.ts";
import type { StageWork } from "./work.ts";
import { microSources, ofSize, type SplitSource, shardSources, withScatter, withSequences } from "./sources.ts";

/** Something the caller feeds at each run. */
export interface StepInput {
  readonly name: string;
  readonly dtype: DType;
  /** With `batch`: the shape of one sample; else the whole shape. */
  readonly shape: readonly number[];
  readonly batch: boolean;
  /** With `batch`: the dim of a sample that runs along the sequence, which the axis cp splits. */
  readonly sequence?: number;
  /** With `sequence`, where cp splits it: how the array is laid out in staging memory. */
  readonly layout?: SequenceLayout;
  /** Without `batch`: axes that split each dim. */
  readonly axes?: readonly (readonly string[])[];
  /** What is fed at each run, where it is known already. */
  readonly values?: Int32Array;
}

/** A result of the microbatches, kept and added up over them: gradients, sums of losses, counts. */
export interface Cell {
  readonly name: string;
  readonly type: TensorType;
  readonly spec: ValueSpec;
  /** Coordinate along pp of the devices that hold it. */
  readonly column: number;
}

/**
 * What to compile: plain data, so that it can be sent to a worker. Graphs have global shapes of one microbatch and name
 * cells and inputs by `input` nodes.
 */
export interface StepSource {
  readonly inputs: readonly StepInput[];
  /**
   * Graphs of a microbatch, by its number of samples (all of microbatchSizes()); outputs are added up in cells of their
   * names.
   */
  readonly micro: ReadonlyMap<number, Graph>;
  /**
   * Runs over all microbatches before the first: graphs (by samples) whose outputs are added up in cells, and one that
   * turns those cells into others (`outputs` become cells of their names), which the microbatches read. On the stage of
   * `at`'s cell.
   */
  readonly prologue?: { readonly graphs: ReadonlyMap<number, Graph>; readonly close: Graph; readonly at: string };
  /**
   * After the last microbatch, from cells, inputs and parameters to results: written as if for one device; it is cut
   * into stages (lib/passes/close.ts) once it is known where cells lie.
   */
  readonly closing: Graph;
}

/** How a cell is to lie, and whether each microbatch's result is summed over all ranks before it is added. */
export interface CellSpec {
  readonly spec: ValueSpec;
  readonly summed: boolean;
}

/** How to compile it: plain data but for the callbacks of `passes`. */
export interface StepOptions {
  readonly layout: MeshLayout;
  /** Samples of the whole batch (0: no batch inputs; one microbatch). */
  readonly batchSize: number;
  readonly microbatches: number;
  readonly schedule: Schedule;
  /** Pipeline stages of the model's blocks, by path; modules inside a block follow it. */
  readonly stageOfBlock: ReadonlyMap<string, number>;
  /** Specs of the parameters (and any other persistent tensors) that the graphs read, by id. */
  readonly parameterSpecs: ReadonlyMap<string, ValueSpec>;
  /** Specs with which microbatches read parameters, by id; as they lie where missing. */
  readonly usedSpecs?: ReadonlyMap<string, ValueSpec>;
  /** Specs that cells must have, by name; without `summed` they may be partial over the axes that do not split them. */
  readonly cellSpecs?: ReadonlyMap<string, CellSpec>;
  /** Specs that cells would best have, by name. */
  readonly wantedSpecs?: ReadonlyMap<string, ValueSpec>;
  /** Sequence parallelism over tp: "auto" (default) where it is estimated to be faster. */
  readonly sequenceParallel?: SequenceParallel;
  /** How fast the devices are, for what is chosen by cost. */
  readonly rates?: DeviceRates;
  readonly passes: PassOptions;
  /** What the backward computes again instead of keeping it; nothing when absent. */
  readonly recompute?: RecomputePolicy;
  /** Refuse a mesh on which a device would have nothing to do in the whole step. */
  readonly refuseIdle?: boolean;
}

/** Whether activations are split along their sequence over tp, outside of what tp splits otherwise. */
export type SequenceParallel = "on" | "off" | "auto";

/** A step that only computes a graph: of parameters, once, without a batch. */
export function functionSource(graph: Graph): StepSource {
  return { inputs: [], micro: new Map([[0, newGraph()]]), closing: graph };
}

/** All graphs of a step. */
export function graphsOf({ micro, prologue, closing }: StepSource): Graph[] {
  return [...micro.values(), ...(prologue ? [...prologue.graphs.values(), prologue.close] : []), closing];
}

/** Specs of all persistent tensors that a step's graphs read, each asked for once. */
export function parameterSpecs(source: StepSource, specOf: (id: string) => ValueSpec): Map<string, ValueSpec> {
  const ids = graphsOf(source).flatMap(({ nodes }) =>
    nodes.flatMap(({ op, params }) => (op === "parameter" ? [params.id as string] : [])),
  );
  return new Map([...new Set(ids)].map((id) => [id, specOf(id)]));
}

/** Where a fed input or a fetched result lies in the staging memory. */
export interface StagingEntry {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly offset: number;
  readonly bytes: number;
  readonly layout?: SequenceLayout;
  readonly values?: Int32Array;
}

/** Exact bytes of one device. */
export interface DevicePlan {
  readonly rank: number;
  /** Its pipeline stages, ascending. */
  readonly stages: readonly number[];
  /** What a step computes in: gradients, activations, scratch, in the same memory where they are not alive together. */
  readonly arenaBytes: number;
  /** The most of it that is alive at one moment: what no plan could be below. */
  readonly aliveBytes: number;
  /** Bytes of what microbatches keep from their forward to their backward, for all that are kept at once. */
  readonly activationBytes: number;
  /** The slots that keep it where there are several microbatches. */
  readonly pools: readonly PoolPlan[];
  /** Bytes of the parameters and optimizer state that the program binds. */
  readonly boundBytes: number;
  /** Bytes of the cells that keep the microbatches' results, gradients most of all. */
  readonly cellBytes: number;
  /** What is reserved for rows that other ranks may send to this device's experts. */
  readonly experts?: ExpertReserve | undefined;
  readonly instructions: number;
  /** Its runs of segments in order. */
  readonly runs: readonly PlannedRun[];
}

/** A compiled step: plain data. */
export interface CompiledStep {
  /** One program a device. */
  readonly programs: readonly Int32Array[];
  /** Ids of the persistent tensors each device's program binds, in the order of its bound buffers. */
  readonly bindings: readonly (readonly string[])[];
  /** Bytes of each of them, as they lie in memory. */
  readonly bindingBytes: readonly (readonly number[])[];
  readonly inputs: readonly StagingEntry[];
  readonly inputBytes: number;
  readonly outputs: readonly StagingEntry[];
  readonly outputBytes: number;
  readonly devices: readonly DevicePlan[];
  readonly cells: readonly Cell[];
  /** True where activations are split along their sequence over tp. */
  readonly sequenceParallel: boolean;
  readonly schedule: Schedule;
  /** The values that cross between stages. */
  readonly boundary: readonly BoundaryValue[];
  /** Predicted work of each stage for its first microbatch. */
  readonly work: readonly StageWork[];
  /** Predicted seconds of all microbatches on the pipeline, with transfers free: for comparing plans. */
  readonly seconds: number;
}

/** Sizes of the microbatches of a batch: the first ones hold one sample more. */
export function microbatchSizes(batchSize: number, microbatches: number): number[] {
  const base = Math.floor(batchSize / microbatches);
  return Array.from({ length: microbatches }, (_, m) => base + (m < batchSize - base * microbatches ? 1 : 0));
}

/**
 * Compiles a step for every device of the mesh. Throws PlanError for what cannot be run, before anything is allocated.
 */
export function compileStep(given: StepSource, options: StepOptions): CompiledStep {
  const { layout, batchSize, microbatches } = options;
  const sizes = microbatchSizes(batchSize, microbatches);
  if (batchSize > 0 && sizes.some((n) => n === 0)) {
    throw new PlanError(
      `a batch of ${batchSize} samples cannot be cut into ${microbatches} microbatches: one would be empty`,
    );
  }
  const source = withScatter(withSequences(given, layout), options, sizes);
  const micro = microGraphs(source, options, sizes);
  const deviceOfStage = stageDevices(options.schedule);
  const cells = cellsOf(micro, deviceOfStage);
  const prologue = compilePrologue(source, options, sizes, cells);
  const closing = closeDevices(source, options, cells, prologue);
  // Over several microbatches each cell is a sum of its own.
  const ties = sizes.length === 1 ? closing.map((graph) => graph && tieCells(graph, micro.get(sizes[0]!)!)) : [];
  return assemblePrograms({
    source,
    options,
    sizes,
    micro,
    cells,
    prologue,
    closing: closing.map((graph, column) => ties[column]?.graph ?? graph),
    tied: new Map(ties.flatMap((tie) => [...(tie?.tied ?? [])])),
    deviceOfStage,
  });
}

/** The closing graph of the devices at each coordinate along pp, sharded. */
function closeDevices(
  source: SplitSource,
  options: StepOptions,
  cells: readonly Cell[],
  prologue: Prologue | null,
): (Graph | null)[] {
  const columnOf = new Map(cells.map((c) => [c.name, c.column]));
  for (const { name } of prologue?.close.outputs ?? []) columnOf.set(name, prologue!.column);
  const parts = timed(options.passes, "close", () =>
    cutByStage(source.closing, options.layout.size("pp"), (name) => columnOf.get(name)),
  );
  return parts.map((graph, column) => {
    const own = cells.filter((c) => c.column === column);
    const whole = { outputsWhole: true, staysSplit: (name: string) => name.startsWith(updateName) };
    return graph && runGraphPasses(graph, { ...shardSources(source, options, own), ...whole }, options.passes);
  });
}

/** The microbatch graphs of all sizes, sharded and staged. */
function microGraphs(source: SplitSource, options: StepOptions, sizes: readonly number[]): Map<number, MicroGraph> {
  const graphs = alikeGraphs([...new Set(sizes)], (n, fixed) => {
    const ready = fixed.size === 0 ? source.ready?.get(n) : undefined;
    return ready ?? runGraphPasses(ofSize(source.micro, n), microSources(source, options, fixed), options.passes);
  });
  return tagCrossings(graphs);
}

/** The prologue's graphs, sharded, and the coordinate along pp of the devices that run it. */
export interface Prologue {
  readonly column: number;
  readonly graphs: ReadonlyMap<number, Graph>;
  readonly cells: readonly Cell[];
  readonly close: Graph;
}

function compilePrologue(
  source: SplitSource,
  options: StepOptions,
  sizes: readonly number[],
  cells: readonly Cell[],
): Prologue | null {
  if (!source.prologue) return null;
  const { at, close, graphs: traced } = source.prologue;
  const column = cells.find((c) => c.name === at)?.column ?? options.layout.size("pp") - 1;
  const graphs = alikeGraphs([...new Set(sizes)], (n, fixed) => {
    const outputSpec = (name: string): ValueSpec | null => fixed.get(name) ?? null;
    return runGraphPasses(ofSize(traced, n), { ...shardSources(source, options, []), outputSpec }, options.passes);
  });
  const first = graphs.get(sizes[0]!)!;
  const own = first.outputs.map(({ name, value }) => ({
    name,
    type: first.values[value]!.type,
    spec: first.values[value]!.spec!,
    column,
  }));
  const sources = { ...shardSources(source, options, own), outputsWhole: true };
  return { column, graphs, cells: own, close: runGraphPasses(close, sources, options.passes) };
}

/**
 * Cells of the microbatches' results; those that any stage can make are the last one's. Throws PlanError for one whose
 * stage depends on the microbatch's size.
 */
function cellsOf(micro: ReadonlyMap<number, MicroGraph>, deviceOfStage: readonly number[]): Cell[] {
  const [first, ...rest] = [...micro.values()];
  const cells = (of: MicroGraph): Cell[] =>
    of.graph.outputs.map(({ name, value }) => {
      const { type, spec, node } = of.graph.values[value]!;
      return { name, type, spec: spec!, column: deviceOfStage.at(of.graph.nodes[node]!.stage!)! };
    });
  const own = cells(first!);
  for (const other of rest.flatMap(cells)) {
    if (own.some((c) => c.name === other.name && c.column === other.column)) continue;
    throw new PlanError(`result "${other.name}" is made on different stages in microbatches of different sizes`);
  }
  return own;
}
