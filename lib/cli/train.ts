// `meshwork train`: data, model, mesh, the training loop, evaluation, a sample, and the saved run.
import type { Precision } from "../passes/precision.ts";
import type { StorageArray } from "../core/dtype.ts";
import { AbortedError, NonFiniteError, UsageError } from "../core/errors.ts";
import { Generator } from "../evaluate/generate.ts";
import { createSampler } from "../evaluate/sampler.ts";
import type { LanguageModel } from "../nn/language-model.ts";
import { createModel, fileTensors, loadModel } from "../nn/load.ts";
import { adamw } from "../optim/optimizer.ts";
import { constant, cosine, type LearningRateSchedule } from "../optim/schedules.ts";
import { Mesh } from "../tensor/mesh.ts";
import type { TrainEvent } from "../train/events.ts";
import { type ForwardStep, lossStep } from "../train/forward.ts";
import { RunFolder } from "../train/run-folder.ts";
import { type StepResult, type TrainStep, trainStep } from "../train/step.ts";
import type { GivenFlag } from "./flags.ts";
import { type CliIo, EXIT } from "./io.ts";
import { createLog, type Log } from "./log.ts";
import { precisionOn } from "./precision.ts";
import { type PreparedTraining, prepareTraining } from "./prepare-training.ts";
import { findResumption, hasCheckpoints, type Resumption } from "./resume.ts";
import { overflowed, RunCheckpoints } from "./run-checkpoints.ts";
import { RunProfile } from "./run-profile.ts";
import { runRecord } from "./run-record.ts";
import type { TrainOptions } from "./train-flags.ts";

/** Steps in a row without a finite gradient after which training gives up. */
const mostSkipped = 10;
/** Tokens of the sample that ends a run. */
const sampleTokens = 256;

/** A run whose type to compute in is decided. */
type Prepared = PreparedTraining & { readonly settings: { readonly precision: Precision } };

/** Everything a running training uses. */
interface Run {
  readonly prepared: Prepared;
  readonly model: LanguageModel;
  readonly mesh: Mesh;
  readonly step: TrainStep<"inputs" | "targets">;
  readonly folder: RunFolder;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly options: TrainOptions;
  readonly given: ReadonlyMap<string, GivenFlag>;
  /** The run that is gone on with. */
  readonly resumption: Resumption | undefined;
  emit(event: TrainEvent): void;
}

/** Runs the verb; returns the exit code. */
export async function runTrain(
  flags: TrainOptions,
  io: CliIo,
  givenNow: ReadonlyMap<string, GivenFlag> = new Map(),
): Promise<number> {
  const resumption = flags.resume === undefined ? undefined : await findResumption(flags, givenNow);
  const { options, given } = resumption ?? { options: flags, given: givenNow };
  if (resumption === undefined && options.out !== undefined && (await hasCheckpoints(options.out))) {
    throw new UsageError(
      `--out ${options.out}: it holds the checkpoints of a run; go on with it by --resume ${options.out}, or name another folder`,
    );
  }
  const asked = await prepareTraining(options);
  const { settings } = asked;
  const out = resumption?.runFolder ?? options.out;
  await using folder = await RunFolder.create({ out, name: asked.name });
  const log = createLog({ log: options.log, io, steps: settings.steps });
  const axes = Object.fromEntries(Object.entries(settings.mesh).filter(([, n]) => n > 1));
  try {
    await using mesh = await Mesh.open({ device: settings.device, axes });
    const precision = precisionOn(mesh.engine.kind, settings.precision);
    const prepared = { ...asked, settings: { ...settings, precision } };
    const model =
      prepared.weightsFrom === undefined
        ? createModel(prepared.config)
        : await loadModel(prepared.weightsFrom, prepared.config);
    using step = await compileTraining(mesh, model, prepared);
    const emit = (event: TrainEvent): void => {
      log.event(event);
      folder.metric(event);
    };
    return await train({
      prepared,
      model,
      mesh,
      step,
      folder,
      log,
      signal: io.signal,
      options,
      // A run that goes on elsewhere computes in the same type, whatever is best there.
      given: new Map([...given, ["precision", given.get("precision") ?? { json: precision }]]),
      resumption,
      emit,
    });
  } finally {
    log.close();
  }
}

