// Batches of a token stream: shuffled by seed or in sequence, each a function of the step alone, so that runs resume.
import { describe } from "../core/describe.ts";
import { expectObject } from "../core/check.ts";
import { ConfigError, DataError } from "../core/errors.ts";
import { permute } from "./permutation.ts";
import type { TokenStream } from "./stream.ts";

/** How samples are ordered. */
export type SampleOrder = "shuffle" | "sequential";

/** What a dataset is made of. */
export interface DatasetOptions {
  readonly tokens: TokenStream;
  /** Tokens a sample, T. */
  readonly seqLen: number;
  /** Samples a step over all devices, B. */
  readonly batchSize: number;
  readonly order: SampleOrder;
  /** Picks the order of `shuffle`; a whole number below 2^53. */
  readonly seed: number;
  /** Share of the samples held out, in [0, 1). Default: 0.02 for `shuffle`, 0 for `sequential`. */
  readonly validationFraction?: number | undefined;
}

/** Samples for one step, row after row. */
export interface Batch {
  /** Token ids, [samples, T]. */
  readonly inputs: Int32Array;
  /** The tokens that follow, [samples, T]: targets[b, t] is the token after inputs[b, t]. */
  readonly targets: Int32Array;
  readonly samples: number;
  readonly seqLen: number;
}

export const DEFAULT_VALIDATION_FRACTION: Readonly<Record<SampleOrder, number>> = { shuffle: 0.02, sequential: 0 };

/**
 * Batches of samples of T inputs and the T tokens that follow them.
 *
 * `sequential`: sample b of step s reads tokens from (s * B + b) * T on; a fraction to hold out is taken from the end.
 * `shuffle`: the stream is cut into samples, some spread evenly over it are held out (the same for every seed), and
 * each epoch visits all others once, in an order that depends on the seed and the epoch alone.
 */
export class Dataset {
  readonly seqLen: number;
  readonly batchSize: number;
  readonly order: SampleOrder;
  /** Samples to train on, each once an epoch. */
  readonly samples: number;
  /** Samples held out. */
  readonly validationSamples: number;
  /** Steps the data allow: Infinity for `shuffle`, which begins another epoch. */
  readonly steps: number;
  readonly #tokens: TokenStream;
  readonly #seed: number;

  /** @throws {DataError} where the data is shorter than one sample, or one step for `sequential`. */
  constructor(options: DatasetOptions) {
    expectObject("a dataset's options", options);
    const { tokens, seqLen, batchSize, order, seed } = options;
    expectObject("a dataset's tokens", tokens);
    const fraction = options.validationFraction ?? DEFAULT_VALIDATION_FRACTION[order];
    checkSizes(seqLen, batchSize, fraction);
    const all = Math.max(0, Math.floor((tokens.length - 1) / seqLen));
    if (all === 0) {
      throw new DataError(
        `the data is shorter than one sample: ${tokens.length} tokens, where ${seqLen} inputs and the token after ` +
          `them need ${seqLen + 1}; use more text or a smaller --seq-len`,
        { details: { tokens: tokens.length, seqLen } },
      );
    }
    this.#tokens = tokens;
    this.#seed = seed;
    this.seqLen = seqLen;
    this.batchSize = batchSize;
    this.order = order;
    this.validationSamples = heldOut(all, fraction, batchSize);
    this.samples = all - this.validationSamples;
    this.steps = order === "shuffle" ? Number.POSITIVE_INFINITY : Math.floor(this.samples / batchSize);
    if (this.steps === 0) this.requireSteps(1);
  }

  /** Steps in which every sample is seen once; with `shuffle` an epoch may end within a step. */
  get stepsPerEpoch(): number {
    return this.samples / this.batchSize;
  }

