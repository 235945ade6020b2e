// Weights in safetensors files: writing one file, reading one or a folder of shards.
import { constants } from "node:fs";
import { access, type FileHandle, open, readFile } from "node:fs/promises";
import path from "node:path";
import { writeAll, writeFileAtomically } from "../core/atomic-file.ts";
import { CheckpointError, systemReason } from "../core/errors.ts";
import { headerBytes, LENGTH_BYTES, parseHeader, type TensorEntry } from "./header.ts";
import { type StoredDType, storedBytes, toFloat32 } from "./stored-dtype.ts";
import { parseStrictJson, type StrictJson } from "./strict-json.ts";

/** A tensor to write; `read` is called when its turn comes, so that a model need not be in memory at once. */
export interface TensorSource {
  readonly name: string;
  readonly shape: readonly number[];
  /** Type on disk; `read` gives elements of it. Default: F32. */
  readonly dtype?: StoredDType;
  /** The elements, row-major, little-endian. */
  read(): Float32Array | Uint8Array | Promise<Float32Array | Uint8Array>;
}

/** A tensor in a file or folder of weights. */
export interface TensorInfo {
  readonly name: string;
  readonly dtype: StoredDType;
  readonly shape: readonly number[];
  readonly file: string;
}

const SINGLE = "model.safetensors";
const INDEX = "model.safetensors.index.json";
const PICKLED = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/**
 * Writes tensors, sorted by name, to one file: whole or not at all.
 * @throws {CheckpointError} for two tensors of one name, or elements that do not fill the shape.
 * @throws {FileError} where the disk refuses.
 */
export async function writeSafetensors(
  file: string,
  tensors: Iterable<TensorSource>,
  metadata: Readonly<Record<string, string>> = { format: "pt" },
): Promise<void> {
  const sorted = [...tensors].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
  const header = encodeHeader(file, sorted, metadata);
  await writeFileAtomically(file, async (handle) => {
    await writeAll(handle, header);
    for (const tensor of sorted) {
      const data = await tensor.read();
      const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      const needed = sourceBytes(tensor);
      if (bytes.length !== needed) {
        const reason = `shape [${tensor.shape.join(", ")}] needs ${needed} bytes, ${bytes.length} were given`;
        throw checkpointError(file, reason, tensor.name);
      }
      await writeAll(handle, bytes);
    }
  });
}

function sourceBytes({ shape, dtype = "F32" }: TensorSource): number {
  return shape.reduce((product, size) => product * size, storedBytes(dtype));
}

function encodeHeader(
  file: string,
  sorted: readonly TensorSource[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  let offset = 0;
  const entries = new Map<string, unknown>([["__metadata__", metadata]]);
  for (const tensor of sorted) {
    if (entries.has(tensor.name)) throw checkpointError(file, "its name is taken", tensor.name);
    const end = offset + sourceBytes(tensor);
    entries.set(tensor.name, { dtype: tensor.dtype ?? "F32", shape: tensor.shape, data_offsets: [offset, end] });
    offset = end;
  }
  // Written key by key: an object would put names that look like numbers first.
  const json = `{${[...entries].map(([name, entry]) => `${JSON.stringify(name)}:${JSON.stringify(entry)}`).join(",")}}`;
  const text = new TextEncoder().encode(json);
  const bytes = new Uint8Array(LENGTH_BYTES + Math.ceil(text.length / 8) * 8).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(bytes.length - LENGTH_BYTES), true);
  bytes.set(text, LENGTH_BYTES);
  return bytes;
}

function checkpointError(file: string, reason: string, tensor?: string, cause?: unknown): CheckpointError {
  const where = tensor === undefined ? file : `${file}, tensor "${tensor}"`;
  return new CheckpointError(`${where}: ${reason}`, { cause, details: { file, tensor } });
}

/** One open file whose header is checked. */
class SafetensorsFile implements AsyncDisposable {
  readonly path: string;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly #handle: FileHandle;

