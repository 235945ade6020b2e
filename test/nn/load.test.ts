// Model folders: what is read, what is refused and in which words, what is written.
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { Weights, writeSafetensors } from "../../lib/checkpoint/safetensors.ts";
import { CheckpointError, ConfigError } from "../../lib/core/errors.ts";
import { sizeOf } from "../../lib/core/shape.ts";
import { type ConfigJson, parseModelConfig } from "../../lib/nn/config.ts";
import { configJson } from "../../lib/nn/config-json.ts";
import type { LanguageModel } from "../../lib/nn/language-model.ts";
import { createModel, loadModel, saveModel } from "../../lib/nn/load.ts";
import type { Parameter } from "../../lib/tensor/parameter.ts";

const gpt2: ConfigJson = { model_type: "gpt2", vocab_size: 7, n_positions: 5, n_embd: 4, n_layer: 2, n_head: 2 };
const llama: ConfigJson = {
  model_type: "llama",
  vocab_size: 7,
  hidden_size: 6,
  intermediate_size: 5,
  num_hidden_layers: 1,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 2,
  attention_bias: true,
  mlp_bias: true,
  some_key_of_others: { kept: [1, null] },
};

/** Values that differ from parameter to parameter. */
function valuesOf(parameter: Parameter): Float32Array {
  return Float32Array.from({ length: sizeOf(parameter.shape) }, (_, i) => parameter.path.length + i / 64);
}

type Tensors = Map<string, readonly number[]>;

/** Names and shapes of a model's weights, to be changed and written. */
function tensorsOf(json: ConfigJson): Tensors {
  return new Map(
    createModel(parseModelConfig(json))
      .parameters()
      .flatMap(({ parts }) => parts.map(({ name, shape }) => [name, shape] as const)),
  );
}