  /** @throws {DataError} where the data does not allow so many steps, saying how many it does. */
  requireSteps(steps: number): void {
    if (steps <= this.steps) return;
    const needed = steps * this.batchSize * this.seqLen + 1;
    throw new DataError(
      `the data allow ${this.steps} steps of ${this.batchSize} x ${this.seqLen} tokens in sequence, not ${steps}: ` +
        `${this.#tokens.length} tokens, where ${needed} are needed; use --steps ${this.steps}, more data, or --order shuffle`,
      { details: { steps: this.steps, asked: steps, tokens: this.#tokens.length, needed } },
    );
  }

  /**
   * The samples of a step, counted from 0, where every step before took a batch: inputs and targets [B, T].
   * @throws {DataError} where a sequence has run out.
   */
  batch(step: number): Batch {
    return this.batchAt(step * this.batchSize);
  }

  /**
   * The B samples from the first-th of the training's order on, counted from 0: what a run that has had `first` samples
   * takes next, whatever its batch size and devices were before.
   * @throws {DataError} where a sequence has run out.
   */
  batchAt(first: number): Batch {
    if (!(Number.isSafeInteger(first) && first >= 0)) throw new RangeError(`sample ${first}: a whole number from 0 on`);
    this.requireSteps(Math.ceil(first / this.batchSize) + 1);
    return this.#read(this.batchSize, (b) => this.#trainSample(first + b));
  }

  /** The held-out samples in order, in batches of up to `batchSize`; only the last may have fewer. */
  *validationBatches(batchSize = this.batchSize): Generator<Batch, void, undefined> {
    for (let first = 0; first < this.validationSamples; first += batchSize) {
      const samples = Math.min(batchSize, this.validationSamples - first);
      yield this.#read(samples, (b) => this.#heldOutSample(first + b));
    }
  }

  #read(samples: number, sampleAt: (b: number) => number): Batch {
    const { seqLen } = this;
    const inputs = new Int32Array(samples * seqLen);
    const targets = new Int32Array(samples * seqLen);
    for (let b = 0; b < samples; b++) {
      const start = sampleAt(b) * seqLen;
      this.#tokens.read(start, seqLen, inputs, b * seqLen);
      this.#tokens.read(start + 1, seqLen, targets, b * seqLen);
    }
    return { inputs, targets, samples, seqLen };
  }

  /** Place in the stream, in samples, of the n-th sample trained on. */
  #trainSample(n: number): number {
    if (this.order === "sequential") return n;
    const epoch = Math.floor(n / this.samples);
    const index = permute(n % this.samples, this.samples, this.#seed, epoch);
    return this.#skipHeldOut(index);
  }

  #heldOutSample(v: number): number {
    const all = this.samples + this.validationSamples;
    if (this.order === "sequential") return this.samples + v;
    return Math.floor(((v + 0.5) * all) / this.validationSamples);
  }

  /** The index-th sample that is not held out: the least s with s minus the held-out ones before it equal to index. */
  #skipHeldOut(index: number): number {
    let [low, high] = [0, this.validationSamples];
    // The number v of held-out samples before it: the first v whose sample comes after the index-th kept one.
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#heldOutSample(middle) - middle > index) high = middle;
      else low = middle + 1;
    }
    return index + low;
  }
}

/** Whole batches where there are that many, so that evaluation runs at one shape; never more than half of all. */
function heldOut(all: number, fraction: number, batchSize: number): number {
  if (fraction === 0) return 0;
  const wanted = Math.max(1, Math.round(all * fraction));
  const whole = Math.max(1, Math.round(wanted / batchSize)) * batchSize;
  return whole <= all / 2 ? whole : Math.min(wanted, all - 1);
}

function checkSizes(seqLen: number, batchSize: number, fraction: number): void {
  for (const [name, value] of Object.entries({ seqLen, batchSize })) {
    if (!(Number.isSafeInteger(value) && value >= 1))
      throw new ConfigError(`${name} ${describe(value)}: a whole number from 1 on`);
  }
  if (!(fraction >= 0 && fraction < 1))
    throw new ConfigError(`validationFraction ${describe(fraction)}: from 0 to below 1`);
}