  private constructor(file: string, handle: FileHandle, tensors: ReadonlyMap<string, TensorEntry>) {
    this.path = file;
    this.tensors = tensors;
    this.#handle = handle;
  }

  /** @param follow whether the path itself may be a symbolic link */
  static async open(file: string, follow: boolean): Promise<SafetensorsFile> {
    let handle: FileHandle | undefined;
    try {
      // Not blocking, so that a named pipe is refused instead of waited for.
      const flags = constants.O_RDONLY | constants.O_NONBLOCK | (follow ? 0 : constants.O_NOFOLLOW);
      handle = await open(file, flags);
      const stats = await handle.stat();
      if (!stats.isFile()) throw checkpointError(file, "not a regular file");
      const prefix = await readBytes(handle, file, 0, Math.min(LENGTH_BYTES, stats.size));
      const header = await readBytes(handle, file, LENGTH_BYTES, headerBytes(file, prefix, stats.size));
      return new SafetensorsFile(file, handle, parseHeader(file, header, stats.size).tensors);
    } catch (cause) {
      await handle?.close();
      if (cause instanceof CheckpointError) throw cause;
      throw checkpointError(file, systemReason(cause), undefined, cause);
    }
  }

  read(entry: TensorEntry): Promise<Uint8Array> {
    return readBytes(this.#handle, this.path, entry.offset, entry.bytes, entry.name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close();
  }
}

/** One call's bytes; the system gives less than 2 GiB at once. */
const READ_BYTES = 1 << 28;

async function readBytes(
  handle: FileHandle,
  file: string,
  offset: number,
  count: number,
  tensor?: string,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(count);
  try {
    for (let at = 0; at < count; ) {
      const { bytesRead } = await handle.read(bytes, at, Math.min(count - at, READ_BYTES), offset + at);
      if (bytesRead === 0) throw checkpointError(file, "became shorter while it was read", tensor);
      at += bytesRead;
    }
  } catch (cause) {
    if (cause instanceof CheckpointError) throw cause;
    throw checkpointError(file, systemReason(cause), tensor, cause);
  }
  return bytes;
}

/** The weights of a model: the tensors of one file, or of the shards of a folder. Close it after use. */
export class Weights implements AsyncDisposable {
  /** All tensors by name. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly #files: readonly SafetensorsFile[];
  readonly #places: ReadonlyMap<string, { readonly file: SafetensorsFile; readonly entry: TensorEntry }>;

  private constructor(files: readonly SafetensorsFile[]) {
    this.#files = files;
    this.#places = new Map(
      files.flatMap((file) => [...file.tensors.values()].map((entry) => [entry.name, { file, entry }] as const)),
    );
    this.tensors = new Map(
      [...this.#places].map(([name, { file, entry }]) => {
        const { dtype, shape } = entry;
        return [name, { name, dtype, shape, file: file.path }];
      }),
    );
  }

  /**
   * Opens a .safetensors file, or a folder's model.safetensors or model.safetensors.index.json, and checks every header.
   * @throws {CheckpointError} naming the file, and the tensor, for what is missing or malformed.
   */
  static async open(fileOrFolder: string): Promise<Weights> {
    if (fileOrFolder.endsWith(".safetensors")) return new Weights([await SafetensorsFile.open(fileOrFolder, true)]);
    const found = await findWeights(fileOrFolder);
    if (found === undefined) throw await noWeights(fileOrFolder);
    if (!found.endsWith(".json")) return new Weights([await SafetensorsFile.open(found, true)]);
    return new Weights(await openShards(found));
  }

  /** The tensor of a name, with or without the `transformer.` prefix; undefined where there is none. */
  find(name: string): TensorInfo | undefined {
    const bare = name.startsWith(PREFIX) ? name.slice(PREFIX.length) : name;
    return this.tensors.get(name) ?? this.tensors.get(bare) ?? this.tensors.get(PREFIX + bare);
  }