describe("a model folder", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), "meshwork-model-"));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  async function write(json: ConfigJson, tensors: Tensors, prefix = ""): Promise<void> {
    writeFileSync(path.join(folder, "config.json"), JSON.stringify(json));
    await writeSafetensors(
      path.join(folder, "model.safetensors"),
      [...tensors].map(([name, shape]) => ({
        name: prefix + name,
        shape,
        read: () => new Float32Array(sizeOf(shape)).fill(name.length),
      })),
    );
  }
  async function refusal(): Promise<string> {
    const error = await loadModel(folder).then(
      () => assert.fail("the folder was taken"),
      (cause: unknown) => cause,
    );
    assert.ok(error instanceof CheckpointError, String(error));
    return error.message.replaceAll(folder, "FOLDER");
  }

  it("without weights gives a fresh model", async () => {
    writeFileSync(path.join(folder, "config.json"), JSON.stringify(gpt2));
    const model = await loadModel(folder);
    assert.ok(model.parameters().every((p) => p.loaded === null));
    assert.deepEqual(model.source?.json, gpt2);
  });

  it("with weights that could run code is refused", async () => {
    writeFileSync(path.join(folder, "config.json"), JSON.stringify(gpt2));
    writeFileSync(path.join(folder, "pytorch_model.bin"), "");
    assert.match(await refusal(), /only pytorch_model.bin is there, which can run code/);
  });

  for (const prefix of ["", "transformer."]) {
    it(`is saved as it was read, with weights named "${prefix}..."`, async () => {
      await write(gpt2, tensorsOf(gpt2), prefix);
      const model = await loadModel(folder);
      const out = path.join(folder, "deep", "copy");
      await saveModel(out, model, valuesOf);
      assert.deepEqual(readdirSync(out).sort(), ["config.json", "model.safetensors"]);
      assert.deepEqual(JSON.parse(readFileSync(path.join(out, "config.json"), "utf8")), gpt2);
      await using weights = await Weights.open(out);
      assert.deepEqual([...weights.tensors.keys()], [...tensorsOf(gpt2).keys()].map((name) => prefix + name).sort());
      const again = await loadModel(out);
      for (const p of again.parameters()) assert.deepEqual(p.loaded, valuesOf(p), p.path);
    });
  }

  it("keeps config keys of others, biases and grouped heads", async () => {
    await write(llama, tensorsOf(llama));
    const model = await loadModel(folder);
    const [q, bias] = ["q_proj.weight", "k_proj.bias"].map(
      (name) => model.parameters().find((p) => p.path === `model.layers.0.self_attn.${name}`)!,
    );
    assert.deepEqual(
      [q!.shape, q!.stored.shape, q!.spec],
      [
        [2, 2, 2, 6],
        [8, 6],
        ["tp", null, null, null],
      ],
    );
    assert.deepEqual([bias!.shape, bias!.stored.shape, bias!.spec], [[2, 2], [4], ["tp", null]]);
    await saveModel(folder, model, valuesOf);
    assert.deepEqual(JSON.parse(readFileSync(path.join(folder, "config.json"), "utf8")), llama);
  });

  it("may hold masks, frequencies and a copy of the tied head, or the tied weight as head only", async () => {
    const tensors = tensorsOf(gpt2);
    tensors.set("h.0.attn.bias", [1, 1, 5, 5]).set("h.1.attn.masked_bias", []).set("lm_head.weight", [7, 4]);
    await write(gpt2, tensors);
    await loadModel(folder);
    tensors.delete("wte.weight");
    await write(gpt2, tensors);
    const model = await loadModel(folder);
    assert.equal(model.parameters()[0]!.loaded![0], "lm_head.weight".length);
    const rotary = tensorsOf(llama).set("model.layers.0.self_attn.rotary_emb.inv_freq", [1]);
    await write(llama, rotary);
    await loadModel(folder);
  });

  it("is refused for a missing, unknown or misshapen weight", async () => {
    const tensors = tensorsOf(gpt2);
    tensors.delete("h.1.ln_2.bias");
    await write(gpt2, tensors);
    assert.equal(await refusal(), 'FOLDER, tensor "h.1.ln_2.bias": it is missing; shape [4] is expected');
    await write(gpt2, tensorsOf(gpt2).set("h.2.ln_2.bias", [4]), "transformer.");
    assert.equal(
      await refusal(),
      'FOLDER/model.safetensors, tensor "transformer.h.2.ln_2.bias" of shape [4]: the model has none of this name; ' +
        'the nearest is "h.0.ln_2.bias"',
    );
    await write(gpt2, tensorsOf(gpt2).set("h.0.attn.c_attn.weight", [12, 4]));
    assert.equal(
      await refusal(),
      'FOLDER/model.safetensors, tensor "h.0.attn.c_attn.weight": its shape is [12, 4]; config.json says [4, 12]',
    );
    await write({ ...gpt2, tie_word_embeddings: false }, tensorsOf(gpt2));
    assert.equal(await refusal(), 'FOLDER, tensor "lm_head.weight": it is missing; shape [7, 4] is expected');
  });

  it("of a new model has a config.json that means the same", async () => {
    const scaled = {
      ...llama,
      rope_scaling: { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 },
      eos_token_id: [1, 2],
    };
    const linear = { ...llama, rope_scaling: { rope_type: "linear", factor: 2 }, model_type: "mistral" };
    const mixtral = { ...llama, model_type: "mixtral", num_local_experts: 4, num_experts_per_tok: 2, eos_token_id: 3 };
    for (const json of [gpt2, { ...gpt2, resid_pdrop: 0.5 }, llama, scaled, linear, mixtral]) {
      const config = parseModelConfig(json);
      assert.deepEqual(parseModelConfig(configJson(config)), config);
    }
    await saveModel(folder, createModel(parseModelConfig(llama)), valuesOf);
    const model: LanguageModel = await loadModel(folder);
    assert.deepEqual(model.config, parseModelConfig(llama));
  });

  it("asks for the values of a parameter in turn, and passes their errors on", async () => {
    const model = createModel(parseModelConfig(gpt2));
    await assert.rejects(
      saveModel(folder, model, () => Promise.reject(new ConfigError("no values"))),
      /no values/,
    );
    assert.deepEqual(readdirSync(folder), []);
  });
});
