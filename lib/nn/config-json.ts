// A typed config written as Hugging Face's config.json, for models that were not read from one.
import { expectList, expectObject } from "../core/check.ts";
import { describe } from "../core/describe.ts";
import { ConfigError } from "../core/errors.ts";
import type { ConfigJson, GPT2Config, LlamaConfig, ModelConfig, RopeScaling } from "./config.ts";

const CLASS_NAMES = {
  gpt2: "GPT2LMHeadModel",
  llama: "LlamaForCausalLM",
  mistral: "MistralForCausalLM",
  mixtral: "MixtralForCausalLM",
} as const;

/** The config.json that parseModelConfig() types as `config`. */
export function configJson(config: ModelConfig): ConfigJson {
  expectObject("a model's config", config);
  if (!(config.architecture in CLASS_NAMES)) {
    const known = Object.keys(CLASS_NAMES).join(", ");
    throw new ConfigError(`a model's architecture is one of ${known}, not ${describe(config.architecture)}`);
  }
  expectList("endTokens", config.endTokens);
  return {
    model_type: config.architecture,
    architectures: [CLASS_NAMES[config.architecture]],
    vocab_size: config.vocabSize,
    initializer_range: config.initializerRange,
    tie_word_embeddings: config.tieWordEmbeddings,
    ...(config.endTokens.length === 0 ? {} : { eos_token_id: oneOrMany(config.endTokens) }),
    torch_dtype: "float32",
    ...(config.architecture === "gpt2" ? gpt2Keys(config) : llamaKeys(config)),
  };
}

function oneOrMany(ids: readonly number[]): number | readonly number[] {
  return ids.length === 1 ? ids[0]! : ids;
}

function gpt2Keys(config: GPT2Config): ConfigJson {
  return {
    n_positions: config.maxPositions,
    n_ctx: config.maxPositions,
    n_embd: config.width,
    n_layer: config.layers,
    n_head: config.heads,
    n_inner: config.innerWidth,
    activation_function: config.activation,
    layer_norm_epsilon: config.layerNormEps,
    embd_pdrop: config.embeddingDropout,
    attn_pdrop: config.attentionDropout,
    resid_pdrop: config.residualDropout,
  };
}

function llamaKeys(config: LlamaConfig): ConfigJson {
  return {
    hidden_size: config.width,
    intermediate_size: config.innerWidth,
    num_hidden_layers: config.layers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.kvHeads,
    head_dim: config.headDim,
    hidden_act: config.activation,
    max_position_embeddings: config.maxPositions,
    rms_norm_eps: config.rmsNormEps,
    rope_theta: config.ropeTheta,
    rope_scaling: config.ropeScaling === undefined ? null : scalingKeys(config.ropeScaling),
    attention_dropout: config.attentionDropout,
    attention_bias: config.attentionBias,
    mlp_bias: config.mlpBias,
    ...(config.architecture === "llama" ? {} : { sliding_window: null }),
    ...(config.experts === undefined
      ? {}
      : {
          num_local_experts: config.experts.count,
          num_experts_per_tok: config.experts.perToken,
          output_router_logits: config.experts.balanceWeight !== 0,
          router_aux_loss_coef: config.experts.balanceWeight,
          ...(config.experts.denseLayers ? { mlp_only_layers: [...config.experts.denseLayers] } : {}),
        }),
  };
}

function scalingKeys(scaling: RopeScaling): ConfigJson {
  if (scaling.kind === "linear") return { rope_type: "linear", factor: scaling.factor };
  return {
    rope_type: "llama3",
    factor: scaling.factor,
    low_freq_factor: scaling.lowFreqFactor,
    high_freq_factor: scaling.highFreqFactor,
    original_max_position_embeddings: scaling.originalMaxPositions,
  };
}
