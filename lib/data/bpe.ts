// Trains a byte-level BPE tokenizer: the most frequent neighbouring pair becomes a token, again and again.
import { expectInteger } from "../core/check.ts";
import { DataError } from "../core/errors.ts";
import { HuggingFaceTokenizer } from "./hf-tokenizer.ts";
import { BYTE_CHARACTERS, byteLevelConfig, byteLevelJson, MIN_BPE_VOCAB } from "./tokenizer.ts";

/** The token between documents; the last id of a trained vocabulary. */
export const END_OF_TEXT = "<|endoftext|>";

/** GPT-2's public pattern of pre-tokens, which merges never cross. */
const PRE_TOKENS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/** Pairs are keyed by left * PAIR + right, exact in a double. */
const PAIR = 1 << 21;

/**
 * Trains a tokenizer of `vocabSize` tokens on texts: the 256 bytes (ids 0 to 255), merges in order, and the end-of-text
 * token last. Deterministic: ties go to the pair with the smaller ids.
 * @throws {DataError} when `vocabSize` is below 257, or the text has too few different pairs for so many tokens.
 */
export function trainBpe(texts: Iterable<string>, vocabSize: number): HuggingFaceTokenizer {
  expectInteger("a tokenizer's vocabulary", vocabSize, 0);
  if (!Number.isSafeInteger(vocabSize) || vocabSize < MIN_BPE_VOCAB || vocabSize > PAIR) {
    throw new DataError(`bpe:${vocabSize}: at least ${MIN_BPE_VOCAB} tokens are needed: 256 bytes and the end of text`);
  }
  const trainer = new Trainer(countPreTokens(texts));
  const names = [...BYTE_CHARACTERS];
  const merges: [string, string][] = [];
  while (names.length < vocabSize - 1) {
    const pair = trainer.mergeBest(names.length);
    if (pair === undefined) {
      throw new DataError(
        `bpe:${vocabSize}: the text has only enough different pairs for ${names.length + 1} tokens; ` +
          `use --tokenizer bpe:${names.length + 1}, or more text`,
        { details: { vocabSize, possible: names.length + 1 } },
      );
    }
    const [left, right] = [names[pair[0]]!, names[pair[1]]!];
    merges.push([left, right]);
    names.push(left + right);
  }
  names.push(END_OF_TEXT);
  const vocab = Object.fromEntries(names.map((name, id) => [name, id]));
  const files = new Map([
    ["tokenizer.json", byteLevelJson(vocab, merges, { id: vocabSize - 1, content: END_OF_TEXT })],
    ["tokenizer_config.json", byteLevelConfig(END_OF_TEXT)],
  ]);
  return new HuggingFaceTokenizer(`bpe:${vocabSize}`, files);
}

function countPreTokens(texts: Iterable<string>): Map<string, number> {
  const counts = new Map<string, number>();
  for (const text of texts) {
    for (const [word] of text.matchAll(PRE_TOKENS)) counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  return counts;
}

/** Distinct pre-tokens as id sequences, with the count of each pair and where it occurs. */
class Trainer {
  readonly #words: number[][] = [];
  readonly #wordCounts: number[] = [];
  readonly #pairCounts = new Map<number, number>();
  readonly #pairWords = new Map<number, Set<number>>();
  readonly #queue = new PairQueue();

  constructor(words: ReadonlyMap<string, number>) {
    const encoder = new TextEncoder();
    for (const [word, count] of words) {
      const index = this.#words.push([...encoder.encode(word)]) - 1;
      this.#wordCounts.push(count);
      this.#addPairs(index, count);
    }
    for (const [pair, count] of this.#pairCounts) this.#queue.push(pair, count);
  }

  /** Makes `id` of the most frequent pair everywhere and returns the pair; undefined when no pair is left. */
  mergeBest(id: number): readonly [number, number] | undefined {
    const best = this.#queue.popCurrent(this.#pairCounts);
    if (best === undefined) return undefined;
    const [left, right] = [Math.floor(best / PAIR), best % PAIR];
    const touched = new Set<number>();
    for (const index of this.#pairWords.get(best) ?? []) {
      const count = this.#wordCounts[index]!;
      this.#countPairs(this.#words[index]!, -count, touched);
      this.#words[index] = mergeIn(this.#words[index]!, left, right, id);
      this.#countPairs(this.#words[index]!, count, touched);
      this.#addPlaces(index);
    }
    this.#pairCounts.delete(best);
    this.#pairWords.delete(best);
    for (const pair of touched) {
      const count = this.#pairCounts.get(pair) ?? 0;
      if (count > 0) this.#queue.push(pair, count);
      else this.#pairCounts.delete(pair);
    }
    return [left, right];
  }

  #addPairs(index: number, count: number): void {
    this.#countPairs(this.#words[index]!, count, undefined);
    this.#addPlaces(index);
  }

  #countPairs(word: readonly number[], count: number, touched: Set<number> | undefined): void {
    for (let i = 0; i + 1 < word.length; i++) {
      const pair = word[i]! * PAIR + word[i + 1]!;
      this.#pairCounts.set(pair, (this.#pairCounts.get(pair) ?? 0) + count);
      touched?.add(pair);
    }
  }

  // Places are only ever added: a word that lost a pair is found again in vain, which is cheap.
  #addPlaces(index: number): void {
    const word = this.#words[index]!;
    for (let i = 0; i + 1 < word.length; i++) {
      const pair = word[i]! * PAIR + word[i + 1]!;
      const places = this.#pairWords.get(pair);
      if (places === undefined) this.#pairWords.set(pair, new Set([index]));
      else places.add(index);
    }
  }
}

function mergeIn(word: readonly number[], left: number, right: number, id: number): number[] {
  const merged: number[] = [];
  for (let i = 0; i < word.length; i++) {
    if (word[i] === left && word[i + 1] === right) {
      merged.push(id);
      i++;
    } else merged.push(word[i]!);
  }
  return merged;
}

/** A binary heap of (pair, count): largest count first, then smallest pair. Outdated entries are dropped when met. */
class PairQueue {
  readonly #pairs: number[] = [];
  readonly #counts: number[] = [];

  push(pair: number, count: number): void {
    let at = this.#pairs.length;
    this.#pairs.push(pair);
    this.#counts.push(count);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.#before(at, parent)) break;
      this.#swap(at, parent);
      at = parent;
    }
  }

  popCurrent(current: ReadonlyMap<number, number>): number | undefined {
    while (this.#pairs.length > 0) {
      const [pair, count] = [this.#pairs[0]!, this.#counts[0]!];
      this.#swap(0, this.#pairs.length - 1);
      this.#pairs.pop();
      this.#counts.pop();
      this.#sink();
      if (current.get(pair) === count) return pair;
    }
    return undefined;
  }

  #sink(): void {
    let at = 0;
    for (;;) {
      let first = at;
      for (const child of [2 * at + 1, 2 * at + 2]) {
        if (child < this.#pairs.length && this.#before(child, first)) first = child;
      }
      if (first === at) return;
      this.#swap(at, first);
      at = first;
    }
  }

  #before(a: number, b: number): boolean {
    const difference = this.#counts[a]! - this.#counts[b]!;
    return difference !== 0 ? difference > 0 : this.#pairs[a]! < this.#pairs[b]!;
  }

  #swap(a: number, b: number): void {
    const [pair, count] = [this.#pairs[a]!, this.#counts[a]!];
    this.#pairs[a] = this.#pairs[b]!;
    this.#counts[a] = this.#counts[b]!;
    this.#pairs[b] = pair;
    this.#counts[b] = count;
  }
}
