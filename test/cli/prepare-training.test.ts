// train's settings: presets, folders, data and flags put together; contradictions refused.
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { writeSafetensors } from "../../lib/checkpoint/safetensors.ts";
import { parseFlags } from "../../lib/cli/flags.ts";
import { prepareTraining } from "../../lib/cli/prepare-training.ts";
import { runRecord } from "../../lib/cli/run-record.ts";
import { trainFlags } from "../../lib/cli/train-flags.ts";
import { ConfigError, DataError, UsageError } from "../../lib/core/errors.ts";
import { parseModelConfig } from "../../lib/nn/config.ts";
import { presetConfig, presets } from "../../lib/train/presets.ts";

const prepare = (...args: readonly string[]) => prepareTraining(parseFlags(trainFlags, args).values);

describe("train's settings", () => {
  let folder: string;
  let text: string;
  let tokens: string;
  const at = (name: string) => path.join(folder, name);
  const gpt2 = { model_type: "gpt2", vocab_size: 64, n_positions: 32, n_embd: 16, n_layer: 1, n_head: 2 };
  before(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), "meshwork-"));
    text = at("text.txt");
    writeFileSync(text, "All that is gold does not glitter.\n".repeat(400));
    tokens = at("tokens.u16");
    writeFileSync(tokens, new Uint8Array(Uint16Array.from({ length: 641 }, (_, i) => i % 64).buffer));
    mkdirSync(at("bare"));
    writeFileSync(at("bare/config.json"), JSON.stringify(gpt2));
  });
  after(() => rmSync(folder, { recursive: true }));

  it("by default train the demo on the repository's text", async () => {
    const { name, config, weightsFrom, data, dataset, settings } = await prepare();
    assert.equal(name, "demo");
    assert.deepEqual([config.layers, config.width, config.vocabSize, config.maxPositions], [4, 128, 256, 128]);
    assert.equal(weightsFrom, undefined);
    assert.ok(data.files.length > 50 && dataset.validationSamples >= 16);
    assert.deepEqual([settings.batchSize, settings.seqLen, settings.microbatches], [16, 128, 1]);
    assert.equal(dataset.batch(0).inputs.length, 16 * 128);
  });

  it("follow flags, the tokenizer and the mesh", async () => {
    const { config, configJson, settings } = await prepare(
      ...["--data", text, "--tokenizer", "bpe:270", "--layers", "2", "--width", "64", "--seq-len", "200"],
      ...["--mesh", "pp=2,tp=2", "--steps", "50", "--weight-decay", "0"],
    );
    assert.deepEqual([config.vocabSize, config.layers, config.width, config.maxPositions], [270, 2, 64, 200]);
    assert.equal(configJson.vocab_size, 270);
    assert.deepEqual([settings.microbatches, settings.warmup, settings.weightDecay], [4, 5, 0]);
    const short = ["--data", text, "--model", "gpt2", "--seq-len", "16", "--batch-size", "1"];
    assert.equal((await prepare(...short)).config.vocabSize, 50_257);
    assert.equal((await prepare(...short, "--tokenizer", "bpe:270")).config.vocabSize, 270);
    assert.equal((await prepare(...short, "--tokenizer", "bpe:270", "--vocab", "512")).config.vocabSize, 512);
  });

  it("of a folder with token files: the model's vocabulary rules, every token is used in order", async () => {
    const args = [
      "--model",
      at("bare"),
      "--data",
      tokens,
      "--order",
      "sequential",
      "--batch-size",
      "4",
      "--seq-len",
      "16",
    ];
    const { dataset, settings, data, configJson } = await prepare(...args);
    assert.deepEqual([settings.steps, dataset.validationSamples, data.tokenizer], [10, 0, undefined]);
    assert.deepEqual([...dataset.batch(9).targets.subarray(-2)], [639 % 64, 640 % 64]);
    assert.deepEqual(configJson, gpt2);
    await assert.rejects(prepare(...args, "--steps", "11"), /the data allow 10 steps/);
  });

  it("start from a folder's weights where there are any", async () => {
    const args = ["--model", at("full"), "--data", tokens, "--seq-len", "16"];
    mkdirSync(at("full"));
    writeFileSync(at("full/config.json"), JSON.stringify(gpt2));
    assert.equal((await prepare(...args)).weightsFrom, undefined);
    await assert.rejects(prepare(...args, "--init", "weights"), UsageError);
    await writeSafetensors(at("full/model.safetensors"), []);
    assert.equal((await prepare(...args)).weightsFrom, at("full"));
    assert.equal((await prepare(...args, "--init", "random")).weightsFrom, undefined);
  });

  it("are all in the record of a run, with versions, machine and digests", async () => {
    const run = await prepare("--data", tokens, "--vocab", "64", "--seed", "5");
    const record = JSON.parse(JSON.stringify(await runRecord(run, { args: ["train"], devices: 1 })));
    assert.deepEqual([record.seed, record.name, record.devices, record.args], [5, "demo", 1, ["train"]]);
    assert.equal(record.settings.batchSize, 16);
    assert.equal(record.model.config.vocab_size, 64);
    assert.equal(record.versions.node, process.versions.node);
    assert.equal(record.machine.cores, os.availableParallelism());
    assert.match(record.data.files[0].sha256, /^[0-9a-f]{64}$/);
    assert.deepEqual([record.data.tokens, record.data.tokenizer, record.model.weightsFrom], [641, null, null]);
  });

  const refused: readonly (readonly [string, () => string[], new (text: string) => Error, RegExp])[] = [
    ["an unknown model", () => ["--model", "gtp2"], UsageError, /neither a folder nor a preset .* nearest is "gpt2"/],
    [
      "changes to a folder",
      () => ["--model", at("bare"), "--kv-heads", "2"],
      UsageError,
      /--kv-heads changes a preset/,
    ],
    ["weights of a preset", () => ["--init", "weights"], UsageError, /the preset demo has none/],
    ["key-value heads of GPT-2", () => ["--kv-heads", "2", "--data", text], UsageError, /GPT-2 has none/],
    ["heads that do not divide", () => ["--heads", "3", "--data", text], ConfigError, /3 heads do not divide/],
    [
      "more positions than a folder has",
      () => ["--model", at("bare"), "--data", tokens, "--seq-len", "33"],
      UsageError,
      /has 32 positions/,
    ],
    [
      "text beyond a folder's vocabulary",
      () => ["--model", at("bare"), "--data", text, "--seq-len", "8"],
      DataError,
      /token 0 .* is 65, beyond/,
    ],
    [
      "tokens beyond a preset's vocabulary",
      () => ["--vocab", "60", "--data", tokens],
      DataError,
      /--vocab makes it larger/,
    ],
    ["more microbatches than samples", () => ["--microbatches", "17", "--data", text], UsageError, /no more than 16/],
    [
      "a warmup beyond the end",
      () => ["--steps", "5", "--warmup", "6", "--data", text],
      UsageError,
      /longer than the run/,
    ],
    ["a folder without config", () => ["--model", folder, "--data", text], ConfigError, /config\.json: no such file/],
  ];
  for (const [what, args, kind, message] of refused) {
    it(`refuse ${what}`, async () => {
      await assert.rejects(
        async () => prepare(...args()),
        (error) => error instanceof kind && message.test(error.message),
      );
    });
  }
});

