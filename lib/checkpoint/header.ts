// A safetensors header, checked: what tensors a file holds and where, or what is wrong with it.
import { CheckpointError } from "../core/errors.ts";
import { type StoredDType, storedBytes, storedDType } from "./stored-dtype.ts";
import { parseStrictJson, type StrictJson } from "./strict-json.ts";

/** A tensor in a file. */
export interface TensorEntry {
  readonly name: string;
  readonly dtype: StoredDType;
  readonly shape: readonly number[];
  /** First byte in the file, and bytes. */
  readonly offset: number;
  readonly bytes: number;
}

/** What a file holds. */
export interface SafetensorsHeader {
  /** By name, in the order of their data. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly metadata: ReadonlyMap<string, string>;
}

/** Bytes before the header: its length, little-endian. */
export const LENGTH_BYTES = 8;
/** The longest header accepted; that of other readers. */
export const MAX_HEADER_BYTES = 100_000_000;
const MAX_RANK = 32;

/** The header's length, checked against the file's. @throws {CheckpointError} */
export function headerBytes(file: string, prefix: Uint8Array, fileBytes: number): number {
  if (prefix.length < LENGTH_BYTES) throw malformed(file, `${fileBytes} bytes are too few for a safetensors file`);
  const length = new DataView(prefix.buffer, prefix.byteOffset, LENGTH_BYTES).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES))
    throw malformed(file, `its header of ${length} bytes is beyond what is accepted`);
  if (length > BigInt(fileBytes - LENGTH_BYTES)) {
    throw malformed(file, `its header of ${length} bytes is longer than the file, which has ${fileBytes}: cut short?`);
  }
  return Number(length);
}

/**
 * Reads a header.
 * @param file for messages
 * @param header the bytes after the length
 * @param fileBytes the file's size, which header and data must fill exactly
 * @throws {CheckpointError} naming the file and the tensor.
 */
export function parseHeader(file: string, header: Uint8Array, fileBytes: number): SafetensorsHeader {
  const dataStart = LENGTH_BYTES + header.length;
  const tensors: TensorEntry[] = [];
  let metadata: ReadonlyMap<string, string> = new Map();
  for (const [name, value] of parseObject(file, header)) {
    if (name === "__metadata__") metadata = parseMetadata(file, value);
    else tensors.push(parseEntry(file, name, value, dataStart));
  }
  // An empty tensor at the same place comes before the one that begins there.
  tensors.sort((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  checkRanges(file, tensors, dataStart, fileBytes);
  return { tensors: new Map(tensors.map((tensor) => [tensor.name, tensor])), metadata };
}

function malformed(file: string, reason: string, tensor?: string): CheckpointError {
  const where = tensor === undefined ? file : `${file}, tensor "${tensor}"`;
  return new CheckpointError(`${where}: ${reason}`, { details: { file, tensor } });
}

function parseObject(file: string, header: Uint8Array): Map<string, StrictJson> {
  let parsed: StrictJson;
  try {
    parsed = parseStrictJson(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(header));
  } catch (cause) {
    const reason = cause instanceof SyntaxError ? cause.message : "not utf-8";
    throw malformed(file, `its header is not valid: ${reason}`);
  }
  if (!(parsed instanceof Map)) throw malformed(file, "its header is no JSON object");
  return parsed;
}

function parseMetadata(file: string, value: StrictJson): Map<string, string> {
  if (!(value instanceof Map)) throw malformed(file, "its __metadata__ is no object of texts");
  const metadata = new Map<string, string>();
  for (const [key, text] of value) {
    if (typeof text !== "string") throw malformed(file, "its __metadata__ is no object of texts");
    metadata.set(key, text);
  }
  return metadata;
}

function parseEntry(file: string, name: string, value: StrictJson, dataStart: number): TensorEntry {
  const fail = (reason: string) => malformed(file, reason, name);
  if (!(value instanceof Map)) throw fail("its entry is no object");
  for (const key of value.keys()) {
    if (!["dtype", "shape", "data_offsets"].includes(key)) throw fail(`unknown field "${key}"`);
  }
  const stated = value.get("dtype");
  const dtype = typeof stated === "string" ? storedDType(stated) : undefined;
  if (dtype === undefined) throw fail(`unknown dtype ${JSON.stringify(stated ?? null)}`);
  const shape = sizes(value.get("shape"));
  if (shape === undefined || shape.length > MAX_RANK) throw fail("its shape is no list of sizes");
  const [begin, end, ...more] = sizes(value.get("data_offsets")) ?? [];
  if (begin === undefined || end === undefined || more.length > 0) throw fail("its data_offsets are no two offsets");
  if (begin > end) throw fail(`its data ends at ${end}, before it begins at ${begin}`);
  const bytes = shape.reduce((product, size) => product * size, storedBytes(dtype));
  if (!Number.isSafeInteger(bytes)) throw fail(`its shape [${shape.join(", ")}] is too large`);
  if (bytes !== end - begin) {
    throw fail(
      `its shape [${shape.join(", ")}] of ${dtype} needs ${bytes} bytes, its data_offsets give ${end - begin}`,
    );
  }
  return { name, dtype, shape, offset: dataStart + begin, bytes };
}

function sizes(value: StrictJson | undefined): number[] | undefined {
  if (!Array.isArray(value)) return undefined;
  const isSize = (size: StrictJson): size is number =>
    typeof size === "number" && Number.isSafeInteger(size) && size >= 0;
  return value.every(isSize) ? value : undefined;
}

function checkRanges(file: string, tensors: readonly TensorEntry[], dataStart: number, fileBytes: number): void {
  let at = dataStart;
  for (const { name, offset, bytes } of tensors) {
    if (offset < at) throw malformed(file, "its data overlaps another tensor's", name);
    if (offset > at) throw malformed(file, `there is a hole of ${offset - at} bytes before its data`, name);
    at += bytes;
    if (at > fileBytes)
      throw malformed(file, `its data ends beyond the file, which has ${fileBytes} bytes: cut short?`, name);
  }
  if (at < fileBytes) throw malformed(file, `${fileBytes - at} bytes follow the last tensor`);
}