function compileTraining(
  mesh: Mesh,
  model: LanguageModel,
  prepared: Prepared,
): Promise<TrainStep<"inputs" | "targets">> {
  const { settings } = prepared;
  return trainStep(mesh, model, {
    loss: (batch) => model.loss(batch.inputs, batch.targets),
    optimizer: adamw(settings),
    batchSize: settings.batchSize,
    batch: model.batchFields(settings.seqLen),
    microbatches: settings.microbatches,
    schedule: settings.schedule,
    ...(settings.virtualStages === undefined ? {} : { virtualStages: settings.virtualStages }),
    ...(settings.recompute === undefined ? {} : { recompute: settings.recompute }),
    compareRecompute: true,
    zero: settings.zero,
    sequenceParallel: settings.sequenceParallel,
    precision: settings.precision,
    clipNorm: settings.clipNorm,
    seed: settings.seed,
  });
}

async function train(run: Run): Promise<number> {
  const { prepared, step, folder, log, signal, emit, model } = run;
  const { settings, dataset } = prepared;
  await using checkpoints = await RunCheckpoints.open(run, run.resumption);
  await folder.writeRecord(await runRecord(prepared, { mesh: String(run.mesh.layout), devices: step.plan.devices }));
  emit({
    type: "plan",
    devices: step.plan.devices.map(({ runs: _, ...d }) => d),
    mesh: step.plan.mesh,
    parameters: countParameters(model),
    recompute: step.plan.recompute,
    policies: step.plan.policies,
  });
  using generator = new Generator(step.placement, model, settings.precision);
  using evaluation = dataset.validationSamples > 0 ? await compileEvaluation(run) : null;
  const wantsSample = prepared.data.tokenizer !== undefined;
  if (wantsSample) await generator.prepare(Math.min(model.config.maxPositions, sampleTokens));
  const rate = learningRates(prepared);
  const profile = await RunProfile.open(run, settings.steps);
  await checkpoints.begin();
  while (step.step < settings.steps && !signal.aborted) {
    const batch = dataset.batchAt(checkpoints.position);
    profile.before(step.step + 1);
    const result = await unlessAborted(
      step.run({ inputs: batch.inputs, targets: batch.targets }, { learningRate: rate(step.step + 1), signal }),
      signal,
    );
    if (result === undefined) break;
    profile.after(result);
    const { loss, seconds, gradNorm, learningRate } = result;
    const tokens = settings.batchSize * settings.seqLen;
    if (result.nonFinite !== undefined) log.note(skipText(result));
    emit({
      type: "step",
      step: result.step,
      loss,
      gradNorm,
      learningRate,
      tokens,
      seconds,
      tokensPerSecond: tokens / seconds,
      ...(Object.keys(result.terms).length > 1 ? { terms: result.terms } : {}),
      ...(result.lossScale === undefined ? {} : { lossScale: result.lossScale }),
      ...(result.nonFinite === undefined ? {} : { skipped: true, module: result.nonFinite }),
    });
    await checkpoints.after(result);
    if (checkpoints.skipped >= mostSkipped) {
      if (run.options.onSpike === "rollback") {
        await checkpoints.rollBack(result.step);
        continue;
      }
      await save(run);
      throw new NonFiniteError(
        `the gradient was not finite in ${checkpoints.skipped} steps in a row, last in step ${result.step} (${result.nonFinite}); ` +
          "a smaller --learning-rate or --clip-norm may help; the weights before are saved",
        { details: { step: result.step, module: result.nonFinite } },
      );
    }
    const due = settings.evalEvery > 0 && step.step % settings.evalEvery === 0;
    if (evaluation && due && step.step < settings.steps && !signal.aborted) await evaluate(run, evaluation);
    await checkpoints.saveIfDue();
  }
  await profile.write();
  if (signal.aborted) {
    await checkpoints.save({ wait: true });
    await save(run);
    log.note(
      `interrupted after step ${step.step}; the model is saved in ${folder.modelPath}; ` +
        `go on with: meshwork train --resume ${folder.path}`,
    );
    await folder.flush();
    return EXIT.interrupted;
  }
  if (evaluation) await evaluate(run, evaluation);
  if (run.options.checkpointEvery > 0) await checkpoints.save({ wait: true });
  await save(run);
  if (wantsSample) await sample(run, generator);
  emit({ type: "done", steps: step.step, loss: checkpoints.loss, out: folder.path });
  await folder.flush();
  return EXIT.done;
}

