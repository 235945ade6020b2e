// The checkpoints of a run of `meshwork train`: when they are saved, what they record, going on from one, going back to
// one.
import path from "node:path";
import { Checkpointer } from "../checkpoint/checkpointer.ts";
import { listFolder } from "../checkpoint/folder.ts";
import type { LoadedCheckpoint } from "../checkpoint/load.ts";
import { pointLatest, removeAll, type SavedCheckpoint } from "../checkpoint/save.ts";
import { CheckpointError, DataError, SpikeError, systemReason } from "../core/errors.ts";
import { isJsonObject, type JsonObject } from "../core/json.ts";
import type { TrainEvent } from "../train/events.ts";
import type { RunFolder } from "../train/run-folder.ts";
import { type Spike, SpikeDetector } from "../train/spikes.ts";
import type { StepResult, TrainStep } from "../train/step.ts";
import type { GivenFlag } from "./flags.ts";
import type { PreparedTraining } from "./prepare-training.ts";
import { flagsToKeep, type Resumption } from "./resume.ts";
import type { TrainOptions } from "./train-flags.ts";
import { version } from "./version.ts";

/** Rollbacks in a row, without a checkpoint in between, after which training gives up. */
const mostRollbacks = 3;

/** What the checkpoints of a run are made from. */
export interface RunParts {
  readonly prepared: PreparedTraining;
  readonly step: TrainStep<"inputs" | "targets">;
  readonly folder: RunFolder;
  readonly options: TrainOptions;
  readonly given: ReadonlyMap<string, GivenFlag>;
  emit(event: TrainEvent): void;
}

/** The part of a run's state that is not on the devices, and the saving of it all. */
export class RunCheckpoints implements AsyncDisposable {
  /** Samples of the training's order that the run has had. */
  position = 0;
  /** Of the last step. */
  loss = Number.NaN;
  /** Steps in a row without a finite gradient. */
  skipped = 0;
  readonly #parts: RunParts;
  readonly #checkpointer: Checkpointer;
  readonly #spikes = new SpikeDetector();
  readonly #version: string;
  #savedStep: number | undefined;
  /** What resuming has to report, once the run's files may be written. */
  readonly #resumed: TrainEvent[] = [];
  #failure: unknown;
  /** Rollbacks since the last checkpoint. */
  #rollbacks = 0;

