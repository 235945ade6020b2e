// trainStep: a loss on a model becomes one compiled step: forward, backward, clipping and update, over a whole mesh.
import os from "node:os";
import { setImmediate } from "node:timers/promises";
import { type CheckpointState, lossScaleName, type StateTensor } from "../checkpoint/state.ts";
import { expectNotNegative, expectSignal } from "../core/check.ts";
import { AbortedError, PlanError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import { compile } from "../compile/background.ts";
import { LoadedStep } from "../compile/load.ts";
import { type PassOptions, timed } from "../compile/passes.ts";
import {
  type CellSpec,
  type CompiledStep,
  type SequenceParallel,
  type StepInput,
  type StepOptions,
  type StepSource,
  microbatchSizes,
  parameterSpecs,
} from "../compile/step.ts";
import { type Graph, outputTypes } from "../ir/graph.ts";
import type { ValueSpec } from "../ir/spec.ts";
import type { Optimizer } from "../optim/optimizer.ts";
import { ratesOf } from "../passes/cost.ts";
import { type RecomputePolicy, recomputePolicies } from "../passes/remat.ts";
import { stageDevices } from "../passes/schedule.ts";
import type { Regather } from "../passes/gather.ts";
import { scheduleMaker } from "../passes/schedules.ts";
import type { Precision } from "../passes/precision.ts";
import type { Mesh } from "../tensor/mesh.ts";
import type { Parameter } from "../tensor/parameter.ts";
import { checkBatch, checkTrainOptions } from "./check.ts";
import { type Placeable, Placement, seedWords } from "./placement.ts";
import { type RecomputeOutcome, recomputeOutcome, StepPlan } from "./plan.ts";
import { initialLossScale, lossScaleId } from "./loss-scale.ts";
import type { ZeroLevel } from "./zero.ts";
import {
  type BatchField,
  type LossFunction,
  type TracedLoss,
  batchInputs,
  cellName,
  countGraph,
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
  /**
   * Order of a pipeline's work: "gpipe", "1f1b" (default), "interleaved-1f1b", "zb-h1" or "zb-v". The same bits by all.
   */
  readonly schedule?: string;
  /** Stages that each device has under interleaved-1f1b; 2 by default. */
  readonly virtualStages?: number;
  /**
   * What the backward computes again instead of keeping it: "none", "selective" (attention, norms, elementwise work) or
   * "full" (all but what passes between blocks). The same bits by all. By default the first of them that fits the
   * memory.
   */
  readonly recompute?: RecomputePolicy;
  /** The plan tells memory and time of every policy of recomputation, which takes as many times as long to compile. */
  readonly compareRecompute?: boolean;
  /** Bytes that all devices together may take; by default what the machine has, where devices are its CPU. */
  readonly memory?: number;
  /** Compute type; parameters and optimizer state stay float32. */
  readonly precision?: Precision;
  /** Largest norm of the whole gradient; not clipped when absent or 0. */
  readonly clipNorm?: number;
  /** Of initial weights and dropout. */
  readonly seed?: number;
  /**
   * Sequence parallelism: activations split along their sequence over tp, between what tp splits otherwise; less
   * memory, about as much traffic. "auto" (default): where it is estimated to be faster.
   */
  readonly sequenceParallel?: SequenceParallel;
  /** What the mesh's fsdp axis splits: 1 the optimizer's state, 2 gradients too, 3 (default) parameters too. */
  readonly zero?: ZeroLevel;
  /**
   * How long parameters that are gathered for use (ZeRO-3) are kept: "segment" (default), each forward and backward
   * gathers anew; "step", they are gathered once a step: more memory, fewer exchanges with several microbatches.
   */
  readonly regather?: Regather;
  /** By how many layers such gathers precede their use: 1 on devices whose exchanges run beside computing, else 0. */
  readonly prefetch?: number;
  /** Most bytes of gradients, or of a layer's gathered parameters, in one exchange (a bucket): 25 MiB when absent. */
  readonly bucketBytes?: number;
  /** Pipeline stage of a module path; balanced by cost when absent. */
  readonly stageOf?: (path: string) => number;
  /** Told the seconds that each stage of compiling takes, as it is done. */
  readonly onTime?: (stage: string, seconds: number) => void;
  /** Gives compiling up: trainStep() rejects with AbortedError. */
  readonly signal?: AbortSignal;
}

/** What a step reports. */
export interface StepResult {
  /** Weighted sum of the terms' means, before the update. */
  readonly loss: number;
  /** Each term's mean times its weight; the mean alone of a term of weight 0, which is no part of the loss. */
  readonly terms: Readonly<Record<string, number>>;
  /** Norm of the whole gradient before clipping. */
  readonly gradNorm: number;
  readonly learningRate: number;
  readonly step: number;
  readonly seconds: number;
  /** Set when the gradient was not finite: nothing was updated; the first module whose gradient is not finite. */
  readonly nonFinite?: string;
  /**
   * By what the loss was multiplied, in precision fp16. It is halved where the gradient was not finite, which then
   * means an overflow of float16 and nothing worse, unless it was 1; and doubled after 2000 good steps in a row.
   */
  readonly lossScale?: number;
  /** Norm of each trained parameter's gradient before clipping, by its path. */
  gradNorms(): Map<string, number>;
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
   * Runs one step on a whole batch. Rejects with DataError or ShapeError for a batch that is not as its fields say, and
   * with AbortedError when the signal fires before the update has begun: at once, within the kernels that are running,
   * with weights, optimizer state and `step` as they were. An update that has begun is carried through, and the step
   * resolves.
   */
  async run(batch: BatchData<Name>, options: StepCallOptions = {}): Promise<StepResult> {
    const { optimizer, seed = 0, batchSize } = this.#options;
    const { signal } = options;
    expectSignal(signal);
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
    const results = await this.#loaded.run(inputs, signal);
    this.step = step;
    const { reported } = this.#source;
    const terms = Object.fromEntries(this.#source.terms.map((t) => [t, results.get(`loss ${t}`)![0]!]));
    const weighted = Object.entries(terms).filter(([name]) => !reported.includes(name));
    const gradNorm = results.get("gradNorm")![0]!;
    const squares = results.get("squares")!;
    const nonFinite = Number.isFinite(gradNorm) ? undefined : this.#culprit(squares);
    const lossScale = results.get("lossScale")?.[0];
    return {
      loss: weighted.reduce((sum, [, term]) => sum + term, 0),
      terms,
      gradNorm,
      learningRate,
      step,
      seconds: (performance.now() - began) / 1000,
      gradNorms: () =>
        new Map(normOrder(this.#source).map(({ parameter }, i) => [parameter.path, Math.sqrt(squares[i]!)])),
      ...(nonFinite === undefined ? {} : { nonFinite }),
      ...(lossScale === undefined ? {} : { lossScale }),
    };
  }

  /** What a checkpoint of this step keeps: parameters and optimizer state, named as in files. */
  state(record?: JsonObject): CheckpointState {
    const { parameters, mesh } = this.placement;
    const tensors = parameters.map((p): StateTensor => {
      return { name: p.stored.name, id: p.id, role: "parameter", stored: p.stored.shape };
    });
    for (const { parameter } of this.#source.trained) {
      const { name, shape } = parameter.stored;
      for (const state of this.#source.optimizer.state) {
        tensors.push({
          name: `optimizer.${state}.${name}`,
          id: stateId(parameter, state),
          role: "state",
          stored: shape,
        });
      }
    }
    const { scaleId } = this.#source;
    if (scaleId !== undefined) {
      tensors.push({ name: lossScaleName, id: scaleId, role: "state", stored: [2] });
    }
    return { mesh, step: this.step, tensors, ...(record ? { record } : {}) };
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
 * Compiles a training step of a model for a mesh, places the model there, and loads the programs. The loss is traced
 * before this returns; a large step is then compiled in a worker thread. Rejects with PlanError, ShapeError, ... for
 * what cannot run, before any memory is allocated.
 */
export async function trainStep<Name extends string>(
  mesh: Mesh,
  model: Placeable,
  options: TrainStepOptions<Name>,
): Promise<TrainStep<Name>> {
  const { plan, compiled, placement, source } = await planTrainStep(mesh, model, options);
  const { memory = mesh.engine.kind === "cpu" ? os.totalmem() : Number.POSITIVE_INFINITY } = options;
  plan.expectToFit(memory);
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
export async function planTrainStep<Name extends string>(
  mesh: Mesh,
  model: Placeable,
  options: TrainStepOptions<Name>,
): Promise<PlannedTrainStep> {
  checkTrainOptions(mesh, model, options as TrainStepOptions);
  const devices = mesh.layout.size("pp");
  const microbatches = options.microbatches ?? (devices > 1 ? Math.min(2 * devices, options.batchSize) : 1);
  const schedule = scheduleMaker(options.schedule ?? "1f1b", options.virtualStages)(devices, microbatches);
  const { stageOf, zero } = options;
  const placement = new Placement(mesh, model, { stageOf, zero, deviceOfStage: stageDevices(schedule) });
  const passes: PassOptions = {
    precision: options.precision ?? "f32",
    regather: options.regather ?? "segment",
    prefetch: options.prefetch ?? prefetchOf(mesh.engine.kind),
    ...(options.bucketBytes === undefined ? {} : { bucketBytes: options.bucketBytes }),
    ...(options.onTime ? { onTime: options.onTime } : {}),
  };
  const { step, source, ids } = await traceStep(placement, options as TrainStepOptions, microbatches, passes);
  const ofGradients = (spec: (p: Parameter) => ValueSpec): Map<string, ValueSpec> =>
    new Map(ids.map((id, read) => [cellName.grad(read), spec(placement.parameterOf(id))]));
  const how: StepOptions = {
    layout: mesh.layout,
    batchSize: options.batchSize,
    microbatches,
    schedule,
    stageOfBlock: placement.stages.stageOfBlock,
    parameterSpecs: parameterSpecs(step, (id) => placement.specOf(id)),
    usedSpecs: parameterSpecs(step, (id) => placement.usedSpecOf(id)),
    cellSpecs: gradientCells(placement, ids, microbatches),
    wantedSpecs: ofGradients((p) => placement.usedSpec(p)),
    sequenceParallel: options.sequenceParallel ?? "auto",
    rates: ratesOf(mesh.engine.kind),
    passes,
    refuseIdle: true,
  };
  const memory = options.memory ?? (mesh.engine.kind === "cpu" ? os.totalmem() : Number.POSITIVE_INFINITY);
  const { policy, compiled, policies } = await chooseRecompute(
    (recompute) => compile(step, { ...how, recompute }, options.signal),
    options as TrainStepOptions,
    memory,
  );
  return { plan: new StepPlan(mesh, compiled, placement, policy, policies), compiled, placement, source };
}

/**
 * Compiles with the policy that is asked for, or with the first that fits the memory; with all where they are to be
 * compared.
 */
async function chooseRecompute(
  compiledWith: (policy: RecomputePolicy) => CompiledStep | Promise<CompiledStep>,
  { recompute, compareRecompute }: TrainStepOptions,
  memory: number,
): Promise<{ policy: RecomputePolicy; compiled: CompiledStep; policies: RecomputeOutcome[] }> {
  const policies: RecomputeOutcome[] = [];
  let chosen: { policy: RecomputePolicy; compiled: CompiledStep } | undefined;
  for (const policy of recompute === undefined || compareRecompute ? recomputePolicies : [recompute]) {
    const compiled = await compiledWith(policy);
    const outcome = recomputeOutcome(policy, compiled);
    policies.push(outcome);
    const last = policy === recomputePolicies.at(-1);
    const fits = recompute === undefined ? outcome.bytes <= memory || last : policy === recompute;
    if (fits) chosen ??= { policy, compiled };
    if (chosen && !compareRecompute) break;
  }
  if (!chosen) throw new PlanError("there is no policy of recomputation to choose from");
  return { ...chosen, policies };
}

/** A device that does one thing after the other would only hold more. */
function prefetchOf(kind: string): number {
  return kind === "cuda" ? 1 : 0;
}

/**
 * How gradients' cells lie. Split ones are scattered in each microbatch. Of a single microbatch every gradient is
 * summed and scattered in the backward, where the exchange overlaps with what follows; others are when all are added
 * up, once a step, as are those of parameters that are read several times, which are added up first.
 */
function gradientCells(placement: Placement, ids: readonly string[], microbatches: number): Map<string, CellSpec> {
  return new Map(
    ids.flatMap((id, read) => {
      const summed = microbatches === 1 && ids.indexOf(id) === ids.lastIndexOf(id);
      if (!summed && !placement.splitsGradients) return [];
      return [[cellName.grad(read), { spec: placement.stateSpec(placement.parameterOf(id)), summed }]];
    }),
  );
}

/**
 * The step's graphs, what its update is made from, and the ids of its parameter reads. The loss is traced at the call.
 */
async function traceStep(
  placement: Placement,
  options: TrainStepOptions,
  microbatches: number,
  passes: PassOptions,
): Promise<{ step: StepSource; source: UpdateSource; ids: readonly string[] }> {
  const sizes = [...new Set(microbatchSizes(options.batchSize, microbatches))];
  const trace = (n: number): TracedLoss => traceLoss(options.loss as LossFunction, options.batch, n);
  const traces = new Map(sizes.map((n) => [n, timed(passes, "trace", () => trace(n))]));
  const first = traces.get(sizes[0]!)!;
  const ids = readIds(first);
  for (const id of ids) placement.parameterOf(id); // refuses those of other models
  const trainable = new Set(placement.parameters.flatMap((p) => (p.frozen ? [] : [p.id])));
  const micro = new Map<number, Graph>();
  for (const [n, traced] of traces) {
    await setImmediate(); // the event loop comes round between the parts of a large model's tracing
    micro.set(
      n,
      timed(passes, "trace", () => trainGraph(traced, (id) => trainable.has(id))),
    );
  }
  await setImmediate();
  const source = updateSource(first, ids, micro.get(sizes[0]!)!, placement, options);
  const step: StepSource = {
    inputs: stepInputs(options),
    micro,
    prologue: {
      graphs: new Map([...traces].map(([n, traced]) => [n, countGraph(traced)])),
      close: seedGraph(first, source.scaleId),
      at: cellName.sum(first.terms[0]!.name),
    },
    closing: timed(passes, "trace", () => updateGraph(source)),
  };
  await setImmediate();
  return { step, source, ids };
}

function stepInputs(options: TrainStepOptions): StepInput[] {
  const scalar = (name: string): StepInput => ({ name, dtype: "f32", shape: [1], batch: false });
  return [
    ...batchInputs(options.batch),
    { name: "$samples", dtype: "i32", shape: [], batch: true },
    { name: "$key", dtype: "i32", shape: [3], batch: false },
    scalar("learningRate"),
    ...options.optimizer.scalarNames.map(scalar),
  ];
}

function updateSource(
  traced: TracedLoss,
  ids: readonly string[],
  micro: Graph,
  placement: Placement,
  options: TrainStepOptions,
): UpdateSource {
  const cells = outputTypes(micro);
  const trained: Trained[] = placement.parameters.flatMap((parameter) => {
    const reads = ids.flatMap((id, i) => (id === parameter.id && cells.has(cellName.grad(i)) ? [i] : []));
    return reads.length > 0 ? [{ parameter, reads }] : [];
  });
  if (trained.length === 0) throw new PlanError("the loss depends on no trainable parameter");
  return {
    trained,
    terms: traced.terms.map((t) => t.name),
    reported: traced.terms.filter((t) => t.weight === 0).map((t) => t.name),
    optimizer: options.optimizer,
    clipNorm: options.clipNorm ?? 0,
    cells,
    columns: placement.mesh.layout.size("pp"),
    ...(options.precision === "fp16" ? { scaleId: lossScaleId(placement) } : {}),
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
      const columns = readers.get(id) ?? new Set();
      readers.set(id, columns.add(mesh.layout.coordinates(rank).pp ?? 0));
    }
  });
  const columnsOf = (id: string): number[] => [...(readers.get(id) ?? [0])].sort((a, b) => a - b);
  for (const parameter of placement.parameters) await placement.place(parameter, columnsOf(parameter.id), seed);
  for (const { parameter } of source.trained) {
    for (const name of source.optimizer.state) {
      const id = stateId(parameter, name);
      const { dtype, shape } = parameter;
      mesh.store.allocate(id, { dtype, shape, spec: placement.stateSpec(parameter), columns: columnsOf(id) });
    }
  }
  const { scaleId } = source;
  if (scaleId === undefined || mesh.store.has(scaleId)) return;
  mesh.store.allocate(scaleId, {
    dtype: "f32",
    shape: [2],
    spec: placement.specOf(scaleId),
    columns: columnsOf(scaleId),
  });
  mesh.store.write(scaleId, initialLossScale());
}
