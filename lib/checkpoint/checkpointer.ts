// Checkpointer: saves in the background while the devices go on, one at a time, and keeps the folder from growing.
import path from "node:path";
import { expectInteger, expectObject, expectText } from "../core/check.ts";
import { AbortedError } from "../core/errors.ts";
import { HostMemory } from "../runtime/host-memory.ts";
import { type CheckpointName, listFolder, readLatest } from "./folder.ts";
import { type LoadedCheckpoint, type LoadOptions, loadThrough } from "./load.ts";
import { type Parent, pointLatest, removeAll, type SavedCheckpoint, takeSnapshot, writeSnapshot } from "./save.ts";
import { planShards } from "./shards.ts";
import type { CheckpointState } from "./state.ts";

/** Options of a Checkpointer. */
export interface CheckpointerOptions {
  /** How many checkpoints to keep, the newest; all when absent. */
  readonly keep?: number | undefined;
  /** Keeps also those of steps that are a multiple of this. */
  readonly keepEvery?: number | undefined;
  /** Told of a checkpoint that is on the disk. */
  readonly onSaved?: (saved: SavedCheckpoint) => void;
  /** Told of a save that failed; without it the next save() or flush() throws. */
  readonly onError?: (error: unknown) => void;
}

/** A save that goes on in the background. */
export interface PendingSave {
  readonly step: number;
  /** Seconds from the call until the devices could go on. */
  readonly stalled: number;
  /** Resolves when the checkpoint is on the disk; rejects as saveCheckpoint() does. */
  readonly saved: Promise<SavedCheckpoint>;
}

/** Saves to, and loads from, one folder of checkpoints. */
export class Checkpointer implements AsyncDisposable {
  readonly folder: string;
  readonly #options: CheckpointerOptions;
  #memory: HostMemory | undefined;
  #writing: Promise<unknown> = Promise.resolve();
  #failure: { readonly error: unknown } | undefined;
  #parent: Parent | undefined;

  /** Throws ConfigError for options out of range. */
  constructor(folder: string, options: CheckpointerOptions = {}) {
    expectText("the folder of checkpoints", folder);
    expectObject("a checkpointer's options", options);
    if (options.keep !== undefined) expectInteger("keep", options.keep, 1);
    if (options.keepEvery !== undefined) expectInteger("keepEvery", options.keepEvery, 1);
    this.folder = folder;
    this.#options = options;
  }

  /** Gets the memory for saves of a state ready, so that the first takes no longer than the others. */
  async prepare(state: CheckpointState): Promise<void> {
    await this.#writing;
    const { bytes } = planShards(state);
    if (this.#memory?.bytes === bytes) return;
    this.#keep(new HostMemory(bytes));
    await this.#memory?.touch();
  }

  /** Frees the memory that saving and loading keep, until it is needed again. */
  async release(): Promise<void> {
    await this.#writing;
    this.#memory?.[Symbol.dispose]();
    this.#memory = undefined;
  }

  /**
   * Saves a state as it is at the call, or rather after the runs that were queued before. Resolves when it is copied:
   * steps may go on, while native threads write. Waits first for an earlier save that is still being written.
   * @throws {AbortedError} when the signal fires before it is on the disk; what is there stays.
   */
  async save(state: CheckpointState, options: { readonly signal?: AbortSignal } = {}): Promise<PendingSave> {
    const { signal } = options;
    await this.#writing;
    this.#rethrow();
    if (signal?.aborted) throw new AbortedError("the checkpoint was not saved: stopped", { cause: signal.reason });
    const began = performance.now();
    const snapshot = await takeSnapshot(state, this.#parent, this.#memory);
    this.#keep(snapshot.memory);
    const stalled = (performance.now() - began) / 1000;
    const saved = this.#write(writeSnapshot(this.folder, snapshot, signal));
    return { step: state.step, stalled, saved };
  }

  #write(writing: Promise<SavedCheckpoint>): Promise<SavedCheckpoint> {
    const saved = writing.then(async (done) => {
      this.#parent = { step: done.step, digest: done.digest };
      this.#options.onSaved?.(done);
      await this.#prune(path.basename(done.path));
      return done;
    });
    // Whoever asks for `saved` is told too; nobody has to.
    this.#writing = saved.catch((error: unknown) => {
      if (this.#options.onError) this.#options.onError(error);
      else this.#failure = { error };
    });
    return saved;
  }

  /** Waits for the save that is being written. Throws what it, or an earlier one, failed with, once. */
  async flush(): Promise<void> {
    await this.#writing;
    this.#rethrow();
  }

  /**
   * Loads the newest good checkpoint of its folder, or of another one, see loadCheckpoint(); later saves name it as
   * their parent, and use its memory.
   */
  async load(
    state: CheckpointState,
    options: LoadOptions & { readonly from?: string } = {},
  ): Promise<LoadedCheckpoint> {
    await this.#writing;
    const { loaded, memory } = await loadThrough(this.#memory, options.from ?? this.folder, state, options);
    this.#keep(memory);
    this.#parent = { step: loaded.step, digest: loaded.digest };
    return loaded;
  }

  /** Takes other memory in place of what it has. */
  #keep(memory: HostMemory): void {
    if (memory !== this.#memory) this.#memory?.[Symbol.dispose]();
    this.#memory = memory;
  }

  /** Makes a checkpoint the latest, and removes those of later steps: their run is not gone on with. */
  async discardAfter(checkpoint: string): Promise<void> {
    await this.#writing;
    const name = path.basename(checkpoint);
    await pointLatest(this.folder, name);
    const { checkpoints } = await listFolder(this.folder);
    const own = checkpoints.findIndex((c) => c.name === name);
    await removeAll(
      this.folder,
      checkpoints.slice(0, Math.max(0, own)).map((c) => c.name),
    );
  }

  /** Waits for the save that is being written, and frees the memory. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
    this.#rethrow();
  }

  #rethrow(): void {
    const failure = this.#failure;
    this.#failure = undefined;
    if (failure) throw failure.error;
  }

  /** Removes what need not be kept. */
  async #prune(saved: string): Promise<void> {
    const { checkpoints } = await listFolder(this.folder);
    const latest = await readLatest(this.folder);
    const kept = keptOf(checkpoints, this.#options);
    const old = checkpoints.filter(({ name }) => !kept.has(name) && name !== saved && name !== latest);
    await removeAll(
      this.folder,
      old.map(({ name }) => name),
    );
  }
}

/** Names to keep of checkpoints that are sorted newest first; of those saved again only the last. */
function keptOf(checkpoints: readonly CheckpointName[], { keep, keepEvery }: CheckpointerOptions): Set<string> {
  const last = checkpoints.filter((c, i) => checkpoints[i - 1]?.step !== c.step);
  const kept = last.filter(
    ({ step }, i) => keep === undefined || i < keep || (keepEvery !== undefined && step % keepEvery === 0),
  );
  return new Set(kept.map(({ name }) => name));
}
