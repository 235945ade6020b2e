// A checkpoint on disk, opened: its tensors and cells, verified reading into host memory, single tensors as arrays.
import { CheckpointError, ConfigError } from "../core/errors.ts";
import { isJsonObject, type JsonObject } from "../core/json.ts";
import { type Shape, sizeOf } from "../core/shape.ts";
import { HostMemory, type ManifestFile, OpenCheckpoint } from "../runtime/host-memory.ts";
import { type Block, cellsOf, copyBetween, elementsOf } from "./grid.ts";
import type { TensorRole } from "./state.ts";
import { type StoredDType, storedBytes, storedDType } from "./stored-dtype.ts";
import { parseStrictJson } from "./strict-json.ts";

/** A tensor of a checkpoint. */
export interface StoredTensor {
  readonly name: string;
  readonly role: TensorRole;
  readonly dtype: StoredDType;
  readonly shape: Shape;
  /** Its shape in files of models. */
  readonly stored: Shape;
  readonly cuts: readonly (readonly number[])[];
  /** Names of the files of its cells, row-major. */
  readonly files: readonly string[];
  /** Number of its first cell. */
  readonly firstCell: number;
}

/** Tensors in host memory: where each cell of the checkpoint begins; -1 for those that were not read. */
export interface LoadedCells {
  readonly memory: HostMemory;
  readonly targets: Float64Array;
  /** Bytes read from the disk. */
  readonly bytesRead: number;
}

/** A checkpoint's folder, open. Its manifest is checked; its files are when they are read. Close it after use. */
export class StoredCheckpoint implements Disposable {
  readonly folder: string;
  readonly step: number;
  /** What the writer noted; settings, data position, ... */
  readonly record: JsonObject;
  /** SHA-256 of the manifest. */
  readonly digest: string;
  readonly files: readonly ManifestFile[];
  readonly tensors: readonly StoredTensor[];
  readonly #open: OpenCheckpoint;

  private constructor(folder: string, open: OpenCheckpoint) {
    if (!(open instanceof OpenCheckpoint)) {
      throw new ConfigError("a StoredCheckpoint is not made with new: await StoredCheckpoint.open(folder)");
    }
    this.folder = folder;
    this.#open = open;
    const { manifest } = open;
    this.step = manifest.step;
    this.digest = manifest.digest;
    this.files = manifest.files;
    this.record = readRecord(folder, manifest.record);
    this.tensors = tensorsOf(manifest);
  }

  /** Rejects with CheckpointError naming the file, and the tensor where it can be told. */
  static async open(folder: string): Promise<StoredCheckpoint> {
    const open = await OpenCheckpoint.open(folder);
    try {
      return new StoredCheckpoint(folder, open);
    } catch (cause) {
      open[Symbol.dispose]();
      throw cause;
    }
  }

  /** Bytes of the tensors. */
  get bytes(): number {
    return this.tensors.reduce((sum, t) => sum + sizeOf(t.shape) * storedBytes(t.dtype), 0);
  }

  /** The cells of a tensor. */
  cells({ shape, cuts }: StoredTensor): Block[] {
    return cellsOf(shape, cuts);
  }

