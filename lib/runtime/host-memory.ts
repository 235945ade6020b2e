// Host memory that checkpoints pass through, and what native threads do with it: copies, shards, folder steps.
import { call, settle } from "./addon.ts";
import type { CheckpointHandle, FolderStep, ManifestIndex, MemoryHandle } from "./checkpoint-native.ts";
import type { Engine } from "./engine.ts";

export type { FolderStep, ManifestFile, ManifestIndex } from "./checkpoint-native.ts";

/** A file to be written from host memory. */
export interface ShardRequest {
  readonly path: string;
  /** The JSON header of the safetensors file, padded to a multiple of 8 bytes. */
  readonly header: string;
  /** Byte of its first tensor in the memory. */
  readonly offset: number;
  /** Where each tensor ends, from there. */
  readonly ends: readonly number[];
}

/** What was written. */
export interface ShardResult {
  readonly bytes: number;
  readonly sha256: string;
  /** Of each tensor, 8 hexadecimal digits. */
  readonly crc32c: readonly string[];
}

/** A block of memory outside JavaScript's heap. One work at a time. */
export class HostMemory implements Disposable {
  readonly bytes: number;
  readonly #handle: MemoryHandle;
  #live = true;

  /** Throws DeviceError where there is not so much. */
  constructor(bytes: number) {
    this.bytes = bytes;
    this.#handle = call((a) => a.memoryAlloc(bytes));
  }

  /** Makes the system provide the pages now, so that the first copy into it is not slower than the next. */
  async touch(): Promise<void> {
    await settle((a) => a.memoryTouch(this.#handle));
  }

  /** Copies [buffer, bytes, byte offset here] triples from an engine's buffers, in turn with the runs. */
  async snapshot(engine: Engine, copies: readonly number[]): Promise<void> {
    await settle((a) => a.snapshot(engine.handle, this.#handle, Float64Array.from(copies)));
  }

  /** Copies blocks to an engine's buffers, in turn with the runs; for their form see native/addon/checkpoints.cc. */
  async restore(engine: Engine, blocks: readonly number[]): Promise<void> {
    await settle((a) => a.restore(engine.handle, this.#handle, Float64Array.from(blocks)));
  }

  /**
   * Writes files on native threads, all on the disk when it resolves. Rejects with FileError, or AbortedError after
   * stop().
   */
  async writeShards(shards: readonly ShardRequest[]): Promise<ShardResult[]> {
    const words = shards.flatMap(({ offset, ends }) => [offset, ends.length, ...ends]);
    const paths = shards.map(({ path }) => path);
    const headers = shards.map(({ header }) => header);
    const text = await settle((a) => a.shardsWrite(this.#handle, paths, headers, Float64Array.from(words)));
    const lines = new TextDecoder().decode(text).split("\n").slice(0, shards.length);
    return lines.map((line) => {
      const [bytes, sha256, ...crc32c] = line.split(" ");
      return { bytes: Number(bytes), sha256: sha256!, crc32c };
    });
  }

  /**
   * Reads cells of a checkpoint: cell i to byte targets[i], not at all where that is -1. Returns the bytes read.
   * Rejects with CheckpointError, its details the file and tensor that are damaged.
   */
  async readCells(checkpoint: OpenCheckpoint, targets: Float64Array): Promise<number> {
    const text = await settle((a) => a.checkpointRead(checkpoint.handle, this.#handle, targets));
    return Number(new TextDecoder().decode(text));
  }

  /** Copies bytes out. */
  read(byteOffset: number, target: NodeJS.ArrayBufferView): void {
    call((a) => a.memoryRead(this.#handle, byteOffset, target));
  }

  /** Ends the work on it early: it rejects with AbortedError. */
  stop(): void {
    if (this.#live) call((a) => a.memoryStop(this.#handle));
  }

  [Symbol.dispose](): void {
    if (!this.#live) return;
    this.#live = false;
    call((a) => a.memoryFree(this.#handle));
  }
}

/** A checkpoint's folder whose manifest has been read and checked. */
export class OpenCheckpoint implements Disposable {
  readonly manifest: ManifestIndex;
  readonly handle: CheckpointHandle;
  #live = true;

  private constructor(handle: CheckpointHandle) {
    this.handle = handle;
    this.manifest = call((a) => a.checkpointManifest(handle));
  }

  /**
   * Reads the manifest on a native thread: where it is damaged, so are the files, to find what is.
   * Rejects with CheckpointError naming the file, and the tensor where it can be told.
   */
  static async open(folder: string): Promise<OpenCheckpoint> {
    const handle = call((a) => a.checkpointNew());
    try {
      await settle((a) => a.checkpointOpen(handle, folder));
      return new OpenCheckpoint(handle);
    } catch (cause) {
      call((a) => a.checkpointClose(handle));
      throw cause;
    }
  }

  [Symbol.dispose](): void {
    if (!this.#live) return;
    this.#live = false;
    call((a) => a.checkpointClose(this.handle));
  }
}

/** Does the steps in order on a native thread. Rejects with FileError naming the first path that was refused. */
export async function runFolderSteps(steps: readonly FolderStep[]): Promise<void> {
  const others = steps.map((step) => (step.kind === "write" ? step.content : step.kind === "rename" ? step.to : ""));
  await settle((a) =>
    a.folderSteps(
      steps.map(({ kind }) => kind),
      steps.map(({ path }) => path),
      others,
    ),
  );
}
