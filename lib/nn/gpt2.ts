// GPT-2 (Radford et al. 2019). Dims: b samples, t tokens, w width, c query/key/value, h heads, d head width, f inner
// width.
import { expectObject } from "../core/check.ts";
import { iota } from "../tensor/functions.ts";
import type { Initial } from "../tensor/parameter.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { attendCausally } from "./attend.ts";
import type { GPT2Config } from "./config.ts";
import { LanguageModel, type PipelineBlock, attentionCost } from "./language-model.ts";
import { activate, Dropout, Embedding, LayerNorm, Projection } from "./layers.ts";
import { Module, nameModules } from "./module.ts";

function fresh(config: GPT2Config): Initial {
  return { kind: "normal", std: config.initializerRange };
}

/** Of projections that add to the residual stream, whose variance would grow with the layers. */
function freshResidual(config: GPT2Config): Initial {
  return { kind: "normal", std: config.initializerRange / Math.sqrt(2 * config.layers) };
}

class Attention extends Module {
  readonly c_attn: Projection;
  readonly c_proj: Projection;
  readonly attn_dropout: Dropout;
  readonly resid_dropout: Dropout;

  constructor(config: GPT2Config) {
    super();
    const { width, heads, headDim } = config;
    const sizes = { w: width, c: 3, h: heads, d: headDim };
    const split = { h: "tp" };
    this.c_attn = new Projection({
      dims: "w c h d",
      over: "w",
      sizes,
      split,
      stored: [width, 3 * width],
      bias: true,
      initial: fresh(config),
    });
    this.c_proj = new Projection({
      dims: "h d w",
      over: "h d",
      sizes,
      split,
      stored: [width, width],
      bias: true,
      initial: freshResidual(config),
    });
    this.attn_dropout = new Dropout(config.attentionDropout);
    this.resid_dropout = new Dropout(config.residualDropout);
  }

  forward(x: Tensor): Tensor {
    const qkv = this.c_attn.call(x);
    const [b, t, , h, d] = qkv.shape as readonly [number, number, number, number, number];
    const q = qkv.slice(2, 0, 1).reshape([b, t, h, 1, d]);
    const attended = attendCausally(q, qkv.select(2, 1), qkv.select(2, 2), this.attn_dropout);
    return this.resid_dropout.call(this.c_proj.call(attended.reshape([b, t, h, d])));
  }
}

class MLP extends Module {
  readonly c_fc: Projection;
  readonly c_proj: Projection;
  readonly dropout: Dropout;
  readonly #activation: GPT2Config["activation"];

  constructor(config: GPT2Config) {
    super();
    const sizes = { w: config.width, f: config.innerWidth };
    const split = { f: "tp" };
    this.c_fc = new Projection({ dims: "w f", over: "w", sizes, split, bias: true, initial: fresh(config) });
    this.c_proj = new Projection({ dims: "f w", over: "f", sizes, split, bias: true, initial: freshResidual(config) });
    this.dropout = new Dropout(config.residualDropout);
    this.#activation = config.activation;
  }

  forward(x: Tensor): Tensor {
    return this.dropout.call(this.c_proj.call(activate(this.c_fc.call(x), this.#activation)));
  }
}

class Block extends Module {
  readonly ln_1: LayerNorm;
  readonly attn: Attention;
  readonly ln_2: LayerNorm;
  readonly mlp: MLP;

  constructor(config: GPT2Config) {
    super();
    this.ln_1 = new LayerNorm(config.width, config.layerNormEps);
    this.attn = new Attention(config);
    this.ln_2 = new LayerNorm(config.width, config.layerNormEps);
    this.mlp = new MLP(config);
  }

  forward(x: Tensor): Tensor {
    const attended = x.add(this.attn.call(this.ln_1.call(x)));
    return attended.add(this.mlp.call(this.ln_2.call(attended)));
  }
}

/** GPT-2: learned positions, LayerNorm before each part, biases everywhere. Paths are Hugging Face's weight names. */
export class GPT2 extends LanguageModel {
  readonly config: GPT2Config;
  readonly wte: Embedding;
  readonly wpe: Embedding;
  readonly drop: Dropout;
  readonly h: readonly Block[];
  readonly ln_f: LayerNorm;
  readonly lm_head: Projection;

  constructor(config: GPT2Config) {
    super();
    expectObject("a model's config", config);
    this.config = config;
    const { vocabSize, width } = config;
    this.wte = new Embedding(vocabSize, width, fresh(config), "tp");
    this.wpe = new Embedding(config.maxPositions, width, fresh(config));
    this.drop = new Dropout(config.embeddingDropout);
    this.h = Array.from({ length: config.layers }, () => new Block(config));
    this.ln_f = new LayerNorm(width, config.layerNormEps);
    this.lm_head = new Projection({
      dims: "v w",
      over: "w",
      sizes: { v: vocabSize, w: width },
      split: { v: "tp" },
      initial: fresh(config),
      ...(config.tieWordEmbeddings ? { weight: this.wte.weight } : {}),
    });
    nameModules(this);
  }

  override forward(ids: Tensor): Tensor {
    this.expectTokens(ids);
    const positions = iota(ids.context, ids.shape.slice(1));
    let x = this.drop.call(this.wte.call(ids).add(this.wpe.call(positions)));
    for (const block of this.h) x = block.call(x);
    return this.lm_head.call(this.ln_f.call(x));
  }

  override pipelineBlocks(sequenceLength = this.config.maxPositions): PipelineBlock[] {
    const { width, heads, headDim, innerWidth, vocabSize } = this.config;
    const block = 4 * width * width + 2 * width * innerWidth + attentionCost(heads, headDim, sequenceLength);
    return [
      { path: "wte", cost: width },
      { path: "wpe", cost: width },
      ...this.h.map(({ path }) => ({ path, cost: block })),
      { path: "ln_f", cost: width },
      { path: "lm_head", cost: vocabSize * width },
    ];
  }
}
