// Data files to one stream of tokens: text through a tokenizer, .jsonl by field, .u16 and .u32 as they are.
import { expectList, expectObject } from "../core/check.ts";
import os from "node:os";
import { DataError } from "../core/errors.ts";
import { trainBpe } from "./bpe.ts";
import { type DataFile, defaultDataFiles, type FileDigest, findFiles, readWhole } from "./files.ts";
import { decodeStrictly } from "./hf-tokenizer.ts";
import { type TokenSegment, TokenStream } from "./stream.ts";
import {
  ByteTokenizer,
  findTokenizer,
  loadTokenizer,
  type TokenIds,
  type Tokenizer,
  type TokenizerChoice,
} from "./tokenizer.ts";

/** Which data, and how it becomes tokens. */
export interface DataRequest {
  /** Files, folders and globs; undefined for the repository's default text. */
  readonly paths?: readonly string[] | undefined;
  /** Which field of a .jsonl line is the text. Default: `text`. */
  readonly field?: string | undefined;
  /** Undefined: the model folder's tokenizer, else bytes. */
  readonly tokenizer?: TokenizerChoice | undefined;
  /** A model's folder, searched for a tokenizer. */
  readonly modelFolder?: string | undefined;
}

/** Data ready to train on. */
export interface TokenData {
  readonly tokens: TokenStream;
  /** Undefined for token files. */
  readonly tokenizer: Tokenizer | undefined;
  /** What was read, in order. */
  readonly files: readonly FileDigest[];
  /** Files of folders and globs that were left out because they are not text. */
  readonly skipped: readonly string[];
}

/** A text with its origin; bytes where nothing needs characters. */
interface Document {
  readonly source: string;
  readonly bytes: Uint8Array;
}

interface TextFile {
  readonly path: string;
  readonly documents: readonly Document[];
  readonly lines: boolean;
}

/**
 * Finds, reads and tokenizes the data. Between documents (text files, .jsonl lines) stands the tokenizer's end-of-text
 * token; where it has none, a line feed between .jsonl lines, and nothing between files.
 * @throws {DataError} for files that are missing, empty or malformed, or text and token files mixed.
 */
export async function openData(request: DataRequest): Promise<TokenData> {
  expectObject("what data to open", request);
  if (request.paths !== undefined) expectList("paths", request.paths);
  const found = request.paths === undefined ? await defaultDataFiles() : await findFiles(request.paths);
  const tokenFiles = found.filter((file) => file.kind === "u16" || file.kind === "u32");
  if (tokenFiles.length > 0) return openTokenFiles(found, tokenFiles, request);
  const { texts, files, skipped } = await readTexts(found, request.field ?? "text");
  const tokenizer = await chooseTokenizer(request, texts);
  const tokens = new TokenStream(encodeFiles(texts, tokenizer));
  if (tokens.length === 0) throw new DataError("no data: the files have no text in them", { details: { files } });
  return { tokens, tokenizer, files, skipped };
}

async function openTokenFiles(
  found: readonly DataFile[],
  tokenFiles: readonly DataFile[],
  request: DataRequest,
): Promise<TokenData> {
  const text = found.find((file) => !tokenFiles.includes(file));
  if (text !== undefined) {
    throw new DataError(`data: ${tokenFiles[0]!.path} holds tokens, ${text.path} text; one run takes one or the other`);
  }
  if (request.tokenizer !== undefined) {
    throw new DataError(`data ${tokenFiles[0]!.path} holds tokens already: --tokenizer does not apply`);
  }
  const segments: TokenSegment[] = [];
  const files: FileDigest[] = [];
  for (const file of tokenFiles) {
    const { bytes, digest } = await readWhole(file.path);
    segments.push({ source: file.path, ids: asTokens(file, bytes) });
    files.push(digest);
  }
  const tokenizer = request.modelFolder === undefined ? undefined : await findTokenizer(request.modelFolder);
  return { tokens: new TokenStream(segments), tokenizer, files, skipped: [] };
}

function asTokens(file: DataFile, bytes: Uint8Array): TokenIds {
  const width = file.kind === "u16" ? 2 : 4;
  if (bytes.length === 0) throw new DataError(`data ${file.path}: the file is empty`, { details: { file: file.path } });
  if (bytes.length % width !== 0) {
    throw new DataError(`data ${file.path}: ${bytes.length} bytes are no whole number of ${width}-byte tokens`, {
      details: { file: file.path },
    });
  }
  if (os.endianness() === "BE") swapBytes(bytes, width);
  return width === 2
    ? new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2)
    : new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}