  /**
   * Reads tensors (all of them by default) from the disk, each byte once, and compares digests: of whole files where
   * all of their tensors are read, else of each tensor. Rejects with CheckpointError naming file and tensor.
   */
  async read(
    options: {
      readonly tensors?: readonly StoredTensor[];
      readonly signal?: AbortSignal | undefined;
      /** Used where it has exactly the bytes that are needed; it stays its owner's. */
      readonly memory?: HostMemory | undefined;
    } = {},
  ): Promise<LoadedCells> {
    const wanted = new Set(options.tensors ?? this.tensors);
    const targets = new Float64Array(this.#open.manifest.cellFiles.length).fill(-1);
    let bytes = 0;
    for (const tensor of wanted) {
      this.cells(tensor).forEach((cell, i) => {
        targets[tensor.firstCell + i] = bytes;
        bytes += elementsOf(cell) * storedBytes(tensor.dtype);
      });
    }
    const memory = options.memory?.bytes === bytes ? options.memory : new HostMemory(bytes);
    const stop = (): void => memory.stop();
    options.signal?.addEventListener("abort", stop);
    try {
      options.signal?.throwIfAborted();
      return { memory, targets, bytesRead: await memory.readCells(this.#open, targets) };
    } catch (cause) {
      if (memory !== options.memory) memory[Symbol.dispose]();
      throw cause;
    } finally {
      options.signal?.removeEventListener("abort", stop);
    }
  }

  /** Reads everything and compares all digests. Rejects with CheckpointError naming file and tensor. */
  async verify(signal?: AbortSignal): Promise<void> {
    const { memory } = await this.read({ signal });
    memory[Symbol.dispose]();
  }

  /** A tensor's bytes as stored, whole and row-major. */
  async readStored(tensor: StoredTensor): Promise<Uint8Array> {
    const { memory, targets } = await this.read({ tensors: [tensor] });
    using _ = memory;
    const size = storedBytes(tensor.dtype);
    const whole: Block = { start: tensor.shape.map(() => 0), shape: tensor.shape };
    const bytes = new Uint8Array(sizeOf(tensor.shape) * size);
    this.cells(tensor).forEach((cell, i) => {
      const part = new Uint8Array(elementsOf(cell) * size);
      memory.read(targets[tensor.firstCell + i]!, part);
      place(part, bytes, size, copyBetween(cell, whole));
    });
    return bytes;
  }

  [Symbol.dispose](): void {
    this.#open[Symbol.dispose]();
  }
}

/** Copies a cell's bytes to their places in the whole tensor. */
function place(part: Uint8Array, whole: Uint8Array, size: number, plan: ReturnType<typeof copyBetween>): void {
  if (plan === null) return;
  const copy = (d: number, from: number, to: number): void => {
    const dim = plan.dims[d];
    if (dim === undefined) {
      whole.set(part.subarray(from * size, (from + plan.run) * size), to * size);
      return;
    }
    for (let i = 0; i < dim[0]; i++) copy(d + 1, from + i * dim[1], to + i * dim[2]);
  };
  copy(0, plan.source, plan.target);
}

function readRecord(folder: string, text: string): JsonObject {
  try {
    parseStrictJson(text);
    const value: unknown = JSON.parse(text);
    if (isJsonObject(value)) return value;
    throw new SyntaxError("no object");
  } catch (cause) {
    throw new CheckpointError(`${folder}: its record is not valid: ${String(cause)}`, {
      cause,
      details: { file: folder },
    });
  }
}

function tensorsOf(manifest: OpenCheckpoint["manifest"]): StoredTensor[] {
  const ranks = new Taker(manifest.ranks);
  const dims = new Taker(manifest.dims);
  const counts = new Taker(manifest.cutCounts);
  const inner = new Taker(manifest.cuts);
  const cells = new Taker(manifest.cellFiles);
  return manifest.names.map((name, i) => {
    const [rank, storedRank] = ranks.take(2);
    const shape = dims.take(rank!);
    const stored = dims.take(storedRank!);
    const cuts = counts.take(shape.length).map((n) => inner.take(n));
    const firstCell = cells.at;
    const files = cells
      .take(cuts.reduce((product, c) => product * (c.length + 1), 1))
      .map((f) => manifest.files[f]!.name);
    const role = manifest.roles[i] === "state" ? "state" : "parameter";
    return { name, role, dtype: storedDType(manifest.dtypes[i]!)!, shape, stored, cuts, files, firstCell };
  });
}

/** Takes numbers from the front of a list. */
class Taker {
  at = 0;
  readonly #values: Float64Array;

  constructor(values: Float64Array) {
    this.#values = values;
  }

  take(count: number): number[] {
    this.at += count;
    return [...this.#values.subarray(this.at - count, this.at)];
  }
}
