// What a tokenizer is, the byte tokenizer, and how a tokenizer is found: by name, by file, in a model's folder.
import { expectText } from "../core/check.ts";
import { readFile, stat } from "node:fs/promises";
import path from "node:path";
import { DataError, systemReason } from "../core/errors.ts";

/** Token ids, in the narrowest type that holds the vocabulary. */
export type TokenIds = Uint8Array | Uint16Array | Uint32Array;

/** Turns ids into text as they come: a character split over several tokens appears with the last of them. */
export interface TextStream {
  /** The text that `id` completes; often "" in the middle of a character. */
  push(id: number): string;
  /** What is left at the end; an unfinished character becomes U+FFFD. */
  flush(): string;
}

/** Text to token ids and back. */
export interface Tokenizer {
  /** What made it, for people and run.json: `byte`, `bpe:1024`, or the file's path. */
  readonly name: string;
  /** One more than the largest id. */
  readonly vocabSize: number;
  /** The id put between documents and at the end of a text, where the tokenizer has one. */
  readonly endOfText: number | undefined;
  /** Files that make up the tokenizer in a model's folder: name to content. */
  readonly files: ReadonlyMap<string, string>;
  /** Ids of a text; no token is added at its beginning or end. */
  encode(text: string): TokenIds;
  /**
   * Ids of a document's utf-8 bytes. The byte tokenizer takes any bytes.
   * @throws {DataError} on invalid utf-8, with `source` and the position, where the tokenizer works on characters.
   */
  encodeBytes(bytes: Uint8Array, source: string): TokenIds;
  /** Text of ids; never throws: bytes that form no character and ids outside the vocabulary become U+FFFD. */
  decode(ids: ArrayLike<number>): string;
  /** A decoder for ids that come one at a time. */
  stream(): TextStream;
}

/** How many characters of text the byte-level alphabet has: one for each byte. */
export const BYTES = 256;

const REPLACEMENT = "\uFFFD";

/**
 * The 256 characters that stand for bytes in byte-level vocabularies: printable Latin-1 characters for themselves, the
 * others from U+0100 on in order. Public convention of GPT-2's vocabulary files.
 */
export const BYTE_CHARACTERS: readonly string[] = byteCharacters();

function byteCharacters(): string[] {
  const printable = (byte: number) => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad);
  const characters: string[] = [];
  let next = 0x100;
  for (let byte = 0; byte < BYTES; byte++) characters.push(String.fromCharCode(printable(byte) ? byte : next++));
  return characters;
}

/** Contents of tokenizer.json for a byte-level BPE tokenizer without a normalizer, in Hugging Face's format. */
export function byteLevelJson(
  vocab: Readonly<Record<string, number>>,
  merges: readonly (readonly [string, string])[],
  endOfText?: { readonly id: number; readonly content: string },
): string {
  const special = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  return `${JSON.stringify({
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: endOfText === undefined ? [] : [{ ...endOfText, ...special }],
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: null,
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab,
      merges,
    },
  })}\n`;
}

/** Contents of the tokenizer_config.json that goes with `byteLevelJson`. */
export function byteLevelConfig(endOfText?: string): string {
  const names = endOfText === undefined ? {} : { bos_token: endOfText, eos_token: endOfText };
  const config = { tokenizer_class: "PreTrainedTokenizerFast", clean_up_tokenization_spaces: false, ...names };
  return `${JSON.stringify(config, undefined, 2)}\n`;
}

/** A token is a byte of utf-8: 256 tokens, nothing to train, any bytes pass through unchanged. */
export class ByteTokenizer implements Tokenizer {
  readonly name = "byte";
  readonly vocabSize = BYTES;
  readonly endOfText = undefined;

  get files(): ReadonlyMap<string, string> {
    const vocab = Object.fromEntries(BYTE_CHARACTERS.map((character, byte) => [character, byte]));
    return new Map([
      ["tokenizer.json", byteLevelJson(vocab, [])],
      ["tokenizer_config.json", byteLevelConfig()],
    ]);
  }

