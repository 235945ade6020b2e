// Models by name: a Hugging Face config.json and how such a model is trained by default.
import { expectObject } from "../core/check.ts";
import { UsageError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";

/** How a model is trained unless flags say otherwise. */
export interface TrainingDefaults {
  readonly steps: number;
  /** Samples a step. */
  readonly batchSize: number;
  /** Tokens a sample. */
  readonly seqLen: number;
  readonly learningRate: number;
  readonly lrSchedule: "constant" | "cosine";
  /** Steps over which the rate rises. */
  readonly warmup: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weightDecay: number;
  /** Bound of the gradient's norm; 0 for none. */
  readonly clipNorm: number;
  /** Steps between evaluations of the held-out loss. */
  readonly evalEvery: number;
}

/** A model by name. */
export interface Preset {
  readonly config: JsonObject;
  readonly training: TrainingDefaults;
  /** Whether the vocabulary follows the tokenizer even where none is asked for; else it is the config's. */
  readonly vocabOfTokenizer: boolean;
}

/** Changes to a preset's model. */
export interface PresetChanges {
  readonly layers?: number | undefined;
  readonly width?: number | undefined;
  readonly heads?: number | undefined;
  readonly kvHeads?: number | undefined;
  readonly vocab?: number | undefined;
  /** Positions are added where the preset has fewer. */
  readonly seqLen?: number | undefined;
}

const ADAMW = { betas: [0.9, 0.95], eps: 1e-8, weightDecay: 0.1, clipNorm: 1 } as const;

/** Training of full-size models on text: the published choices of GPT-3's smallest and its kin. */
const PRETRAINING = { ...ADAMW, lrSchedule: "cosine", steps: 10_000, warmup: 500, evalEvery: 500 } as const;

function gpt2(n_layer: number, n_embd: number, n_head: number, n_positions = 1024, vocab_size = 50_257): JsonObject {
  return {
    model_type: "gpt2",
    architectures: ["GPT2LMHeadModel"],
    vocab_size,
    n_positions,
    n_embd,
    n_layer,
    n_head,
    n_inner: null,
    activation_function: "gelu_new",
    layer_norm_epsilon: 1e-5,
    initializer_range: 0.02,
    embd_pdrop: 0,
    attn_pdrop: 0,
    resid_pdrop: 0,
    tie_word_embeddings: true,
  };
}

function llama(sizes: JsonObject): JsonObject {
  return {
    model_type: "llama",
    architectures: ["LlamaForCausalLM"],
    hidden_act: "silu",
    initializer_range: 0.02,
    attention_bias: false,
    mlp_bias: false,
    attention_dropout: 0,
    ...sizes,
  };
}

const LLAMA_3 = {
  vocab_size: 128_256,
  rms_norm_eps: 1e-5,
  rope_theta: 500_000,
  num_key_value_heads: 8,
  max_position_embeddings: 8192,
  tie_word_embeddings: false,
};

const DEMO_TRAINING: TrainingDefaults = {
  ...ADAMW,
  steps: 600,
  batchSize: 16,
  seqLen: 128,
  learningRate: 3e-3,
  lrSchedule: "cosine",
  warmup: 40,
  evalEvery: 100,
};

function fullSize(config: JsonObject, learningRate: number, batchSize: number, seqLen: number): Preset {
  return { config, training: { ...PRETRAINING, learningRate, batchSize, seqLen }, vocabOfTokenizer: false };
}

/** All presets by name. */
export const presets: ReadonlyMap<string, Preset> = new Map<string, Preset>([
  ["demo", { config: gpt2(4, 128, 4, 128, 256), training: DEMO_TRAINING, vocabOfTokenizer: true }],
  ["gpt2", fullSize(gpt2(12, 768, 12), 6e-4, 64, 1024)],
  ["gpt2-medium", fullSize(gpt2(24, 1024, 16), 3e-4, 64, 1024)],
  ["gpt2-large", fullSize(gpt2(36, 1280, 20), 2.5e-4, 64, 1024)],
  ["gpt2-xl", fullSize(gpt2(48, 1600, 25), 2e-4, 64, 1024)],
  [
    "llama-tiny",
    {
      config: llama({
        vocab_size: 256,
        hidden_size: 128,
        intermediate_size: 352,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000,
        tie_word_embeddings: false,
      }),
      training: DEMO_TRAINING,
      vocabOfTokenizer: true,
    },
  ],
  [
    "llama-1b",
    fullSize(
      llama({
        ...LLAMA_3,
        hidden_size: 2048,
        intermediate_size: 8192,
        num_hidden_layers: 16,
        num_attention_heads: 32,
        tie_word_embeddings: true,
      }),
      3e-4,
      64,
      2048,
    ),
  ],
  [
    "llama-8b",
    fullSize(
      llama({
        ...LLAMA_3,
        hidden_size: 4096,
        intermediate_size: 14_336,
        num_hidden_layers: 32,
        num_attention_heads: 32,
      }),
      3e-4,
      64,
      2048,
    ),
  ],
]);

/** How a model of a folder is trained on: smaller steps where it starts from weights. */
export function folderDefaults(fromWeights: boolean, maxPositions: number): TrainingDefaults {
  return {
    ...ADAMW,
    steps: 600,
    batchSize: 8,
    seqLen: Math.min(maxPositions, 512),
    learningRate: fromWeights ? 5e-5 : 5e-4,
    lrSchedule: "cosine",
    warmup: 25,
    evalEvery: 100,
  };
}

/**
 * A preset's config.json with changes to it.
 * @throws {UsageError} for key-value heads in an architecture without them.
 */
export function presetConfig(preset: Preset, changes: PresetChanges): JsonObject {
  expectObject("a preset", preset);
  expectObject("changes of a preset", changes);
  const { layers, width, heads, kvHeads, vocab, seqLen } = changes;
  const { config } = preset;
  expectObject("a preset's config", config);
  const isGPT2 = config.model_type === "gpt2";
  if (isGPT2 && kvHeads !== undefined) throw new UsageError("--kv-heads: GPT-2 has none; a Llama preset does");
  const keys = isGPT2 ? GPT2_KEYS : LLAMA_KEYS;
  const changed = new Map<string, unknown>(Object.entries(config));
  const set = (key: string | undefined, value: number | undefined) => {
    if (key !== undefined && value !== undefined) changed.set(key, value);
  };
  set(keys.layers, layers);
  set(keys.width, width);
  set(keys.heads, heads);
  set("vocab_size", vocab);
  if (seqLen !== undefined) set(keys.positions, Math.max(seqLen, Number(config[keys.positions])));
  if (!isGPT2) {
    if (width !== undefined) set("intermediate_size", innerWidth(width));
    // With other heads the preset's groups may not divide them; one key-value head a head always does.
    set("num_key_value_heads", kvHeads ?? dividing(Number(config.num_key_value_heads), heads));
  }
  return Object.fromEntries(changed);
}

const GPT2_KEYS = { layers: "n_layer", width: "n_embd", heads: "n_head", positions: "n_positions" } as const;
const LLAMA_KEYS = {
  layers: "num_hidden_layers",
  width: "hidden_size",
  heads: "num_attention_heads",
  positions: "max_position_embeddings",
} as const;

/** Llama's gated layers: two thirds of 4 widths, rounded up to a multiple of 32. */
function innerWidth(width: number): number {
  return Math.ceil((8 * width) / 3 / 32) * 32;
}

function dividing(groups: number, heads: number | undefined): number | undefined {
  if (heads === undefined) return undefined;
  return heads % groups === 0 ? groups : heads;
}
