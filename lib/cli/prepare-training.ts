// From `train`'s flags to everything a run needs but devices: model config, data, and every setting decided.
import { stat } from "node:fs/promises";
import path from "node:path";
import { findWeights } from "../checkpoint/safetensors.ts";
import { DataError, UsageError } from "../core/errors.ts";
import { nearest } from "../core/nearest.ts";
import { Dataset, DEFAULT_VALIDATION_FRACTION } from "../data/dataset.ts";
import { openData, type TokenData } from "../data/source.ts";
import { type ConfigJson, type ModelConfig, parseModelConfig, readModelConfig } from "../nn/config.ts";
import { folderDefaults, type Preset, presetConfig, presets, type TrainingDefaults } from "../train/presets.ts";
import { defaultZero, type ZeroLevel } from "../train/zero.ts";
import { type MeshSizes, ONE_DEVICE } from "./mesh-flag.ts";
import type { TrainOptions } from "./train-flags.ts";

/** Every setting of a run, decided. */
export interface TrainSettings extends TrainingDefaults {
  readonly order: "shuffle" | "sequential";
  readonly validationFraction: number;
  readonly microbatches: number;
  readonly mesh: MeshSizes;
  readonly zero: ZeroLevel;
  readonly sequenceParallel: TrainOptions["sequenceParallel"];
  readonly device: "auto" | "cpu" | "cuda";
  readonly schedule: NonNullable<TrainOptions["schedule"]>;
  readonly virtualStages: number | undefined;
  /** Undefined: the first that fits. */
  readonly recompute: TrainOptions["recompute"];
  /** Undefined: what is best on the device. */
  readonly precision: TrainOptions["precision"];
  readonly seed: number;
}

/** A run, ready to be planned. */
export interface PreparedTraining {
  /** For the run folder: the preset's name or the model folder's. */
  readonly name: string;
  readonly config: ModelConfig;
  /** To be saved as config.json. */
  readonly configJson: ConfigJson;
  /** Folder whose weights to start from; undefined: start afresh. */
  readonly weightsFrom: string | undefined;
  readonly data: TokenData;
  readonly dataset: Dataset;
  readonly settings: TrainSettings;
}

type ModelSource =
  | { readonly kind: "preset"; readonly name: string; readonly preset: Preset }
  | {
      readonly kind: "folder";
      readonly name: string;
      readonly folder: string;
      readonly config: ModelConfig;
      readonly json: ConfigJson;
    };

/**
 * Decides all settings, reads the data and checks that they fit each other.
 * @throws {UsageError} for flags that contradict each other; ConfigError, DataError, CheckpointError for what they
 * name.
 */
export async function prepareTraining(options: TrainOptions): Promise<PreparedTraining> {
  const source = await findModel(options);
  const weightsFrom = await findInitialWeights(source, options.init);
  const data = await openData({
    paths: options.data,
    field: options.field,
    tokenizer: options.tokenizer,
    modelFolder: source.kind === "folder" ? source.folder : undefined,
  });
  const { config: own, json } = modelConfig(source, options, data);
  const config = withCapacity(own, options.capacityFactor);
  const defaults =
    source.kind === "preset" ? source.preset.training : folderDefaults(weightsFrom !== undefined, config.maxPositions);
  let settings = decide(options, defaults);
  if (settings.seqLen > config.maxPositions) {
    throw new UsageError(`--seq-len ${settings.seqLen}: the model has ${config.maxPositions} positions`);
  }
  checkVocabulary(source, config, data);
  const { seqLen, batchSize, order, seed, validationFraction } = settings;
  const dataset = new Dataset({ tokens: data.tokens, seqLen, batchSize, order, seed, validationFraction });
  // Data in sequence may end before the preset's steps; only steps that were asked for are insisted on.
  if (options.steps === undefined && dataset.steps < settings.steps) {
    settings = decide({ ...options, steps: dataset.steps }, defaults);
  }
  dataset.requireSteps(settings.steps);
  return { name: source.name, config, configJson: json, weightsFrom, data, dataset, settings };
}

/** The config with a bound on the experts' choices. */
function withCapacity(config: ModelConfig, capacityFactor: number | undefined): ModelConfig {
  if (capacityFactor === undefined) return config;
  if (config.architecture === "gpt2" || config.experts === undefined) {
    throw new UsageError("--capacity-factor bounds what experts take; the model has none");
  }
  if (capacityFactor === 0) throw new UsageError("--capacity-factor 0: a number above 0 is expected");
  return { ...config, experts: { ...config.experts, capacityFactor } };
}

