// What GPT-2, Llama and their like share: token ids to logits, the next-token loss, blocks for pipeline stages.
import { expectInteger } from "../core/check.ts";
import { describe } from "../core/describe.ts";
import { DTypeError, ShapeError } from "../core/errors.ts";
import { shapeText } from "../core/shape.ts";
import { crossEntropy } from "../tensor/functions.ts";
import type { Parameter } from "../tensor/parameter.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { BatchField, LossTerm } from "../train/trace.ts";
import type { ConfigJson, ModelConfig } from "./config.ts";
import { Module } from "./module.ts";

/** Targets with this value count for nothing. */
export const IGNORED_TARGET = -100;

/** A loss as named terms: its value is the sum of the terms' means, each times its weight. */
export type LossTerms = Readonly<Record<string, LossTerm>>;

/** A module that is not split over pipeline stages, and what a token costs in it (multiply-adds). */
export interface PipelineBlock {
  readonly path: string;
  readonly cost: number;
}

/** What a model was read from, to be saved alike. */
export interface ModelSource {
  /** config.json as it stood. */
  readonly json: ConfigJson;
  /** The names of the weights' parts in its files. */
  readonly names: ReadonlyMap<Parameter, readonly string[]>;
}

/** Gives logits of the next token at every position. */
export abstract class LanguageModel extends Module {
  abstract readonly config: ModelConfig;
  /** Where the model was read from; undefined for a new one. */
  source: ModelSource | undefined;

  /** ids i32 [b, t] -> logits [b, t, vocabulary]. Throws ShapeError for more positions than the model has. */
  abstract override forward(ids: Tensor): Tensor;

  /** Modules in the order in which data flows, for assignment to pipeline stages. */
  abstract pipelineBlocks(sequenceLength?: number): PipelineBlock[];

  /** The arrays of a batch for loss(), for a step's `batch`: ids outside the vocabulary are refused. */
  batchFields(sequenceLength: number): { readonly inputs: BatchField; readonly targets: BatchField } {
    expectInteger("the length of a sequence", sequenceLength, 1);
    const inputs = { dtype: "i32", shape: [sequenceLength], sequence: 0, below: this.config.vocabSize } as const;
    return { inputs, targets: { ...inputs, ignore: IGNORED_TARGET } };
  }

  /** Next-token cross-entropy of inputs and targets, i32 [b, t]; targets of -100 count for nothing. */
  loss(inputs: Tensor, targets: Tensor): LossTerms {
    return this.nextTokenLoss(inputs, targets, () => this.call(inputs));
  }

  /** The term `loss` of the logits that a function gives. */
  protected nextTokenLoss(inputs: Tensor, targets: Tensor, logits: () => Tensor): LossTerms {
    expectIds("inputs", inputs);
    expectIds("targets", targets);
    if (targets.shape.some((n, d) => n !== inputs.shape[d])) {
      throw new ShapeError(
        `inputs are ${shapeText(inputs.shape)}, targets ${shapeText(targets.shape)}: there is one target for each input`,
      );
    }
    const sum = crossEntropy(logits(), targets, IGNORED_TARGET).sum();
    return { loss: { sum, count: targets.ne(IGNORED_TARGET).cast("f32").sum() } };
  }

  /** Refuses what cannot be token ids of this model. */
  protected expectTokens(ids: Tensor): void {
    expectIds("token ids", ids);
    const { maxPositions } = this.config;
    if (ids.shape[1]! > maxPositions) {
      throw new ShapeError(`sequences of ${ids.shape[1]} tokens: the model has ${maxPositions} positions`);
    }
  }
}

function expectIds(what: string, ids: Tensor): void {
  if (!(ids instanceof Tensor)) throw new DTypeError(`${what} are a tensor, not ${describe(ids)}`);
  if (ids.dtype !== "i32") throw new DTypeError(`${what} are i32, got ${ids.dtype}`);
  if (ids.rank !== 2) throw new ShapeError(`${what} are [batch, time], got ${shapeText(ids.shape)}`);
}

/** Multiply-adds of a token's attention in one layer, when half of the positions are visible on average. */
export function attentionCost(heads: number, headDim: number, sequenceLength: number): number {
  expectInteger("the length of a sequence", sequenceLength, 1);
  return heads * headDim * sequenceLength;
}
