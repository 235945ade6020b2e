// Tokenizers in Hugging Face's tokenizer.json format, run by @huggingface/tokenizers.
import { expectText } from "../core/check.ts";
import { Tokenizer as LibraryTokenizer } from "@huggingface/tokenizers";
import { DataError } from "../core/errors.ts";
import { isJsonObject, type JsonObject } from "../core/json.ts";
import { BYTE_CHARACTERS, BYTES, type TextStream, type TokenIds, type Tokenizer } from "./tokenizer.ts";

/** Names that end-of-text tokens have in public vocabularies, for folders whose config does not say. */
const END_OF_TEXT_NAMES = ["<|endoftext|>", "<|end_of_text|>", "</s>"];

/** Long texts are encoded in pieces of about this many characters where that cannot change the tokens. */
const PIECE_CHARACTERS = 1 << 18;

const REPLACEMENT = "\uFFFD";

/** What is used of the library's tokenizer; its own declarations do not resolve under Node's rules. */
interface Model {
  encode(
    text: string,
    options: { readonly add_special_tokens: boolean },
  ): { readonly ids: readonly (number | undefined)[] };
  decode(ids: readonly number[], options: { readonly clean_up_tokenization_spaces: boolean }): string;
  id_to_token(id: number): string | undefined;
  token_to_id(token: string): number | undefined;
  get_vocab(): ReadonlyMap<string, number>;
}

/** A tokenizer.json, with the tokenizer_config.json beside it where there is one. */
export class HuggingFaceTokenizer implements Tokenizer {
  readonly name: string;
  readonly vocabSize: number;
  readonly endOfText: number | undefined;
  readonly files: ReadonlyMap<string, string>;
  readonly #model: Model;
  readonly #splitsAtLines: boolean;