describe("presets", () => {
  it("are models that can be built, GPT-2's of the published sizes", () => {
    for (const [name, preset] of presets) {
      const config = parseModelConfig(presetConfig(preset, {}), name);
      assert.ok(preset.training.seqLen <= config.maxPositions, name);
    }
    const sizes = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"].map((name) => {
      const { width, layers, vocabSize, maxPositions } = parseModelConfig(presets.get(name)!.config);
      const layer = 12 * width * width + 13 * width;
      return Math.round((layers * layer + (vocabSize + maxPositions + 2) * width) / 1e6);
    });
    assert.deepEqual(sizes, [124, 355, 774, 1558]);
  });

  it("can be changed", () => {
    const llama = presets.get("llama-tiny")!;
    const config = parseModelConfig(presetConfig(llama, { width: 96, heads: 3, layers: 1, seqLen: 500, vocab: 300 }));
    assert.ok(config.architecture === "llama");
    assert.deepEqual([config.width, config.heads, config.kvHeads, config.innerWidth], [96, 3, 3, 256]);
    assert.deepEqual([config.layers, config.maxPositions, config.vocabSize], [1, 500, 300]);
    const grouped = parseModelConfig(presetConfig(llama, { kvHeads: 1 }));
    assert.ok(grouped.architecture === "llama" && grouped.kvHeads === 1);
  });
});
