// trainStep: a loss on a model becomes one compiled step: forward, backward, clipping and update, over a whole mesh.
import os from "node:os";
import { expectNotNegative } from "../core/check.ts";
import { AbortedError, PlanError } from "../core/errors.ts";
import { LoadedStep } from "../compile/load.ts";
import { timed } from "../compile/passes.ts";
import {
  type Cell,
  type CompiledStep,
  type StepInput,
  type StepSource,
  compileStep,
  microbatchSizes,
} from "../compile/step.ts";
import type { ValueSpec } from "../ir/spec.ts";
import type { Optimizer } from "../optim/optimizer.ts";
import { scheduleMaker } from "../passes/schedule.ts";
import type { Precision } from "../passes/precision.ts";
import type { Mesh } from "../tensor/mesh.ts";
import type { Parameter } from "../tensor/parameter.ts";
import { checkBatch, checkTrainOptions } from "./check.ts";
import { type Placeable, Placement, seedWords } from "./placement.ts";
import { StepPlan } from "./plan.ts";
import type { ZeroLevel } from "./zero.ts";
import {
  type BatchField,
  type LossFunction,
  type TracedLoss,
  cellName,
  countGraph,
  parametersById,
  readIds,
  seedGraph,
  traceLoss,
  trainGraph,
} from "./trace.ts";
import { type Trained, type UpdateSource, normOrder, stateId, updateGraph } from "./update.ts";

/** Settings of trainStep(). */
export interface TrainStepOptions<Name extends string = string> {
  /** The loss of a batch: named terms, or a scalar that counts as the mean over samples. */
  readonly loss: LossFunction<Name>;
  readonly optimizer: Optimizer;
  /** Samples of a whole batch, over all devices and microbatches. */
  readonly batchSize: number;
  /** One sample of each of the batch's arrays. */
  readonly batch: Readonly<Record<Name, BatchField>>;
  /** Microbatches of a step; 1 without pipeline stages, else twice their number where the batch has so many samples. */
  readonly microbatches?: number;
  /** Order of a pipeline's work: "1f1b" (default) or "gpipe". */
  readonly schedule?: string;
  /** Compute type; parameters and optimizer state stay float32. */
  readonly precision?: Precision;
  /** Largest norm of the whole gradient; not clipped when absent or 0. */
  readonly clipNorm?: number;
  /** Of initial weights and dropout. */
  readonly seed?: number;
  /** What the mesh's fsdp axis splits: 1 the optimizer's state, 2 gradients too, 3 (default) parameters too. */
  readonly zero?: ZeroLevel;
  /** Pipeline stage of a module path; balanced by cost when absent. */
  readonly stageOf?: (path: string) => number;
  /** Told the seconds that each stage of compiling takes, as it is done. */
  readonly onTime?: (stage: string, seconds: number) => void;
}

/** What a step reports. */
export interface StepResult {
  /** Weighted sum of the terms' means, before the update. */
  readonly loss: number;
  readonly terms: Readonly<Record<string, number>>;
  /** Norm of the whole gradient before clipping. */
  readonly gradNorm: number;
  readonly learningRate: number;
  readonly step: number;
  readonly seconds: number;
  /** Set when the gradient was not finite: nothing was updated; the first module whose gradient is not finite. */
  readonly nonFinite?: string;
}

/** Options of one call. */
export interface StepCallOptions {
  /** This step's rate; the optimizer's by default. */
  readonly learningRate?: number;
  readonly signal?: AbortSignal;
}

/** A batch's arrays, row-major, all samples in order. */
export type BatchData<Name extends string = string> = Readonly<Record<Name, ArrayLike<number>>>;

/** A compiled training step. */
export class TrainStep<Name extends string = string> implements Disposable {
  readonly plan: StepPlan;
  readonly placement: Placement;
  /** Steps done; set it to resume. */
  step = 0;
  readonly #loaded: LoadedStep;
  readonly #options: TrainStepOptions<Name>;
  readonly #source: UpdateSource;
  readonly #samples: Int32Array;

  /** Use trainStep(). */
  constructor(parts: {
    loaded: LoadedStep;
    plan: StepPlan;
    placement: Placement;
    options: TrainStepOptions<Name>;
    source: UpdateSource;
  }) {
    this.#loaded = parts.loaded;
    this.plan = parts.plan;
    this.placement = parts.placement;
    this.#options = parts.options;
    this.#source = parts.source;
    this.#samples = Int32Array.from({ length: parts.options.batchSize }, (_, i) => i);
  }

