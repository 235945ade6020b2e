// config.json: defaults by architecture, aliases, and refusals that name the key.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { ConfigError } from "../../lib/core/errors.ts";
import { type ConfigJson, parseModelConfig, readModelConfig } from "../../lib/nn/config.ts";

const gpt2: ConfigJson = { model_type: "gpt2", vocab_size: 256, n_positions: 64, n_embd: 64, n_layer: 4, n_head: 4 };
const llama: ConfigJson = {
  model_type: "llama",
  vocab_size: 256,
  hidden_size: 64,
  intermediate_size: 176,
  num_hidden_layers: 4,
  num_attention_heads: 4,
};

describe("model config", () => {
  it("of GPT-2 has GPT-2's defaults", () => {
    assert.deepEqual(parseModelConfig({ ...gpt2, n_inner: null, layer_norm_epsilon: 1e-6, eos_token_id: 255 }), {
      architecture: "gpt2",
      vocabSize: 256,
      width: 64,
      layers: 4,
      heads: 4,
      headDim: 16,
      innerWidth: 256,
      activation: "gelu_new",
      maxPositions: 64,
      tieWordEmbeddings: true,
      layerNormEps: 1e-6,
      embeddingDropout: 0,
      attentionDropout: 0,
      residualDropout: 0,
      initializerRange: 0.02,
      endTokens: [255],
    });
  });

  it("of Llama has Llama's defaults", () => {
    assert.deepEqual(parseModelConfig(llama), {
      architecture: "llama",
      vocabSize: 256,
      width: 64,
      layers: 4,
      heads: 4,
      kvHeads: 4,
      headDim: 16,
      innerWidth: 176,
      activation: "silu",
      maxPositions: 2048,
      tieWordEmbeddings: false,
      rmsNormEps: 1e-6,
      ropeTheta: 10_000,
      ropeScaling: undefined,
      attentionBias: false,
      mlpBias: false,
      attentionDropout: 0,
      initializerRange: 0.02,
      endTokens: [],
      experts: undefined,
    });
  });

  it("reads grouped heads, a head width of its own, and aliases of activations", () => {
    const config = parseModelConfig({ ...llama, num_key_value_heads: 2, head_dim: 32, hidden_act: "swish" });
    assert.deepEqual(config.architecture === "llama" && [config.kvHeads, config.headDim], [2, 32]);
    assert.equal(config.activation, "silu");
    assert.equal(parseModelConfig({ ...gpt2, activation_function: "gelu_pytorch_tanh" }).activation, "gelu_new");
  });

  it("reads rotary scaling, old style and new", () => {
    const scaling = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };
    const expected = { kind: "llama3", factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 8192 };
    const rope = (json: ConfigJson) => {
      const config = parseModelConfig({ ...llama, ...json });
      return config.architecture === "gpt2" ? [] : [config.ropeTheta, config.ropeScaling];
    };
    assert.deepEqual(rope({ rope_theta: 5e5, rope_scaling: { rope_type: "llama3", ...scaling } }), [5e5, expected]);
    assert.deepEqual(rope({ rope_parameters: { rope_type: "llama3", rope_theta: 5e5, ...scaling } }), [5e5, expected]);
    assert.deepEqual(rope({ rope_scaling: { type: "linear", factor: 2 } }), [1e4, { kind: "linear", factor: 2 }]);
    assert.deepEqual(rope({ rope_parameters: { rope_type: "default", rope_theta: 7 } }), [7, undefined]);
    assert.deepEqual(rope({ rope_scaling: null }), [1e4, undefined]);
  });

  it("reads Mixtral's experts", () => {
    const mixtral = { ...llama, model_type: "mixtral", num_local_experts: 4, num_experts_per_tok: 2 };
    for (const [asked, balanceWeight] of [
      [false, 0],
      [true, 0.001],
    ] as const) {
      const config = parseModelConfig({ ...mixtral, output_router_logits: asked });
      const expected = { count: 4, perToken: 2, balanceWeight };
      assert.deepEqual(config.architecture === "mixtral" && config.experts, expected);
    }
  });

  const refused: readonly (readonly [string, ConfigJson, RegExp])[] = [
    ["no architecture", {}, /model_type: missing/],
    ["another architecture", { model_type: "gpt3" }, /"gpt3" is not supported; .* the nearest is "gpt2"/],
    ["a missing size", { ...gpt2, n_layer: undefined }, /n_layer: missing/],
    ["an ill-typed size", { ...gpt2, n_layer: "4" }, /n_layer: a whole number from 1 to \d+ is expected, not "4"/],
    ["a size of 0", { ...gpt2, vocab_size: 0 }, /vocab_size: .* not 0/],
    ["a fraction", { ...gpt2, n_embd: 64.5 }, /n_embd: .* not 64.5/],
    ["a huge size", { ...gpt2, n_embd: 1e12 }, /n_embd/],
    ["heads that do not divide the width", { ...gpt2, n_head: 5 }, /n_head: 5 heads do not divide n_embd 64/],
    ["heads that do not divide the width in Llama", { ...llama, num_attention_heads: 5 }, /there is no head_dim/],
    ["key-value heads that do not divide", { ...llama, num_key_value_heads: 3 }, /3 key-value heads do not divide 4/],
    ["an odd head", { ...llama, head_dim: 15 }, /15 is odd/],
    ["an unknown activation", { ...gpt2, activation_function: "mish" }, /activation_function: "mish" is not supported/],
    ["a negative epsilon", { ...gpt2, layer_norm_epsilon: -1 }, /layer_norm_epsilon: a number above 0/],
    ["dropout of 1", { ...gpt2, attn_pdrop: 1 }, /attn_pdrop: a number from 0 to below 1/],
    [
      "a text for a switch",
      { ...llama, attention_bias: "yes" },
      /attention_bias: true or false is expected, not "yes"/,
    ],
    ["attention that is not scaled", { ...gpt2, scale_attn_weights: false }, /scale_attn_weights: false/],
    ["other scaling", { ...llama, rope_scaling: { type: "yarn", factor: 2 } }, /rope_scaling, type: "yarn" is not/],
    ["scaling without its factor", { ...llama, rope_scaling: { type: "linear" } }, /rope_scaling, factor: missing/],
    ["scaling that is no object", { ...llama, rope_scaling: 2 }, /rope_scaling: an object is expected/],
    ["a sliding window", { ...llama, sliding_window: 512 }, /sliding_window: 512 positions/],
    ["quantized weights", { ...llama, quantization_config: {} }, /quantized weights/],
    [
      "more experts a token than there are",
      { ...llama, model_type: "mixtral", num_local_experts: 2, num_experts_per_tok: 3 },
      /3 of 2/,
    ],
    ["ids that are none", { ...gpt2, eos_token_id: [1, "2"] }, /eos_token_id: an id or a list of ids/],
  ];
  for (const [what, json, message] of refused) {
    it(`with ${what} is refused`, () => {
      assert.throws(
        () => parseModelConfig(json),
        (error) => error instanceof ConfigError && message.test(error.message),
      );
    });
  }

  it("is read from a folder, and kept as it stands", async () => {
    const folder = mkdtempSync(path.join(os.tmpdir(), "meshwork-"));
    try {
      await assert.rejects(readModelConfig(folder), /config\.json: no such file/);
      const file = path.join(folder, "config.json");
      writeFileSync(file, JSON.stringify({ ...gpt2, of_its_own: [1] }));
      assert.deepEqual((await readModelConfig(folder)).json, { ...gpt2, of_its_own: [1] });
      for (const bad of ["{", "[]", "3"]) {
        writeFileSync(file, bad);
        await assert.rejects(readModelConfig(folder), ConfigError);
      }
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