  /** A tensor's elements as float32. @throws {CheckpointError} where it is missing or has no float32 reading. */
  async read(name: string): Promise<Float32Array> {
    const place = this.#place(name);
    const values = toFloat32(place.entry.dtype, await place.file.read(place.entry));
    if (values !== undefined) return values;
    throw checkpointError(place.file.path, `dtype ${place.entry.dtype} cannot be read`, name);
  }

  /** A tensor's bytes as stored. @throws {CheckpointError} where it is missing. */
  readStored(name: string): Promise<Uint8Array> {
    const { file, entry } = this.#place(name);
    return file.read(entry);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#files.map((file) => file[Symbol.asyncDispose]()));
  }

  /** Closes the files. */
  close(): Promise<void> {
    return this[Symbol.asyncDispose]();
  }

  #place(name: string) {
    const place = this.#places.get(name);
    if (place !== undefined) return place;
    throw checkpointError(this.#files.map((file) => file.path).join(", "), "it is not there", name);
  }
}

const PREFIX = "transformer.";

function exists(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  );
}

/** The file that holds or lists a folder's weights; undefined where there are none. */
export async function findWeights(folder: string): Promise<string | undefined> {
  for (const name of [SINGLE, INDEX]) {
    const file = path.join(folder, name);
    if (await exists(file)) return file;
  }
  return undefined;
}

async function noWeights(folder: string): Promise<CheckpointError> {
  for (const name of PICKLED) {
    if (await exists(path.join(folder, name))) {
      return checkpointError(folder, `only ${name} is there, which can run code; convert it to ${SINGLE}`);
    }
  }
  return checkpointError(folder, `no weights: neither ${SINGLE} nor ${INDEX} is there`);
}

async function openShards(index: string): Promise<SafetensorsFile[]> {
  const map = await readIndex(index);
  const files: SafetensorsFile[] = [];
  try {
    for (const shard of new Set(map.values())) {
      files.push(await SafetensorsFile.open(path.join(path.dirname(index), shard), false));
    }
    checkShards(index, map, files);
    return files;
  } catch (error) {
    await Promise.all(files.map((file) => file[Symbol.asyncDispose]()));
    throw error;
  }
}

/** Every tensor is in the shard that the index names, and nowhere else. */
function checkShards(index: string, map: ReadonlyMap<string, string>, files: readonly SafetensorsFile[]): void {
  const byName = new Map(files.map((file) => [path.basename(file.path), file]));
  for (const [tensor, shard] of map) {
    if (!byName.get(shard)!.tensors.has(tensor)) {
      throw checkpointError(
        path.join(path.dirname(index), shard),
        `${path.basename(index)} places it here, where it is not`,
        tensor,
      );
    }
  }
  for (const file of files) {
    for (const tensor of file.tensors.keys()) {
      if (map.get(tensor) === path.basename(file.path)) continue;
      throw checkpointError(
        file.path,
        `${path.basename(index)} does not place it here: stale or swapped shards?`,
        tensor,
      );
    }
  }
}

async function readIndex(file: string): Promise<Map<string, string>> {
  let parsed: StrictJson;
  try {
    parsed = parseStrictJson(await readFile(file, "utf8"));
  } catch (cause) {
    const reason = cause instanceof SyntaxError ? `not valid JSON: ${cause.message}` : systemReason(cause);
    throw checkpointError(file, reason, undefined, cause);
  }
  const map = parsed instanceof Map ? parsed.get("weight_map") : undefined;
  if (!(map instanceof Map) || map.size === 0) throw checkpointError(file, "it has no weight_map");
  const shards = new Map<string, string>();
  for (const [tensor, shard] of map) {
    if (typeof shard !== "string" || shard !== path.basename(shard) || !/^[^/\\\0]+\.safetensors$/.test(shard)) {
      throw checkpointError(
        file,
        `shard ${JSON.stringify(shard)} is no plain file name that ends in .safetensors`,
        tensor,
      );
    }
    shards.set(tensor, shard);
  }
  return shards;
}