  encode(text: string): Uint8Array {
    return new TextEncoder().encode(text);
  }

  encodeBytes(bytes: Uint8Array): Uint8Array {
    return bytes;
  }

  decode(ids: ArrayLike<number>): string {
    const stream = this.stream();
    let text = "";
    for (let i = 0; i < ids.length; i++) text += stream.push(ids[i]!);
    return text + stream.flush();
  }

  stream(): TextStream {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const one = new Uint8Array(1);
    return {
      push(id) {
        if (!(id >= 0 && id < BYTES)) return decoder.decode() + REPLACEMENT;
        one[0] = id;
        return decoder.decode(one, { stream: true });
      },
      flush: () => decoder.decode(),
    };
  }
}

/** What `--tokenizer` may ask for, once parsed. */
export type TokenizerChoice =
  | { readonly kind: "byte" }
  | { readonly kind: "bpe"; readonly vocabSize: number }
  | { readonly kind: "file"; readonly path: string };

/** Reads `byte`, `bpe:N` or a path to a tokenizer.json or its folder. @throws {DataError} on a bad N. */
export function parseTokenizerChoice(text: string): TokenizerChoice {
  if (text === "byte") return { kind: "byte" };
  const bpe = /^bpe(?::(.*))?$/.exec(text);
  if (bpe === null) return { kind: "file", path: text };
  const vocabSize = /^\d{1,7}$/.test(bpe[1] ?? "") ? Number(bpe[1]) : 0;
  if (vocabSize < MIN_BPE_VOCAB || vocabSize > MAX_BPE_VOCAB) {
    throw new DataError(
      `tokenizer "${text}": bpe:N needs a whole number of tokens N from ${MIN_BPE_VOCAB} to ${MAX_BPE_VOCAB}, e.g. bpe:1024`,
    );
  }
  return { kind: "bpe", vocabSize };
}

/** The 256 bytes and the end-of-text token. */
export const MIN_BPE_VOCAB = BYTES + 1;
export const MAX_BPE_VOCAB = 1 << 20;

/** The tokenizer of a model's folder, or undefined where it has none. @throws {DataError} where it is malformed. */
export async function findTokenizer(folder: string): Promise<Tokenizer | undefined> {
  const file = path.join(folder, "tokenizer.json");
  return (await isFile(file)) ? loadTokenizer(file) : undefined;
}

/**
 * Loads a tokenizer.json, given itself or its folder, with the tokenizer_config.json beside it.
 * @throws {DataError} where it is missing or malformed.
 */
export async function loadTokenizer(fileOrFolder: string): Promise<Tokenizer> {
  expectText("a tokenizer's file", fileOrFolder);
  const file = (await isFolder(fileOrFolder)) ? path.join(fileOrFolder, "tokenizer.json") : fileOrFolder;
  const files = new Map([["tokenizer.json", await readText(file)]]);
  const config = path.join(path.dirname(file), "tokenizer_config.json");
  if (await isFile(config)) files.set("tokenizer_config.json", await readText(config));
  const { HuggingFaceTokenizer, isByteTokenizer } = await import("./hf-tokenizer.ts");
  if (isByteTokenizer(files.get("tokenizer.json")!)) return new ByteTokenizer();
  return new HuggingFaceTokenizer(file, files);
}

async function readText(file: string): Promise<string> {
  try {
    return await readFile(file, "utf8");
  } catch (cause) {
    throw new DataError(`tokenizer ${file}: ${systemReason(cause)}`, { cause, details: { file } });
  }
}

async function isFile(file: string): Promise<boolean> {
  return stat(file).then(
    (found) => found.isFile(),
    () => false,
  );
}

async function isFolder(file: string): Promise<boolean> {
  return stat(file).then(
    (found) => found.isDirectory(),
    () => false,
  );
}