  private constructor(parts: RunParts, meshworkVersion: string) {
    this.#parts = parts;
    this.#version = meshworkVersion;
    const { keep, keepEvery } = parts.options;
    this.#checkpointer = new Checkpointer(path.join(parts.folder.path, "checkpoints"), {
      keep,
      keepEvery,
      onSaved: (saved) => this.#saved(saved),
      onError: (error) => this.#failed(error),
    });
  }

  /** Goes on from a checkpoint where one is meant, and gets ready to save. */
  static async open(parts: RunParts, resumption: Resumption | undefined): Promise<RunCheckpoints> {
    const checkpoints = new RunCheckpoints(parts, await version());
    if (resumption !== undefined) await checkpoints.#resume(resumption);
    if (parts.options.checkpointEvery > 0) await checkpoints.#checkpointer.prepare(parts.step.state());
    else await checkpoints.#checkpointer.release();
    return checkpoints;
  }

  /** Before the first step: says where it goes on, and saves something to go back to. */
  async begin(): Promise<void> {
    for (const event of this.#resumed) this.#parts.emit(event);
    if (this.#parts.options.onSpike === "rollback" && this.#savedStep === undefined) await this.save({ wait: true });
  }

  async #resume({ from }: Resumption): Promise<void> {
    const { step, prepared, folder } = this.#parts;
    const warnings: string[] = [];
    const onWarning = (message: string): void => void warnings.push(message);
    const loaded = await this.#checkpointer.load(step.state(), { from, onWarning });
    sameData(loaded, prepared);
    this.#restore(loaded);
    this.#resumed.push(...warnings.map((message) => ({ type: "warning", step: loaded.step, message }) as const));
    this.#resumed.push({ type: "resume", step: loaded.step, path: loaded.path, position: this.position });
    // Within the run's own folder the later checkpoints belong to what is run again now.
    if (path.resolve(path.dirname(loaded.path)) === path.resolve(this.#checkpointer.folder)) {
      await this.#checkpointer.discardAfter(loaded.path);
      this.#savedStep = loaded.step;
      folder.resumeAt(loaded.step);
    }
  }

  /** Takes the step, the data's position, ... of a checkpoint whose tensors have been loaded. */
  #restore({ step, record, path: file }: LoadedCheckpoint): void {
    const { data, loss, skipped, losses } = record;
    const position = isJsonObject(data) ? data.position : undefined;
    if (typeof position !== "number" || typeof skipped !== "number" || !Array.isArray(losses)) {
      throw new CheckpointError(`${file}: its record lacks the data's position`, { details: { file } });
    }
    this.#parts.step.step = step;
    this.position = position;
    this.skipped = skipped;
    this.loss = typeof loss === "number" ? loss : Number.NaN;
    this.#spikes.losses = losses.map(Number);
  }

  #record(): JsonObject {
    const { prepared, given } = this.#parts;
    const { settings, data, dataset, configJson } = prepared;
    const { order, seqLen, batchSize, seed } = settings;
    return {
      meshwork: this.#version,
      seed,
      data: { position: this.position, order, seqLen, batchSize, samples: dataset.samples, files: data.files },
      optimizer: { kind: "adamw", betas: settings.betas, eps: settings.eps, weightDecay: settings.weightDecay },
      settings,
      flags: flagsToKeep(given),
      model: configJson,
      loss: Number.isFinite(this.loss) ? this.loss : null,
      skipped: this.skipped,
      losses: this.#spikes.losses,
    };
  }

  /** Notes a step that was run; with --on-spike goes back, or throws SpikeError, where its loss stands out. */
  async after(result: StepResult): Promise<void> {
    const { options, prepared } = this.#parts;
    this.position += prepared.settings.batchSize;
    this.loss = result.loss;
    if (overflowed(result)) return; // float16's range was too small: the next step's loss scale is half
    this.skipped = result.nonFinite === undefined ? 0 : this.skipped + 1;
    if (result.nonFinite !== undefined) {
      // Its update was left out: the weights are those before the batch, and the data goes on behind it.
      if (options.onSpike === "stop") await this.#stop(nonFiniteError(result.step, result.nonFinite));
      return;
    }
    const spike = this.#spikes.watch(result.loss, () => result.gradNorms());
    if (spike === undefined) return;
    this.#parts.emit({ type: "spike", step: result.step, ...spike, action: options.onSpike });
    if (options.onSpike === "stop") await this.#stop(spikeError(result.step, spike, "--on-spike stop"));
    if (options.onSpike === "rollback") await this.rollBack(result.step, spike);
  }

  /** Saves, so that the run can go on from here, and throws. */
  async #stop(error: SpikeError): Promise<never> {
    await this.save({ wait: true });
    throw error;
  }

  /** Back to the last good checkpoint; the data goes on behind what was read. */
  async rollBack(from: number, spike?: Spike): Promise<void> {
    const { step, emit } = this.#parts;
    if (this.#rollbacks === mostRollbacks) {
      const reason = `${mostRollbacks} rollbacks have not helped; a smaller --learning-rate may`;
      if (spike) throw spikeError(from, spike, reason);
      throw new SpikeError(`the gradient is not finite up to step ${from}: ${reason}`, { details: { step: from } });
    }
    const { position } = this;
    await this.#checkpointer.flush();
    // The newest did not help: the one before it.
    if (this.#rollbacks > 0) await this.#dropNewest();
    const onWarning = (message: string): void => this.#warn(message);
    const loaded = await this.#checkpointer.load(step.state(), { onWarning });
    this.#restore(loaded);
    await this.#checkpointer.discardAfter(loaded.path);
    this.position = position;
    this.skipped = 0;
    this.#savedStep = loaded.step;
    this.#rollbacks++;
    emit({ type: "rollback", from, to: loaded.step, position });
  }

  async #dropNewest(): Promise<void> {
    const { folder } = this.#checkpointer;
    const [newest, before] = (await listFolder(folder)).checkpoints;
    if (newest === undefined || before === undefined) return;
    await pointLatest(folder, before.name);
    await removeAll(folder, [newest.name]);
  }

  /** Saves where --checkpoint-every says so. Throws what an earlier save failed with, where that is to stop the run. */
  async saveIfDue(): Promise<void> {
    const { checkpointEvery } = this.#parts.options;
    this.#rethrow();
    if (checkpointEvery > 0 && this.#parts.step.step % checkpointEvery === 0) await this.save({ wait: false });
  }

  /** Saves at the end, or when interrupted: waits until it is on the disk. */
  async save({ wait }: { readonly wait: boolean }): Promise<void> {
    const { step, folder } = this.#parts;
    if (this.#savedStep !== step.step) {
      // What the metrics say of these steps is then not behind the checkpoint.
      await folder.flush();
      // Where the last save failed, and that is to stop the run, no other is made.
      await this.#checkpointer.flush();
      this.#rethrow();
      await this.#checkpointer.save(step.state(this.#record()));
      this.#savedStep = step.step;
    }
    if (!wait) return;
    await this.#checkpointer.flush();
    this.#rethrow();
  }

  #saved({ step, path: file, bytes }: SavedCheckpoint): void {
    this.#rollbacks = 0;
    this.#parts.emit({ type: "checkpoint", step, path: file, bytes });
  }

  #failed(error: unknown): void {
    this.#savedStep = undefined;
    if (this.#parts.options.onCheckpointError === "stop") this.#failure ??= error;
    else this.#warn(`a checkpoint was not saved: ${systemReason(error)}`);
  }

  #warn(message: string): void {
    this.#parts.emit({ type: "warning", step: this.#parts.step.step, message });
  }

  #rethrow(): void {
    const failure = this.#failure;
    this.#failure = undefined;
    if (failure !== undefined) throw failure;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#checkpointer[Symbol.asyncDispose]();
  }
}

