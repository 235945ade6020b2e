// A model's config.json in Hugging Face's format, checked and typed: GPT-2, Llama, Mistral and Mixtral.
import { expectObject, expectText } from "../core/check.ts";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { ConfigError, systemReason } from "../core/errors.ts";
import { isJsonObject, type JsonObject } from "../core/json.ts";
import { nearest } from "../core/nearest.ts";

/** Activations by Hugging Face's names: `gelu` is exact, `gelu_new` the tanh approximation. */
export type Activation = "gelu_new" | "gelu" | "relu" | "silu";

interface CommonConfig {
  readonly vocabSize: number;
  /** Width of the residual stream. */
  readonly width: number;
  readonly layers: number;
  readonly heads: number;
  /** Width of a head; heads * headDim is `width` in GPT-2, may differ in Llama. */
  readonly headDim: number;
  /** Width of the feed-forward layers. */
  readonly innerWidth: number;
  readonly activation: Activation;
  /** The most positions: the longest sequence. */
  readonly maxPositions: number;
  /** Whether the output head is the token embedding. */
  readonly tieWordEmbeddings: boolean;
  readonly attentionDropout: number;
  /** Standard deviation of fresh weights. */
  readonly initializerRange: number;
  /** Ids that end a text; empty where the config names none. */
  readonly endTokens: readonly number[];
}

/** GPT-2: learned positions, LayerNorm, biases everywhere. */
export interface GPT2Config extends CommonConfig {
  readonly architecture: "gpt2";
  readonly layerNormEps: number;
  readonly embeddingDropout: number;
  readonly residualDropout: number;
}

/** How rotary frequencies are changed for longer contexts. */
export type RopeScaling =
  | { readonly kind: "linear"; readonly factor: number }
  | {
      readonly kind: "llama3";
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositions: number;
    };

/** Experts of a Mixtral layer. */
export interface ExpertsConfig {
  readonly count: number;
  readonly perToken: number;
  /** Weight of the load-balance term in the loss: 0 unless `output_router_logits` asks for the term. */
  readonly balanceWeight: number;
  /** Numbers of layers that have a dense feed-forward instead (`mlp_only_layers`). */
  readonly denseLayers?: readonly number[];
  /**
   * In training an expert takes at most this factor times its even share of a sample's choices, the tokens' first
   * choices first; others are dropped, and counted in the loss term `dropped`. Absent: none is dropped.
   */
  readonly capacityFactor?: number;
}

/** Llama and its relatives: RMSNorm, rotary positions, grouped-query attention, gated feed-forward. */
export interface LlamaConfig extends CommonConfig {
  readonly architecture: "llama" | "mistral" | "mixtral";
  /** Key-value heads; divides `heads`. */
  readonly kvHeads: number;
  readonly rmsNormEps: number;
  readonly ropeTheta: number;
  readonly ropeScaling: RopeScaling | undefined;
  /** Biases of the attention's projections. */
  readonly attentionBias: boolean;
  /** Biases of the feed-forward's projections. */
  readonly mlpBias: boolean;
  /** Mixtral only. */
  readonly experts: ExpertsConfig | undefined;
}

/** A model's hyperparameters. */
export type ModelConfig = GPT2Config | LlamaConfig;

/** The content of a config.json. */
export type ConfigJson = JsonObject;

/** A model folder's config.json, typed and as it stands, to be saved again unchanged. */
export interface ModelConfigFile {
  readonly config: ModelConfig;
  readonly json: ConfigJson;
}

/** Reads a folder's config.json. @throws {ConfigError} where it is missing, malformed or unsupported. */
export async function readModelConfig(folder: string): Promise<ModelConfigFile> {
  expectText("the folder of a model", folder);
  const file = path.join(folder, "config.json");
  let json: unknown;
  try {
    json = JSON.parse(await readFile(file, "utf8"));
  } catch (cause) {
    const reason = cause instanceof SyntaxError ? `not valid JSON: ${cause.message}` : systemReason(cause);
    throw new ConfigError(`${file}: ${reason}`, { cause, details: { file } });
  }
  if (!isJsonObject(json)) throw new ConfigError(`${file}: a JSON object is expected`, { details: { file } });
  return { config: parseModelConfig(json, file), json };
}

/**
 * Types and checks a config.json's content.
 * @param source how to call it in messages
 * @throws {ConfigError} naming the key that is missing, ill-typed, or asks for what is not supported.
 */
export function parseModelConfig(json: ConfigJson, source = "config.json"): ModelConfig {
  expectObject("a model's config", json);
  const fields = new Fields(json, source);
  fields.refuse("quantization_config", "quantized weights are not supported");
  const type = fields.text("model_type");
  switch (type) {
    case "gpt2":
      return parseGPT2(fields);
    case "llama":
    case "mistral":
    case "mixtral":
      return parseLlama(fields, type);
    default: {
      const supported = ["gpt2", "llama", "mistral", "mixtral"];
      throw fields.error(
        "model_type",
        `"${type}" is not supported; ${supported.join(", ")} are, the nearest is "${nearest(type, supported)}"`,
      );
    }
  }
}