  /**
   * @param name how to call it in messages: the file's path
   * @param files contents of tokenizer.json and, if there, tokenizer_config.json
   * @throws {DataError} where a file is malformed.
   */
  constructor(name: string, files: ReadonlyMap<string, string>) {
    expectText("a tokenizer's name", name);
    if (!(files instanceof Map)) throw new DataError(`tokenizer ${name}: its files are a Map of names to contents`);
    this.name = name;
    this.files = files;
    const tokenizer = parseObject(name, files.get("tokenizer.json") ?? "");
    const config = parseObject(`${name}'s tokenizer_config.json`, files.get("tokenizer_config.json") ?? "{}");
    try {
      this.#model = new LibraryTokenizer({ added_tokens: [], ...tokenizer }, config);
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new DataError(`tokenizer ${name}: not a tokenizer.json that can be used: ${reason}`, { cause });
    }
    this.vocabSize = 1 + largest(this.#model.get_vocab().values());
    if (this.vocabSize === 0) throw new DataError(`tokenizer ${name}: its vocabulary is empty`);
    this.endOfText = this.#findEndOfText(config);
    this.#splitsAtLines = splitsAtLines(tokenizer);
  }

  encode(text: string): TokenIds {
    const pieces = this.#splitsAtLines ? piecesOf(text) : [text];
    const encoded = pieces.map((piece) => this.#model.encode(piece, { add_special_tokens: false }).ids);
    const length = encoded.reduce((sum, ids) => sum + ids.length, 0);
    const ids = this.vocabSize <= 1 << 16 ? new Uint16Array(length) : new Uint32Array(length);
    let at = 0;
    for (const piece of encoded) {
      for (const id of piece) {
        if (id === undefined) throw new DataError(this.#unknownCharacters());
        ids[at++] = id;
      }
    }
    return ids;
  }

  encodeBytes(bytes: Uint8Array, source: string): TokenIds {
    return this.encode(decodeStrictly(bytes, source, this.name));
  }

  decode(ids: ArrayLike<number>): string {
    let text = "";
    let run: number[] = [];
    const finishRun = () => {
      if (run.length > 0) text += this.#model.decode(run, { clean_up_tokenization_spaces: false });
      run = [];
    };
    for (let i = 0; i < ids.length; i++) {
      if (this.#model.id_to_token(ids[i]!) !== undefined) run.push(ids[i]!);
      else {
        finishRun();
        text += REPLACEMENT;
      }
    }
    finishRun();
    return text;
  }

  /** Decodes a short window of ids, so that what a token adds after the ones before it comes out right. */
  stream(): TextStream {
    let window: number[] = [];
    let shown = "";
    let emitted = 0;
    return {
      push: (id) => {
        window.push(id);
        const text = this.decode(window);
        if (text.endsWith(REPLACEMENT) || text.length <= shown.length) return "";
        const added = text.slice(shown.length);
        // Keep only the ids since the last text as context for the next: their own text is what was added.
        window = window.slice(emitted);
        emitted = window.length;
        shown = this.decode(window);
        return added;
      },
      flush: () => {
        const added = this.decode(window).slice(shown.length);
        window = [];
        shown = "";
        emitted = 0;
        return added;
      },
    };
  }

  #findEndOfText(config: JsonObject): number | undefined {
    const stated = config.eos_token;
    const content = isJsonObject(stated) ? stated.content : stated;
    const names = typeof content === "string" ? [content] : END_OF_TEXT_NAMES;
    return names.map((name) => this.#model.token_to_id(name)).find((id) => id !== undefined);
  }

  #unknownCharacters(): string {
    return `tokenizer ${this.name}: the text has characters outside its vocabulary, and it has no token for unknown ones`;
  }
}

/** Whether a tokenizer.json is the byte tokenizer's own: byte b has id b, and nothing else. */
export function isByteTokenizer(json: string): boolean {
  // Real vocabularies are far longer; not parsing them twice matters.
  if (json.length > 16_384) return false;
  let parsed: unknown;
  try {
    parsed = JSON.parse(json);
  } catch {
    return false;
  }
  if (!isJsonObject(parsed) || !isJsonObject(parsed.model) || !isJsonObject(parsed.model.vocab)) return false;
  const { vocab, merges, type } = parsed.model;
  const plain = type === "BPE" && Array.isArray(merges) && merges.length === 0 && splitsAtLines(parsed);
  const noneAdded = Array.isArray(parsed.added_tokens) && parsed.added_tokens.length === 0;
  const ids = new Map(Object.entries(vocab));
  return plain && noneAdded && ids.size === BYTES && BYTE_CHARACTERS.every((name, byte) => ids.get(name) === byte);
}

/** True where pre-tokens never reach over a line's end followed by a non-blank: GPT-2's splitting of bytes. */
function splitsAtLines(tokenizer: JsonObject): boolean {
  const { normalizer, pre_tokenizer: split } = tokenizer;
  if ((normalizer ?? null) !== null || !isJsonObject(split)) return false;
  return split.type === "ByteLevel" && split.add_prefix_space === false && split.use_regex !== false;
}

function piecesOf(text: string): string[] {
  const pieces: string[] = [];
  let start = 0;
  while (text.length - start > PIECE_CHARACTERS) {
    const lineEnd = /\n(?=\S)/g;
    lineEnd.lastIndex = start + PIECE_CHARACTERS;
    const found = lineEnd.exec(text);
    if (found === null) break;
    pieces.push(text.slice(start, found.index + 1));
    start = found.index + 1;
  }
  pieces.push(text.slice(start));
  return pieces;
}

function largest(ids: Iterable<number>): number {
  let max = -1;
  for (const id of ids) max = Math.max(max, id);
  return max;
}

function parseObject(name: string, json: string): JsonObject {
  let parsed: unknown;
  try {
    parsed = JSON.parse(json);
  } catch (cause) {
    throw new DataError(`tokenizer ${name}: not valid JSON: ${cause instanceof Error ? cause.message : cause}`, {
      cause,
    });
  }
  if (!isJsonObject(parsed)) throw new DataError(`tokenizer ${name}: a JSON object was expected`);
  return parsed;
}

/** Utf-8 to text; the error names the first invalid byte. */
export function decodeStrictly(bytes: Uint8Array, source: string, tokenizer: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    const position = firstInvalidByte(bytes);
    throw new DataError(
      `${source}: byte ${position} (counted from 0) is not valid utf-8, which tokenizer ${tokenizer} needs; ` +
        "--tokenizer byte takes any bytes",
      { cause, details: { file: source, position } },
    );
  }
}

function firstInvalidByte(bytes: Uint8Array): number {
  let low = 0;
  let high = bytes.length;
  const decoder = () => new TextDecoder("utf-8", { fatal: true });
  // The longest prefix that decodes, an unfinished last character allowed.
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    try {
      decoder().decode(bytes.subarray(0, middle), { stream: true });
      low = middle;
    } catch {
      high = middle - 1;
    }
  }
  return low;
}
