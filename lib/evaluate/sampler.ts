// Choosing the next token from logits: greedy, or at random with temperature, top-k and top-p.
import { expectObject } from "../core/check.ts";
import { NonFiniteError } from "../core/errors.ts";
import { uniform } from "../core/philox.ts";
import { siteHash } from "../core/random.ts";

/** How tokens are chosen. */
export interface SamplerOptions {
  /** Divides the logits; 0 is greedy: the likeliest token, the lowest id among equals. */
  readonly temperature: number;
  /** Choose among the k likeliest tokens; undefined for all. */
  readonly topK?: number | undefined;
  /** Choose among the likeliest tokens that together have this probability; undefined or 1 for all. */
  readonly topP?: number | undefined;
  readonly seed: number;
}

/**
 * Chooses a token id.
 * @param logits one for each token of the vocabulary
 * @param index which draw this is, from 0: the same seed and index draw the same number
 */
export type Sampler = (logits: Float32Array, index: number) => number;

/** A sampler. The sampler throws NonFiniteError for logits among which there is NaN or no finite one. */
export function createSampler(options: SamplerOptions): Sampler {
  expectObject("a sampler's options", options);
  const { temperature, topK, topP = 1, seed } = options;
  const site = siteHash("sampler");
  return (logits, index) => {
    const best = argmax(logits, index);
    if (temperature === 0) return best;
    const candidates = likeliest(logits, topK);
    const weights = probabilities(logits, candidates, temperature, logits[best]!);
    const kept = topP < 1 ? nucleus(candidates, weights, topP) : candidates.length;
    return draw(candidates, weights, kept, uniform(seed, site, index));
  };
}

function argmax(logits: Float32Array, index: number): number {
  let best = -1;
  for (let id = 0; id < logits.length; id++) {
    const value = logits[id]!;
    if (Number.isNaN(value) || value === Number.POSITIVE_INFINITY) throw notFinite(index, id, value);
    if (best < 0 || value > logits[best]!) best = id;
  }
  if (best < 0 || logits[best] === Number.NEGATIVE_INFINITY) throw notFinite(index, best, Number.NEGATIVE_INFINITY);
  return best;
}

function notFinite(index: number, id: number, value: number): NonFiniteError {
  return new NonFiniteError(`token ${index}: the logit of id ${id} is ${value}`, { details: { index, id, value } });
}

/** Ids by falling logit, ties by id; only the first k. */
function likeliest(logits: Float32Array, topK: number | undefined): Uint32Array {
  const ids = Uint32Array.from({ length: logits.length }, (_, id) => id);
  ids.sort((a, b) => logits[b]! - logits[a]! || a - b);
  return topK === undefined ? ids : ids.subarray(0, topK);
}

function probabilities(logits: Float32Array, ids: Uint32Array, temperature: number, largest: number): Float64Array {
  const weights = Float64Array.from(ids, (id) => Math.exp((logits[id]! - largest) / temperature));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return weights.map((weight) => weight / sum);
}

/** How many of the likeliest reach probability `topP` together; at least one. */
function nucleus(ids: Uint32Array, weights: Float64Array, topP: number): number {
  let sum = 0;
  for (let i = 0; i < ids.length; i++) {
    sum += weights[i]!;
    if (sum >= topP) return i + 1;
  }
  return ids.length;
}

function draw(ids: Uint32Array, weights: Float64Array, kept: number, random: number): number {
  let left = random * weights.subarray(0, kept).reduce((total, weight) => total + weight, 0);
  for (let i = 0; i < kept; i++) {
    left -= weights[i]!;
    if (left < 0) return ids[i]!;
  }
  // Rounding may leave a little: the least likely kept token that can be drawn at all.
  let last = kept - 1;
  while (last > 0 && weights[last] === 0) last--;
  return ids[last]!;
}
