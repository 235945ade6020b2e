// Weights in safetensors files: writing one file, reading one or a folder of shards.
import { expectFunction, expectIterable, expectObject, expectSizes, expectText } from "../core/check.ts";
import { access, readFile } from "node:fs/promises";
import path from "node:path";
import { setImmediate } from "node:timers/promises";
import { writeAll, writeFileAtomically } from "../core/atomic-file.ts";
import { CheckpointError, FileError, systemReason } from "../core/errors.ts";
import { type FileHandle, fileClose, fileRead, type SafetensorsIndex, safetensorsOpen } from "../runtime/addon.ts";
import { type StoredDType, storedBytes, storedDType, toFloat32 } from "./stored-dtype.ts";
import { parseStrictJson, type StrictJson } from "./strict-json.ts";

/** Bytes before the header: its length, little-endian. */
const LENGTH_BYTES = 8;

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
  expectText("the file of weights", file);
  const list = [...expectIterable("the tensors to write", tensors)];
  for (const tensor of list) expectSource(tensor);
  const sorted = list.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
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

function expectSource(source: TensorSource): void {
  expectObject("a tensor to write", source);
  expectText("the name of a tensor to write", source.name);
  expectSizes(`the shape of ${source.name}`, source.shape);
  expectFunction(`read() of ${source.name}`, source.read);
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

/** Where a tensor lies in a file. */
interface TensorEntry extends TensorInfo {
  readonly offset: number;
  readonly bytes: number;
}

/** One open file. Native code checks its header before anything else is done with it. */
class SafetensorsFile implements Disposable {
  readonly path: string;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly #handle: FileHandle;

  /** @param followLinks whether the path itself may be a symbolic link */
  constructor(file: string, followLinks: boolean) {
    const index = translated(file, undefined, () => safetensorsOpen(file, { followLinks }));
    this.path = file;
    this.#handle = index.file;
    this.tensors = new Map(entriesOf(file, index).map((entry) => [entry.name, entry]));
  }

  async read({ name, offset, bytes }: TensorEntry): Promise<Uint8Array> {
    const target = new Uint8Array(bytes);
    for (let at = 0; at < bytes; at += READ_BYTES) {
      const piece = target.subarray(at, at + READ_BYTES);
      translated(this.path, name, () => fileRead(this.#handle, offset + at, piece));
      // The read itself blocks: between pieces others get their turn.
      await setImmediate();
    }
    return target;
  }

  [Symbol.dispose](): void {
    fileClose(this.#handle);
  }
}

const READ_BYTES = 1 << 25;

function entriesOf(file: string, index: SafetensorsIndex): TensorEntry[] {
  let dim = 0;
  return index.names.map((name, i) => {
    const shape = [...index.dims.subarray(dim, dim + index.ranks[i]!)];
    dim += shape.length;
    const dtype = storedDType(index.dtypes[i]!);
    if (dtype === undefined) throw checkpointError(file, `dtype ${index.dtypes[i]} cannot be read`, name);
    const offset = index.begins[i]!;
    return { name, dtype, shape, file, offset, bytes: index.ends[i]! - offset };
  });
}

/** Native errors as CheckpointErrors that carry the file and tensor; their messages name the file. */
function translated<T>(file: string, tensor: string | undefined, body: () => T): T {
  try {
    return body();
  } catch (cause) {
    if (!(cause instanceof FileError || cause instanceof CheckpointError)) throw cause;
    throw new CheckpointError(cause.message, { cause, details: { file, tensor } });
  }
}

/** The weights of a model: the tensors of one file, or of the shards of a folder. Close it after use. */
export class Weights implements Disposable {
  /** All tensors by name. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly #files: readonly SafetensorsFile[];
  readonly #places: ReadonlyMap<string, { readonly file: SafetensorsFile; readonly entry: TensorEntry }>;

  private constructor(files: readonly SafetensorsFile[]) {
    this.#files = files;
    this.#places = new Map(
      files.flatMap((file) => [...file.tensors.values()].map((entry) => [entry.name, { file, entry }] as const)),
    );
    this.tensors = new Map([...this.#places].map(([name, { entry }]) => [name, entry]));
  }

  /**
   * Opens a .safetensors file, or a folder's model.safetensors or model.safetensors.index.json, and checks every
   * header.
   * @throws {CheckpointError} naming the file, and the tensor, for what is missing or malformed.
   */
  static async open(fileOrFolder: string): Promise<Weights> {
    expectText("a file or folder of weights", fileOrFolder);
    if (fileOrFolder.endsWith(".safetensors")) return new Weights([new SafetensorsFile(fileOrFolder, true)]);
    const found = await findWeights(fileOrFolder);
    if (found === undefined) {
      throw checkpointError(fileOrFolder, `no weights: neither ${SINGLE} nor ${INDEX} is there`);
    }
    if (!found.endsWith(".json")) return new Weights([new SafetensorsFile(found, true)]);
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

  /** Closes the files. */
  [Symbol.dispose](): void {
    for (const file of this.#files) file[Symbol.dispose]();
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

/**
 * The file that holds or lists a folder's weights; undefined where there are none.
 * @throws {CheckpointError} where there are only weights in a format that can run code.
 */
export async function findWeights(folder: string): Promise<string | undefined> {
  for (const name of [SINGLE, INDEX]) {
    const file = path.join(folder, name);
    if (await exists(file)) return file;
  }
  for (const name of PICKLED) {
    if (await exists(path.join(folder, name))) {
      throw checkpointError(folder, `only ${name} is there, which can run code; convert it to ${SINGLE}`);
    }
  }
  return undefined;
}

async function openShards(index: string): Promise<SafetensorsFile[]> {
  const map = await readIndex(index);
  const files: SafetensorsFile[] = [];
  try {
    for (const shard of new Set(map.values())) {
      files.push(new SafetensorsFile(path.join(path.dirname(index), shard), false));
    }
    checkShards(index, map, files);
    return files;
  } catch (error) {
    for (const file of files) file[Symbol.dispose]();
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
