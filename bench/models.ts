// The models that steps and compiling are measured with.
import { nn, optim, presets, type TrainStepOptions } from "../lib/index.ts";

/** A GPT and the batch it is trained on. */
export interface Workload {
  readonly name: string;
  readonly config: nn.GPT2Config;
  readonly batchSize: number;
  readonly seqLen: number;
}

function gpt(layers: number, width: number, heads: number, vocabulary: number, positions: number): nn.GPT2Config {
  const config = nn.parseConfig({
    model_type: "gpt2",
    vocab_size: vocabulary,
    n_positions: positions,
    n_embd: width,
    n_layer: layers,
    n_head: heads,
    embd_pdrop: 0,
    attn_pdrop: 0,
    resid_pdrop: 0,
  });
  if (config.architecture !== "gpt2") throw new Error("expected a GPT-2");
  return config;
}

function demo(): Workload {
  const { config, training } = presets.get("demo")!;
  const parsed = nn.parseConfig(config);
  if (parsed.architecture !== "gpt2") throw new Error("the demo is a GPT-2");
  return { name: "demo", config: parsed, batchSize: training.batchSize, seqLen: training.seqLen };
}

export const workloads = {
  demo: demo(),
  gpt6: { name: "gpt 6 x 384", config: gpt(6, 384, 6, 256, 256), batchSize: 8, seqLen: 256 },
  gpt2Short: { name: "GPT-2 124M", config: gpt(12, 768, 12, 50_257, 1024), batchSize: 2, seqLen: 256 },
  gpt2: { name: "gpt2 12 x 768", config: gpt(12, 768, 12, 50_257, 1024), batchSize: 8, seqLen: 1024 },
} as const satisfies Record<string, Workload>;

/** Settings of a training step of the workload: next-token loss, AdamW, clipping at 1. */
export function stepOptions(model: nn.GPT2, { batchSize, seqLen }: Workload): TrainStepOptions<"inputs" | "targets"> {
  const tokens = { dtype: "i32", shape: [seqLen] } as const;
  return {
    loss: ({ inputs, targets }) => model.loss(inputs, targets),
    optimizer: optim.adamw({ learningRate: 1e-4, weightDecay: 0.1 }),
    batchSize,
    batch: { inputs: tokens, targets: tokens },
    clipNorm: 1,
  };
}

/** Tokens that differ from sample to sample. */
export function batchOf({ config, batchSize, seqLen }: Workload): { inputs: Int32Array; targets: Int32Array } {
  const token = (i: number): number => (i * 7919 + Math.floor(i / 13)) % config.vocabSize;
  const inputs = Int32Array.from({ length: batchSize * seqLen }, (_, i) => token(i));
  const targets = Int32Array.from({ length: batchSize * seqLen }, (_, i) => token(i + 1));
  return { inputs, targets };
}

/** Weights that take part in products: blocks and head (the tied embedding once). */
export function matmulWeights({ layers, width, innerWidth, vocabSize }: nn.GPT2Config): number {
  return layers * (4 * width * width + 2 * width * innerWidth) + vocabSize * width;
}

/** Arithmetic of a training step: 6 for each weight and token, and causal attention; no recomputation counted. */
export function stepFlops({ config, batchSize, seqLen }: Workload): number {
  const attention = 6 * config.layers * config.width * seqLen;
  return batchSize * seqLen * (6 * matmulWeights(config) + attention);
}