const MAX_SIZE = 2 ** 31 - 1;

function parseGPT2(fields: Fields): GPT2Config {
  fields.refuse("scale_attn_by_inverse_layer_idx", "not supported");
  fields.refuse("add_cross_attention", "not supported");
  if (!fields.flag("scale_attn_weights", true)) throw fields.error("scale_attn_weights", "false is not supported");
  const width = fields.size("n_embd");
  const heads = fields.size("n_head");
  if (width % heads !== 0) throw fields.error("n_head", `${heads} heads do not divide n_embd ${width}`);
  return {
    architecture: "gpt2",
    vocabSize: fields.size("vocab_size"),
    width,
    layers: fields.size("n_layer"),
    heads,
    headDim: width / heads,
    innerWidth: fields.size("n_inner", 4 * width),
    activation: fields.activation("activation_function", "gelu_new"),
    maxPositions: fields.size("n_positions"),
    tieWordEmbeddings: fields.flag("tie_word_embeddings", true),
    layerNormEps: fields.positive("layer_norm_epsilon", 1e-5),
    // A config that says nothing gets no dropout, though the Python library's own default is 0.1.
    embeddingDropout: fields.fraction("embd_pdrop"),
    attentionDropout: fields.fraction("attn_pdrop"),
    residualDropout: fields.fraction("resid_pdrop"),
    initializerRange: fields.positive("initializer_range", 0.02),
    endTokens: fields.ids("eos_token_id"),
  };
}

function parseLlama(fields: Fields, architecture: LlamaConfig["architecture"]): LlamaConfig {
  const width = fields.size("hidden_size");
  const heads = fields.size("num_attention_heads");
  const kvHeads = fields.size("num_key_value_heads", heads);
  if (heads % kvHeads !== 0) {
    throw fields.error("num_key_value_heads", `${kvHeads} key-value heads do not divide ${heads} heads`);
  }
  const headDim = fields.size("head_dim", width / heads);
  if (!Number.isInteger(headDim)) {
    throw fields.error(
      "num_attention_heads",
      `${heads} heads do not divide hidden_size ${width}, and there is no head_dim`,
    );
  }
  if (headDim % 2 !== 0) throw fields.error("head_dim", `${headDim} is odd; rotary positions need pairs`);
  const maxPositions = fields.size("max_position_embeddings", 2048);
  checkWindow(fields, maxPositions);
  return {
    architecture,
    vocabSize: fields.size("vocab_size"),
    width,
    layers: fields.size("num_hidden_layers"),
    heads,
    kvHeads,
    headDim,
    innerWidth: fields.size("intermediate_size"),
    activation: fields.activation("hidden_act", "silu"),
    maxPositions,
    tieWordEmbeddings: fields.flag("tie_word_embeddings", false),
    rmsNormEps: fields.positive("rms_norm_eps", architecture === "mixtral" ? 1e-5 : 1e-6),
    ...parseRope(fields, maxPositions),
    attentionBias: fields.flag("attention_bias", false),
    mlpBias: fields.flag("mlp_bias", false),
    attentionDropout: fields.fraction("attention_dropout"),
    initializerRange: fields.positive("initializer_range", 0.02),
    endTokens: fields.ids("eos_token_id"),
    experts: architecture === "mixtral" ? parseExperts(fields) : undefined,
  };
}

/** Mistral's sliding window does nothing where it is as long as any sequence. */
function checkWindow(fields: Fields, maxPositions: number): void {
  const window = fields.size("sliding_window", maxPositions);
  if (window >= maxPositions || fields.get("use_sliding_window") === false) return;
  throw fields.error("sliding_window", `${window} positions, fewer than max_position_embeddings: not supported`);
}

function parseExperts(fields: Fields): ExpertsConfig {
  const count = fields.size("num_local_experts");
  const perToken = fields.size("num_experts_per_tok");
  if (perToken > count) throw fields.error("num_experts_per_tok", `${perToken} of ${count} experts cannot be chosen`);
  const weight = fields.number("router_aux_loss_coef", 0.001);
  const denseLayers = fields.ids("mlp_only_layers");
  return {
    count,
    perToken,
    balanceWeight: fields.flag("output_router_logits", false) ? weight : 0,
    ...(denseLayers.length > 0 ? { denseLayers } : {}),
  };
}

