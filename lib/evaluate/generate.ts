// Text generation by recomputing the whole context for every token: simple, right under every mesh, slow for long
// texts.
import type { StorageArray } from "../core/dtype.ts";
import { DataError } from "../core/errors.ts";
import type { LanguageModel } from "../nn/language-model.ts";
import type { Precision } from "../passes/precision.ts";
import { embedding } from "../tensor/functions.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { type ForwardStep, forwardStep } from "../train/forward.ts";
import type { Placement } from "../train/placement.ts";
import type { Sampler } from "./sampler.ts";

/** Settings of a generation. */
export interface GenerateOptions {
  readonly maxTokens: number;
  readonly sample: Sampler;
  /** Ids that end the generation when they come up. */
  readonly endTokens?: ReadonlySet<number>;
  readonly signal?: AbortSignal;
}

/** A generated token and the logits it was chosen from. */
export interface GeneratedToken {
  readonly id: number;
  readonly logits: Float32Array;
}

/** Smallest context that is compiled; larger ones double. */
const smallestBucket = 16;

/** Generates with a placed model. Contexts are padded to a few lengths, each compiled once. */
export class Generator implements Disposable {
  readonly #placement: Placement;
  readonly #model: LanguageModel;
  readonly #precision: Precision;
  readonly #steps = new Map<number, Promise<ForwardStep>>();

  constructor(placement: Placement, model: LanguageModel, precision: Precision = "f32") {
    this.#placement = placement;
    this.#model = model;
    this.#precision = precision;
  }

  /** Compiles the program for contexts of up to so many tokens. */
  async prepare(tokens: number): Promise<void> {
    await this.#step(this.#bucket(tokens));
  }

  #bucket(tokens: number): number {
    const { maxPositions } = this.#model.config;
    let n = Math.min(smallestBucket, maxPositions);
    while (n < tokens) n *= 2;
    return Math.min(n, maxPositions);
  }

  #step(length: number): Promise<ForwardStep> {
    const known = this.#steps.get(length);
    if (known) return known;
    const logits = (batch: Readonly<Record<string, Tensor>>) => {
      const all = this.#model.call(batch.ids!);
      const rows = all.reshape([length, all.shape[2]!]);
      return { logits: embedding(rows, batch.last!.reshape([1])) };
    };
    const fields = { ids: { dtype: "i32", shape: [length], sequence: 0 }, last: { dtype: "i32", shape: [] } } as const;
    const made = forwardStep(this.#placement, logits, fields, { batchSize: 1, precision: this.#precision });
    this.#steps.set(length, made);
    return made;
  }

  /** Next-token logits after a context; of a longer one than the model has positions, after its end. */
  async logits(context: readonly number[]): Promise<Float32Array> {
    const { maxPositions, vocabSize } = this.#model.config;
    if (context.length === 0) throw new DataError("generation needs at least one token of context");
    const bad = context.findIndex((id) => !(Number.isInteger(id) && id >= 0 && id < vocabSize));
    if (bad >= 0)
      throw new DataError(`token ${context[bad]} at position ${bad} is outside the vocabulary of ${vocabSize}`);
    const recent = context.slice(-maxPositions);
    const length = this.#bucket(recent.length);
    const ids = new Int32Array(length);
    ids.set(recent);
    const step = await this.#step(length);
    const results: Map<string, StorageArray> = await step.run({ ids, last: [recent.length - 1] });
    return Float32Array.from(results.get("logits")!);
  }

  /** Continues a context token by token. */
  async *tokens(context: readonly number[], options: GenerateOptions): AsyncGenerator<GeneratedToken, void, undefined> {
    const ids = [...context];
    for (let n = 0; n < options.maxTokens; n++) {
      options.signal?.throwIfAborted();
      const logits = await this.logits(ids);
      const id = options.sample(logits, n);
      if (options.endTokens?.has(id)) return;
      ids.push(id);
      yield { id, logits };
    }
  }

  [Symbol.dispose](): void {
    for (const step of this.#steps.values()) {
      step.then(
        (s) => s[Symbol.dispose](),
        () => {},
      );
    }
  }
}
