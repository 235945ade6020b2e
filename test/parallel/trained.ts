// Small models, and what training makes of them: shared by the tests that hold a mesh against one device.
import assert from "node:assert/strict";
import { fromStorage } from "../../lib/core/dtype.ts";
import type { ModelConfig } from "../../lib/nn/config.ts";
import type { LanguageModel } from "../../lib/nn/language-model.ts";
import type { Mesh } from "../../lib/tensor/mesh.ts";
import type { StepResult } from "../../lib/train/step.ts";

/** Sizes of a small model; its other numbers are the same for all. */
export type SmallSizes = Pick<ModelConfig, "vocabSize" | "width" | "layers" | "heads" | "headDim" | "innerWidth">;

const common = { maxPositions: 8, initializerRange: 0.3, endTokens: [] } as const;

/** With tied weights. */
export function smallGpt2(sizes: SmallSizes, dropout = 0): ModelConfig {
  return {
    ...common,
    ...sizes,
    architecture: "gpt2",
    activation: "gelu_new",
    tieWordEmbeddings: true,
    layerNormEps: 1e-5,
    attentionDropout: dropout,
    embeddingDropout: dropout,
    residualDropout: dropout,
  };
}

/** With two heads of keys and values; Mixtral where it has experts. */
export function smallLlama(sizes: SmallSizes, experts = false): ModelConfig {
  return {
    ...common,
    ...sizes,
    architecture: experts ? "mixtral" : "llama",
    activation: "silu",
    tieWordEmbeddings: false,
    attentionDropout: 0,
    kvHeads: 2,
    rmsNormEps: 1e-5,
    ropeTheta: 10_000,
    ropeScaling: undefined,
    attentionBias: false,
    mlpBias: false,
    // The balance term is each microbatch's own, so that it depends on their number: it weighs nothing here.
    experts: experts ? { count: 4, perToken: 2, balanceWeight: 0 } : undefined,
  };
}

/** What a model was trained to. */
export interface Trained {
  readonly results: readonly StepResult[];
  readonly weights: ReadonlyMap<string, readonly number[]>;
}

/** A model's weights on a mesh, by path. */
export function weightsOf(mesh: Mesh, model: LanguageModel): Trained["weights"] {
  return new Map(model.parameters().map((p) => [p.path, fromStorage(p.dtype, mesh.store.read(p.id))]));
}

/** Largest difference from one device: relative to the value, or to 0.01 where that is smaller. */
export const tolerance = { loss: 1e-4, gradNorm: 1e-3, weights: 1e-3 } as const;

function assertNear(found: number, expected: number, relative: number, what: string): void {
  const scale = Math.max(Math.abs(expected), 1e-2);
  if (!(Math.abs(found - expected) <= relative * scale)) assert.fail(`${what} is ${found}, not ${expected}`);
}

/** Throws unless losses, gradient norms, dropped choices and weights are those of one device. */
export function assertTrained({ results, weights }: Trained, whole: Trained): void {
  assert.equal(results.length, whole.results.length);
  results.forEach((result, k) => {
    const expected = whole.results[k]!;
    assertNear(result.loss, expected.loss, tolerance.loss, `the loss of step ${k + 1}`);
    assertNear(result.gradNorm, expected.gradNorm, tolerance.gradNorm, `the gradient's norm of step ${k + 1}`);
  });
  const dropped = (trained: Trained): unknown[] => trained.results.map(({ terms }) => terms.dropped?.toFixed(5));
  assert.deepEqual(dropped({ results, weights }), dropped(whole), "choices dropped by experts");
  assert.deepEqual([...weights.keys()], [...whole.weights.keys()]);
  for (const [path, values] of whole.weights) {
    values.forEach((v, i) => {
      assertNear(weights.get(path)![i]!, v, tolerance.weights, `${path}, element ${i},`);
    });
  }
}