/** Newer files hold theta and scaling in `rope_parameters`, older ones in `rope_theta` and `rope_scaling`. */
function parseRope(fields: Fields, maxPositions: number): Pick<LlamaConfig, "ropeTheta" | "ropeScaling"> {
  const newer = fields.object("rope_parameters");
  const scaling = newer ?? fields.object("rope_scaling");
  const ropeTheta = (newer?.has("rope_theta") ? newer : fields).positive("rope_theta", 10_000);
  if (scaling === undefined) return { ropeTheta, ropeScaling: undefined };
  const key = scaling.has("rope_type") ? "rope_type" : "type";
  const kind = scaling.text(key);
  switch (kind) {
    case "default":
      return { ropeTheta, ropeScaling: undefined };
    case "linear":
      return { ropeTheta, ropeScaling: { kind, factor: scaling.positive("factor") } };
    case "llama3":
      return { ropeTheta, ropeScaling: parseLlama3(scaling, maxPositions) };
    default:
      throw scaling.error(key, `"${kind}" is not supported; default, linear and llama3 are`);
  }
}

function parseLlama3(scaling: Fields, maxPositions: number): RopeScaling {
  const lowFreqFactor = scaling.positive("low_freq_factor");
  const highFreqFactor = scaling.positive("high_freq_factor");
  if (highFreqFactor <= lowFreqFactor) throw scaling.error("high_freq_factor", `must be above low_freq_factor`);
  return {
    kind: "llama3",
    factor: scaling.positive("factor"),
    lowFreqFactor,
    highFreqFactor,
    originalMaxPositions: scaling.size("original_max_position_embeddings", maxPositions),
  };
}

/** Names that mean the same function. */
const ACTIVATIONS: ReadonlyMap<string, Activation> = new Map([
  ["gelu_new", "gelu_new"],
  ["gelu_pytorch_tanh", "gelu_new"],
  ["gelu", "gelu"],
  ["relu", "relu"],
  ["silu", "silu"],
  ["swish", "silu"],
]);

/** Reads keys of a JSON object; null counts as missing, as in the files themselves. */
class Fields {
  readonly #json: ConfigJson;
  readonly #source: string;

  constructor(json: ConfigJson, source: string) {
    this.#json = json;
    this.#source = source;
  }

  error(key: string, reason: string): ConfigError {
    return new ConfigError(`${this.#source}, ${key}: ${reason}`, { details: { source: this.#source, key } });
  }

  get(key: string): unknown {
    return Object.hasOwn(this.#json, key) ? (this.#json[key] ?? undefined) : undefined;
  }

  has(key: string): boolean {
    return this.get(key) !== undefined;
  }

  refuse(key: string, reason: string): void {
    const value = this.get(key);
    if (value !== undefined && value !== false) throw this.error(key, reason);
  }

  text(key: string): string {
    const value = this.#required(key, undefined);
    return typeof value === "string" ? value : this.#mistyped(key, "a text", value);
  }

  /** A whole number from 1 on. */
  size(key: string, fallback?: number): number {
    const value = this.#required(key, fallback);
    // A fallback may be a fraction, which the caller refuses with a better reason.
    if (fallback !== undefined && value === fallback) return fallback;
    const valid = typeof value === "number" && Number.isInteger(value) && value >= 1 && value <= MAX_SIZE;
    return valid ? value : this.#mistyped(key, `a whole number from 1 to ${MAX_SIZE}`, value);
  }

  number(key: string, fallback?: number): number {
    const value = this.#required(key, fallback);
    return typeof value === "number" && Number.isFinite(value) ? value : this.#mistyped(key, "a number", value);
  }

  positive(key: string, fallback?: number): number {
    const value = this.number(key, fallback);
    return value > 0 ? value : this.#mistyped(key, "a number above 0", value);
  }

  /** A number from 0 to below 1; 0 when missing. */
  fraction(key: string): number {
    const value = this.number(key, 0);
    return value >= 0 && value < 1 ? value : this.#mistyped(key, "a number from 0 to below 1", value);
  }

  flag(key: string, fallback: boolean): boolean {
    const value = this.#required(key, fallback);
    return typeof value === "boolean" ? value : this.#mistyped(key, "true or false", value);
  }

  activation(key: string, fallback: Activation): Activation {
    const value = this.has(key) ? this.text(key) : fallback;
    const known = ACTIVATIONS.get(value);
    if (known !== undefined) return known;
    throw this.error(key, `"${value}" is not supported; ${[...ACTIVATIONS.keys()].join(", ")} are`);
  }

  /** One id or a list of them. */
  ids(key: string): number[] {
    const value = this.get(key) ?? [];
    const ids: unknown[] = Array.isArray(value) ? value : [value];
    const isId = (id: unknown): id is number => typeof id === "number" && Number.isInteger(id) && id >= 0;
    return ids.every(isId) ? ids : this.#mistyped(key, "an id or a list of ids", value);
  }

  object(key: string): Fields | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    return isJsonObject(value) ? new Fields(value, `${this.#source}, ${key}`) : this.#mistyped(key, "an object", value);
  }

  #required(key: string, fallback: unknown): unknown {
    const value = this.get(key) ?? fallback;
    if (value === undefined) throw this.error(key, "missing");
    return value;
  }

  #mistyped(key: string, expected: string, value: unknown): never {
    throw this.error(key, `${expected} is expected, not ${JSON.stringify(value)}`);
  }
}
