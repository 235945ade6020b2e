// Llama (Touvron et al. 2023), Mistral and Mixtral. Dims: b samples, t tokens, w width, g key-value groups, r query
// heads of a group, d head width, f inner width, v vocabulary.
import { expectObject } from "../core/check.ts";
import { full, iota, rope } from "../tensor/functions.ts";
import type { Initial } from "../tensor/parameter.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { attendCausally } from "./attend.ts";
import type { ExpertsConfig, LlamaConfig } from "./config.ts";
import { Experts, imbalance, type Routing } from "./experts.ts";
import { attentionCost, LanguageModel, type LossTerms, type PipelineBlock } from "./language-model.ts";
import { activate, Dropout, Embedding, Projection, RMSNorm } from "./layers.ts";
import { Module, nameModules } from "./module.ts";
import { inverseFrequencies } from "./rotary.ts";

function fresh(config: LlamaConfig): Initial {
  return { kind: "normal", std: config.initializerRange };
}

class Attention extends Module {
  readonly q_proj: Projection;
  readonly k_proj: Projection;
  readonly v_proj: Projection;
  readonly o_proj: Projection;
  readonly dropout: Dropout;
  readonly #config: LlamaConfig;

  constructor(config: LlamaConfig) {
    super();
    this.#config = config;
    const { width, heads, kvHeads, headDim } = config;
    const common = {
      sizes: { w: width, g: kvHeads, r: heads / kvHeads, d: headDim },
      split: { g: "tp" },
      bias: config.attentionBias,
      initial: fresh(config),
    };
    const keys = { ...common, dims: "g d w", over: "w", stored: [kvHeads * headDim, width] };
    this.q_proj = new Projection({ ...common, dims: "g r d w", over: "w", stored: [heads * headDim, width] });
    this.k_proj = new Projection(keys);
    this.v_proj = new Projection(keys);
    this.o_proj = new Projection({ ...common, dims: "w g r d", over: "g r d", stored: [width, heads * headDim] });
    this.dropout = new Dropout(config.attentionDropout);
  }

  forward(x: Tensor): Tensor {
    const [b, t] = x.shape as readonly [number, number, number];
    const positions = iota(x.context, [t]).broadcastTo([b, t]);
    const frequencies = inverseFrequencies(x.context, this.#config);
    const q = rope(this.q_proj.call(x), positions, frequencies);
    const k = rope(this.k_proj.call(x), positions, frequencies);
    return this.o_proj.call(attendCausally(q, k, this.v_proj.call(x), this.dropout));
  }
}

/** Gated feed-forward (Shazeer 2020). */
class MLP extends Module {
  readonly gate_proj: Projection;
  readonly up_proj: Projection;
  readonly down_proj: Projection;
  readonly #activation: LlamaConfig["activation"];

  constructor(config: LlamaConfig) {
    super();
    const common = {
      sizes: { w: config.width, f: config.innerWidth },
      split: { f: "tp" },
      bias: config.mlpBias,
      initial: fresh(config),
    };
    this.gate_proj = new Projection({ ...common, dims: "f w", over: "w" });
    this.up_proj = new Projection({ ...common, dims: "f w", over: "w" });
    this.down_proj = new Projection({ ...common, dims: "w f", over: "f" });
    this.#activation = config.activation;
  }

  forward(x: Tensor): Tensor {
    const gate = activate(this.gate_proj.call(x), this.#activation);
    return this.down_proj.call(gate.mul(this.up_proj.call(x)));
  }
}

/** The experts of a layer; undefined for a dense one. */
function expertsOf({ experts }: LlamaConfig, layer: number): LlamaConfig["experts"] {
  return experts?.denseLayers?.includes(layer) ? undefined : experts;
}

class Layer extends Module {
  readonly input_layernorm: RMSNorm;
  readonly self_attn: Attention;
  readonly post_attention_layernorm: RMSNorm;
  /** One of the two is there. */
  readonly mlp: MLP | undefined;
  readonly block_sparse_moe: Experts | undefined;

  constructor(config: LlamaConfig, number: number) {
    super();
    this.input_layernorm = new RMSNorm(config.width, config.rmsNormEps);
    this.self_attn = new Attention(config);
    this.post_attention_layernorm = new RMSNorm(config.width, config.rmsNormEps);
    const experts = expertsOf(config, number);
    this.mlp = experts ? undefined : new MLP(config);
    this.block_sparse_moe = experts ? new Experts({ ...config, experts }) : undefined;
  }