/** Token files are little-endian. */
function swapBytes(bytes: Uint8Array, width: 2 | 4): void {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  if (width === 2) buffer.swap16();
  else buffer.swap32();
}

async function readTexts(found: readonly DataFile[], field: string) {
  const texts: TextFile[] = [];
  const files: FileDigest[] = [];
  const skipped: string[] = [];
  for (const file of found) {
    const { bytes, digest } = await readWhole(file.path);
    if (file.named && bytes.length === 0) {
      throw new DataError(`data ${file.path}: the file is empty`, { details: { file: file.path } });
    }
    if (!file.named && file.kind === "text" && looksBinary(bytes)) {
      skipped.push(file.path);
      continue;
    }
    files.push(digest);
    const lines = file.kind === "jsonl";
    const documents = lines ? readLines(file.path, bytes, field) : [{ source: file.path, bytes }];
    texts.push({ path: file.path, documents, lines });
  }
  return { texts, files, skipped };
}

/** A NUL early in a file, as Git tells binary files. */
function looksBinary(bytes: Uint8Array): boolean {
  return bytes.subarray(0, 8192).includes(0);
}

function readLines(file: string, bytes: Uint8Array, field: string): Document[] {
  const documents: Document[] = [];
  const decoder = new TextDecoder();
  const encoder = new TextEncoder();
  let line = 0;
  for (let start = 0; start < bytes.length; ) {
    const found = bytes.indexOf(10, start);
    const end = found < 0 ? bytes.length : found;
    line++;
    const text = decoder.decode(bytes.subarray(start, end));
    start = end + 1;
    if (text.trim() === "") continue;
    const source = `${file} line ${line}`;
    documents.push({ source, bytes: encoder.encode(fieldOf(source, text, field)) });
  }
  return documents;
}

function fieldOf(source: string, json: string, field: string): string {
  let parsed: unknown;
  try {
    parsed = JSON.parse(json);
  } catch (cause) {
    throw new DataError(`data ${source}: not valid JSON`, { cause, details: { source } });
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw new DataError(`data ${source}: a JSON object was expected`, { details: { source } });
  }
  const value = new Map<string, unknown>(Object.entries(parsed)).get(field);
  if (typeof value === "string") return value;
  const found = value === undefined ? `it has ${Object.keys(parsed).join(", ") || "none"}` : `it is ${typeof value}`;
  throw new DataError(`data ${source}: no text in the field "${field}" (${found}); --field names another`, {
    details: { source, field },
  });
}

async function chooseTokenizer(request: DataRequest, texts: readonly TextFile[]): Promise<Tokenizer> {
  const choice = request.tokenizer;
  if (choice?.kind === "byte") return new ByteTokenizer();
  if (choice?.kind === "file") return loadTokenizer(choice.path);
  if (choice?.kind === "bpe") return trainBpe(characters(texts, `bpe:${choice.vocabSize}`), choice.vocabSize);
  const ofModel = request.modelFolder === undefined ? undefined : await findTokenizer(request.modelFolder);
  return ofModel ?? new ByteTokenizer();
}

function* characters(texts: readonly TextFile[], tokenizer: string): Iterable<string> {
  for (const text of texts) {
    for (const { bytes, source } of text.documents) yield decodeStrictly(bytes, source, tokenizer);
  }
}

function encodeFiles(texts: readonly TextFile[], tokenizer: Tokenizer): TokenSegment[] {
  const end = tokenizer.endOfText === undefined ? undefined : [tokenizer.endOfText];
  const lineFeed = [...tokenizer.encode("\n")];
  return texts.map((text, index) => {
    const separator = end ?? (text.lines ? lineFeed : []);
    const parts: ArrayLike<number>[] = text.documents.flatMap(({ bytes, source }) => [
      tokenizer.encodeBytes(bytes, source),
      separator,
    ]);
    if (index === texts.length - 1) parts.pop();
    return { source: text.path, ids: join(parts, tokenizer.vocabSize) };
  });
}

function join(parts: readonly ArrayLike<number>[], vocabSize: number): TokenIds {
  const filled = parts.filter((part) => part.length > 0);
  const [only] = filled;
  if (filled.length === 1 && only instanceof Uint8Array) return only;
  const length = filled.reduce((sum, part) => sum + part.length, 0);
  const Ids = vocabSize <= 1 << 8 ? Uint8Array : vocabSize <= 1 << 16 ? Uint16Array : Uint32Array;
  const ids = new Ids(length);
  let at = 0;
  for (const part of filled) {
    ids.set(part, at);
    at += part.length;
  }
  return ids;
}