/** What is said of a step that changed nothing. */
function skipText(result: StepResult): string {
  const { step, nonFinite, lossScale } = result;
  if (overflowed(result)) {
    return `step ${step}: the gradient of ${nonFinite} overflows float16 at loss scale ${lossScale}; the scale is halved`;
  }
  return `step ${step}: the gradient of ${nonFinite} is not finite; weights are left as they are`;
}

/** What a promise gives, or undefined where the signal gave it up. */
async function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T | undefined> {
  try {
    return await promise;
  } catch (error) {
    if (error instanceof AbortedError && signal.aborted) return undefined;
    throw error;
  }
}

function countParameters(model: LanguageModel): number {
  return model.parameters().reduce((n, p) => n + p.shape.reduce((a, b) => a * b, 1), 0);
}

function learningRates({ settings }: PreparedTraining): LearningRateSchedule {
  const { learningRate, warmup, steps } = settings;
  return settings.lrSchedule === "constant"
    ? constant({ learningRate, warmupSteps: warmup })
    : cosine({ learningRate, warmupSteps: warmup, totalSteps: steps, finalFraction: 0.1 });
}

function compileEvaluation(run: Run): Promise<ForwardStep> {
  const { model, prepared, step } = run;
  const { settings } = prepared;
  model.eval();
  const compiled = lossStep(
    step.placement,
    (b) => model.loss(b.inputs!, b.targets!),
    { ...model.batchFields(settings.seqLen) },
    {
      batchSize: settings.batchSize,
      microbatches: settings.microbatches,
      precision: settings.precision,
      sequenceParallel: settings.sequenceParallel,
    },
  );
  model.train();
  return compiled;
}

/** Mean loss over all held-out samples; the last batch is filled up with targets that count for nothing. */
async function evaluate(run: Run, evaluation: ForwardStep): Promise<void> {
  const { settings, dataset } = run.prepared;
  let total = 0;
  let samples = 0;
  for (const batch of dataset.validationBatches(settings.batchSize)) {
    if (run.signal.aborted) return;
    const inputs = new Int32Array(settings.batchSize * settings.seqLen);
    const targets = new Int32Array(inputs.length).fill(-100);
    inputs.set(batch.inputs);
    targets.set(batch.targets);
    const results = await evaluation.run({ inputs, targets });
    total += results.get("loss loss")![0]! * batch.samples;
    samples += batch.samples;
  }
  run.emit({ type: "eval", step: run.step.step, loss: total / samples });
}

async function sample(run: Run, generator: Generator): Promise<void> {
  const { tokenizer } = run.prepared.data;
  if (!tokenizer) return;
  const ids = [...tokenizer.encode("\n")];
  const made: number[] = [];
  const options = {
    maxTokens: sampleTokens,
    sample: createSampler({ temperature: 0.7, seed: run.prepared.settings.seed }),
    signal: run.signal,
  };
  try {
    for await (const { id } of generator.tokens(ids.length > 0 ? ids : [0], options)) made.push(id);
  } catch (cause) {
    if (!(cause instanceof NonFiniteError)) throw cause;
    throw new NonFiniteError(
      `the trained model gives logits that are not finite (${cause.message}): a smaller --learning-rate may help; ` +
        `the model is saved in ${run.folder.modelPath} all the same`,
      { cause, details: cause.details },
    );
  }
  run.emit({ type: "sample", text: tokenizer.decode(made) });
}

async function save({ model, mesh, folder, prepared }: Run): Promise<void> {
  const tensors = fileTensors(model, (p) => asFloat32(mesh.store.read(p.id)));
  await folder.saveModel({ config: prepared.configJson, tensors, tokenizerFiles: prepared.data.tokenizer?.files });
}

function asFloat32(values: StorageArray): Float32Array {
  return values instanceof Float32Array ? values : Float32Array.from(values);
}