  /**
   * Runs one step on a whole batch. Rejects with DataError or ShapeError for a batch that is not as its fields say, and with
   * AbortedError when the signal has fired before the step begins.
   */
  async run(batch: BatchData<Name>, options: StepCallOptions = {}): Promise<StepResult> {
    const { optimizer, seed = 0, batchSize } = this.#options;
    const { signal } = options;
    if (signal?.aborted)
      throw new AbortedError("the step was not begun: its signal is aborted", { cause: signal.reason });
    const step = this.step + 1;
    const learningRate = options.learningRate ?? optimizer.learningRate;
    expectNotNegative("learningRate", learningRate);
    const scalars = optimizer.scalars(step);
    const inputs: Record<string, ArrayLike<number>> = {
      ...checkBatch(this.#options.batch, batch, batchSize),
      learningRate: [learningRate],
      $key: seedWords(seed, step),
      $samples: this.#samples,
    };
    optimizer.scalarNames.forEach((name, i) => {
      inputs[name] = [scalars[i]!];
    });
    const began = performance.now();
    const results = await this.#loaded.run(inputs);
    this.step = step;
    const terms = Object.fromEntries(this.#source.terms.map((t) => [t, results.get(`loss ${t}`)![0]!]));
    const gradNorm = results.get("gradNorm")![0]!;
    const nonFinite = Number.isFinite(gradNorm) ? undefined : this.#culprit(results.get("squares")!);
    return {
      loss: Object.values(terms).reduce((a, b) => a + b, 0),
      terms,
      gradNorm,
      learningRate,
      step,
      seconds: (performance.now() - began) / 1000,
      ...(nonFinite === undefined ? {} : { nonFinite }),
    };
  }

  #culprit(squares: ArrayLike<number>): string {
    const order = normOrder(this.#source);
    const bad = new Set(order.filter((_, i) => !Number.isFinite(squares[i]!)));
    return this.#source.trained.find((t) => bad.has(t))?.parameter.path ?? "the whole gradient";
  }

  [Symbol.dispose](): void {
    this.#loaded[Symbol.dispose]();
  }
}

/**
 * Compiles a training step of a model for a mesh, places the model there, and loads the programs. Throws PlanError,
 * ShapeError, ... for what cannot run, before any memory is allocated.
 */
export async function trainStep<Name extends string>(
  mesh: Mesh,
  model: Placeable,
  options: TrainStepOptions<Name>,
): Promise<TrainStep<Name>> {
  const { plan, compiled, placement, source } = planTrainStep(mesh, model, options);
  if (mesh.engine.kind === "cpu") plan.expectToFit(os.totalmem());
  await placeParameters(mesh, placement, compiled, source, options.seed ?? 0);
  const loaded = new LoadedStep(mesh.engine, mesh.store, compiled);
  return new TrainStep({ loaded, plan, placement, options, source });
}

/** A training step that is compiled, while nothing of it is on the devices yet. */
export interface PlannedTrainStep {
  /** The bytes and instructions of every device. */
  readonly plan: StepPlan;
  readonly compiled: CompiledStep;
  readonly placement: Placement;
  readonly source: UpdateSource;
}

/** The first half of trainStep(): compiles, and allocates nothing. On a mesh of "null" devices it plans any layout. */
export function planTrainStep<Name extends string>(
  mesh: Mesh,
  model: Placeable,
  options: TrainStepOptions<Name>,
): PlannedTrainStep {
  checkTrainOptions(mesh, model, options as TrainStepOptions);
  const stages = mesh.layout.size("pp");
  const microbatches = options.microbatches ?? (stages > 1 ? Math.min(2 * stages, options.batchSize) : 1);
  const placement = new Placement(mesh, model, options.stageOf, options.zero);
  const sizes = [...new Set(microbatchSizes(options.batchSize, microbatches))];
  const byId = parametersById(placement.parameters);
  const passes = { precision: options.precision ?? "f32", ...(options.onTime ? { onTime: options.onTime } : {}) };
  const trace = (n: number): TracedLoss => traceLoss(options.loss as LossFunction, options.batch, n);
  const traces = new Map(sizes.map((n) => [n, timed(passes, "trace", () => trace(n))]));
  const first = traces.get(sizes[0]!)!;
  const ids = readIds(first);
  const trainable = (id: string): boolean => byId.get(id)?.frozen === false;
  let source: UpdateSource | undefined;
  const sourceOf = (cells: readonly Cell[]): UpdateSource =>
    (source ??= updateSource(first, ids, cells, placement, options as TrainStepOptions, stages));
  let all: readonly Cell[] = [];
  const step: StepSource = {
    inputs: stepInputs(options as TrainStepOptions),
    micro: (n) => trainGraph(traces.get(n)!, trainable),
    prologue: {
      graph: (n) => countGraph(traces.get(n)!),
      close: seedGraph(first),
      at: cellName.sum(first.terms[0]!.name),
    },
    onCells: (cells) => {
      all = cells;
    },
    close: (stage, cells) => updateGraph(sourceOf(all), stage, cells),
  };
  const gradientOf = (name: string) =>
    name.startsWith("grad ") ? placement.parameterOf(ids[Number(name.slice(5))]!) : null;
  const ofGradient = (name: string, spec: (p: Parameter) => ValueSpec): ValueSpec | null => {
    const parameter = gradientOf(name);
    return parameter && spec(parameter);
  };
  const compiled = compileStep(step, {
    layout: mesh.layout,
    batchSize: options.batchSize,
    microbatches,
    schedule: scheduleMaker(options.schedule ?? "1f1b"),
    stageOfPath: (path) => placement.stages.stageOf(path),
    parameterSpec: (id) => placement.specOf(id),
    usedSpec: (id) => placement.usedSpec(placement.parameterOf(id)),
    cellSpec: (name) => (placement.splitsGradients ? ofGradient(name, (p) => placement.stateSpec(p)) : null),
    wantedSpec: (name) => ofGradient(name, (p) => placement.usedSpec(p)),
    passes,
    refuseIdle: true,
  });
  return { plan: new StepPlan(mesh, compiled, placement), compiled, placement, source: sourceOf(all) };
}

function stepInputs(options: TrainStepOptions): StepInput[] {
  const scalar = (name: string): StepInput => ({ name, dtype: "f32", shape: [1], batch: false });
  return [
    ...Object.entries(options.batch).map(([name, f]) => ({ name, dtype: f.dtype, shape: [...f.shape], batch: true })),
    { name: "$samples", dtype: "i32", shape: [], batch: true },
    { name: "$key", dtype: "i32", shape: [3], batch: false },
    scalar("learningRate"),
    ...options.optimizer.scalarNames.map(scalar),
  ];
}

function updateSource(
  traced: TracedLoss,
  ids: readonly string[],
  cells: readonly Cell[],
  placement: Placement,
  options: TrainStepOptions,
  stages: number,
): UpdateSource {
  const stageOfRead = new Map(
    cells.filter((c) => c.name.startsWith("grad ")).map((c) => [Number(c.name.slice(5)), c.stage]),
  );
  const trained: Trained[] = [];
  for (const parameter of placement.parameters) {
    const reads = ids.flatMap((id, i) => (id === parameter.id && stageOfRead.has(i) ? [i] : []));
    if (reads.length === 0) continue;
    const own = [...new Set(reads.map((r) => stageOfRead.get(r)!))].sort((a, b) => a - b);
    trained.push({ parameter, reads, stages: own });
  }
  if (trained.length === 0) throw new PlanError("the loss depends on no trainable parameter");
  return {
    trained,
    terms: traced.terms.map((t) => t.name),
    optimizer: options.optimizer,
    clipNorm: options.clipNorm ?? 0,
    stages,
    stateSpec: (p) => placement.stateSpec(p),
    specOf: (p) => placement.spec(p),
  };
}

/** Fills parameters where programs bind them, and makes zeroed optimizer state beside them. */
async function placeParameters(
  mesh: Mesh,
  placement: Placement,
  compiled: CompiledStep,
  source: UpdateSource,
  seed: number,
): Promise<void> {
  const readers = new Map<string, Set<number>>();
  compiled.bindings.forEach((ids, rank) => {
    for (const id of ids) {
      const stages = readers.get(id) ?? new Set();
      readers.set(id, stages.add(mesh.layout.coordinates(rank).pp ?? 0));
    }
  });
  const stagesOf = (id: string): number[] => [...(readers.get(id) ?? [0])].sort((a, b) => a - b);
  for (const parameter of placement.parameters) await placement.place(parameter, stagesOf(parameter.id), seed);
  for (const { parameter } of source.trained) {
    for (const name of source.optimizer.state) {
      const id = stateId(parameter, name);
      const { dtype, shape } = parameter;
      mesh.store.allocate(id, { dtype, shape, spec: placement.stateSpec(parameter), stages: stagesOf(id) });
    }
  }
}