async function findModel(options: TrainOptions): Promise<ModelSource> {
  const { model } = options;
  const isFolder = await stat(model).then(
    (found) => found.isDirectory(),
    () => false,
  );
  if (isFolder) {
    for (const name of ["layers", "width", "heads", "kvHeads", "vocab"] as const) {
      if (options[name] !== undefined) {
        throw new UsageError(`--${name === "kvHeads" ? "kv-heads" : name} changes a preset; ${model} is a folder`);
      }
    }
    const { config, json } = await readModelConfig(model);
    return { kind: "folder", name: path.basename(path.resolve(model)), folder: model, config, json };
  }
  const preset = presets.get(model);
  if (preset !== undefined) return { kind: "preset", name: model, preset };
  const names = [...presets.keys()];
  throw new UsageError(
    `--model ${model}: neither a folder nor a preset (${names.join(", ")}); the nearest is "${nearest(model, names)}"`,
  );
}

async function findInitialWeights(source: ModelSource, init: TrainOptions["init"]): Promise<string | undefined> {
  if (init === "random") return undefined;
  if (source.kind === "preset") {
    if (init === "weights") throw new UsageError(`--init weights: the preset ${source.name} has none; name a folder`);
    return undefined;
  }
  const found = await findWeights(source.folder);
  if (found === undefined && init === "weights") throw new UsageError(`--init weights: ${source.folder} has none`);
  return found === undefined ? undefined : source.folder;
}

function modelConfig(
  source: ModelSource,
  options: TrainOptions,
  { tokenizer }: TokenData,
): { config: ModelConfig; json: ConfigJson } {
  if (source.kind === "folder") return source;
  const follows = source.preset.vocabOfTokenizer || options.tokenizer !== undefined;
  const vocab = options.vocab ?? (follows ? tokenizer?.vocabSize : undefined);
  const json = presetConfig(source.preset, { ...options, vocab });
  return { config: parseModelConfig(json, `preset ${source.name}`), json };
}

function decide(options: TrainOptions, defaults: TrainingDefaults): TrainSettings {
  const steps = options.steps ?? defaults.steps;
  const batchSize = options.batchSize ?? defaults.batchSize;
  const mesh = options.mesh ?? ONE_DEVICE;
  // A short run warms up for a tenth of it at most.
  const warmup = options.warmup ?? Math.min(defaults.warmup, Math.floor(steps / 10));
  if (warmup > steps) throw new UsageError(`--warmup ${warmup}: longer than the run of ${steps} steps`);
  if (options.zero !== undefined && mesh.fsdp === 1) {
    throw new UsageError(
      `--zero ${options.zero}: --mesh has no fsdp axis to split anything over; add fsdp=N or leave it out`,
    );
  }
  if (options.sequenceParallel === "on" && mesh.tp === 1) {
    throw new UsageError(
      "--sequence-parallel on: --mesh has no tp axis to split activations over; add tp=N or leave it out",
    );
  }
  const microbatches = options.microbatches ?? (mesh.pp === 1 ? 1 : Math.min(2 * mesh.pp, batchSize));
  if (options.virtualStages !== undefined && options.schedule !== "interleaved-1f1b") {
    throw new UsageError(`--virtual-stages ${options.virtualStages}: only --schedule interleaved-1f1b has them`);
  }
  if (microbatches > batchSize) {
    throw new UsageError(
      `--microbatches ${microbatches}: a batch of ${batchSize} samples has no more than ${batchSize}`,
    );
  }
  return {
    steps,
    batchSize,
    seqLen: options.seqLen ?? defaults.seqLen,
    learningRate: options.learningRate ?? defaults.learningRate,
    lrSchedule: options.lrSchedule ?? defaults.lrSchedule,
    warmup,
    betas: options.betas ?? defaults.betas,
    eps: options.eps ?? defaults.eps,
    weightDecay: options.weightDecay ?? defaults.weightDecay,
    clipNorm: options.clipNorm ?? defaults.clipNorm,
    evalEvery: options.evalEvery ?? defaults.evalEvery,
    order: options.order,
    validationFraction: options.validationFraction ?? DEFAULT_VALIDATION_FRACTION[options.order],
    microbatches,
    mesh,
    zero: options.zero ?? defaultZero,
    sequenceParallel: options.sequenceParallel,
    device: options.device,
    schedule: options.schedule,
    virtualStages: options.virtualStages,
    recompute: options.recompute,
    precision: options.precision,
    seed: options.seed,
  };
}

function checkVocabulary(source: ModelSource, config: ModelConfig, data: TokenData): void {
  try {
    data.tokens.checkVocabulary(config.vocabSize);
  } catch (cause) {
    if (!(cause instanceof DataError)) throw cause;
    const hint = source.kind === "preset" ? "; --vocab makes it larger" : "";
    throw new DataError(`${cause.message}${hint}`, { cause, details: cause.details });
  }
}