function spikeError(step: number, { loss, usual, module }: Spike, why: string): SpikeError {
  return new SpikeError(
    `the loss of step ${step} is ${loss.toFixed(4)} where ${usual.toFixed(4)} was usual, and the gradient of ${module} ` +
      `grew most (${why})`,
    { details: { step, loss, usual, module } },
  );
}

/** Whether a gradient overflowed float16 only because the loss scale was too large. */
export function overflowed({ nonFinite, lossScale = 1 }: StepResult): boolean {
  return nonFinite !== undefined && lossScale > 1;
}

function nonFiniteError(step: number, module: string): SpikeError {
  return new SpikeError(
    `the gradient of ${module} is not finite in step ${step}, which changed nothing (--on-spike stop)`,
    {
      details: { step, module },
    },
  );
}

/** The data must be what the checkpoint was trained on: else its position means nothing. */
function sameData({ record, path: file }: LoadedCheckpoint, { data }: PreparedTraining): void {
  const before = isJsonObject(record.data) && Array.isArray(record.data.files) ? record.data.files : [];
  const digests = before.map((f: unknown) => (isJsonObject(f) ? String(f.sha256) : ""));
  const changed = data.files.findIndex((f, i) => f.sha256 !== digests[i]);
  if (changed < 0 && digests.length === data.files.length) return;
  const which = data.files[changed]?.path ?? `${data.files.length} files, where there were ${digests.length}`;
  throw new DataError(`${which}: not the data that ${file} was trained on, so that its position means nothing there`, {
    details: { file: which },
  });
}