  /** @param routing is given what the experts' router did */
  forward(x: Tensor, routing: Routing[]): Tensor {
    const attended = x.add(this.self_attn.call(this.input_layernorm.call(x)));
    const normed = this.post_attention_layernorm.call(attended);
    if (this.mlp) return attended.add(this.mlp.call(normed));
    const { result, ...routed } = this.block_sparse_moe!.call(normed);
    routing.push(routed);
    return attended.add(result);
  }
}

/** The model below its head. */
class Trunk extends Module {
  readonly embed_tokens: Embedding;
  readonly layers: readonly Layer[];
  readonly norm: RMSNorm;

  constructor(config: LlamaConfig) {
    super();
    this.embed_tokens = new Embedding(config.vocabSize, config.width, fresh(config), "tp");
    this.layers = Array.from({ length: config.layers }, (_, layer) => new Layer(config, layer));
    this.norm = new RMSNorm(config.width, config.rmsNormEps);
  }

  forward(ids: Tensor, routing: Routing[]): Tensor {
    let x = this.embed_tokens.call(ids);
    for (const layer of this.layers) x = layer.call(x, routing);
    return this.norm.call(x);
  }
}

function routingTerms(inputs: Tensor, routing: readonly Routing[], experts: ExpertsConfig): LossTerms {
  const samples = inputs.shape[0]!;
  const number = (value: number): Tensor => full(inputs.context, [], value);
  const dropped = routing.flatMap((r) => r.dropped ?? []);
  const choices = dropped.length * inputs.size * experts.perToken;
  const [balance, lost] = [experts.balanceWeight !== 0, dropped.length > 0];
  return {
    ...(balance && {
      balance: { sum: imbalance(routing).mul(samples), count: number(samples), weight: experts.balanceWeight },
    }),
    ...(lost && { dropped: { sum: dropped.reduce((sum, part) => sum.add(part)), count: number(choices), weight: 0 } }),
  };
}

/**
 * Llama: RMSNorm, rotary positions, grouped-query attention, gated feed-forward, or experts of it (Mixtral). Paths are
 * Hugging Face's weight names.
 */
export class Llama extends LanguageModel {
  readonly config: LlamaConfig;
  readonly model: Trunk;
  readonly lm_head: Projection;

  constructor(config: LlamaConfig) {
    super();
    expectObject("a model's config", config);
    this.config = config;
    this.model = new Trunk(config);
    this.lm_head = new Projection({
      dims: "v w",
      over: "w",
      sizes: { v: config.vocabSize, w: config.width },
      split: { v: "tp" },
      initial: fresh(config),
      ...(config.tieWordEmbeddings ? { weight: this.model.embed_tokens.weight } : {}),
    });
    nameModules(this);
  }

  override forward(ids: Tensor, routing: Routing[] = []): Tensor {
    this.expectTokens(ids);
    return this.lm_head.call(this.model.call(ids, routing));
  }

  /**
   * With the term `balance` where the config weighs it: how unevenly each microbatch uses the experts. With the term
   * `dropped`, of weight 0, where the experts' capacity is bounded: the share of choices that found no room.
   */
  override loss(inputs: Tensor, targets: Tensor): LossTerms {
    const { experts } = this.config;
    const routing: Routing[] = [];
    const terms = this.nextTokenLoss(inputs, targets, () => this.call(inputs, routing));
    if (!experts || routing.length === 0) return terms;
    // Where the loss is: a pipeline's seeds of the terms are on that stage.
    return { ...terms, ...this.lm_head.within(inputs, () => routingTerms(inputs, routing, experts)) };
  }

  override pipelineBlocks(sequenceLength = this.config.maxPositions): PipelineBlock[] {
    const { width, heads, kvHeads, headDim, innerWidth, vocabSize } = this.config;
    const attention = 2 * width * headDim * (heads + kvHeads) + attentionCost(heads, headDim, sequenceLength);
    const layerCost = (layer: number): number => {
      const experts = expertsOf(this.config, layer);
      return attention + width * (experts?.count ?? 0) + 3 * width * innerWidth * (experts?.perToken ?? 1);
    };
    return [
      { path: this.model.embed_tokens.path, cost: width },
      ...this.model.layers.map(({ path }, layer) => ({ path, cost: layerCost(layer) })),
      { path: this.model.norm.path, cost: width },
      { path: this.lm_head.path, cost: vocabSize * width },
    ];
  }
}
