// Run folders: names, records, metrics in order, models that load again.
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { Weights } from "../../lib/checkpoint/safetensors.ts";
import { FileError } from "../../lib/core/errors.ts";
import { ByteTokenizer, findTokenizer } from "../../lib/data/tokenizer.ts";
import { readModelConfig } from "../../lib/nn/config.ts";
import { presets } from "../../lib/train/presets.ts";
import { RunFolder } from "../../lib/train/run-folder.ts";

describe("run folder", () => {
  const home = process.cwd();
  let folder: string;
  beforeEach(() => {
    folder = realpathSync(mkdtempSync(path.join(os.tmpdir(), "meshwork-")));
    process.chdir(folder);
  });
  afterEach(() => {
    process.chdir(home);
    rmSync(folder, { recursive: true });
  });

  it("is named by date and model, a second one of the same second by a number", async () => {
    const now = new Date(2026, 10, 21, 7, 5, 9);
    for (const expected of ["runs/20261121-070509-my-model", "runs/20261121-070509-my-model-2"]) {
      await using run = await RunFolder.create({ name: "my model", now });
      assert.equal(run.path, expected);
      await run.writeRecord({});
      assert.ok(existsSync(run.modelPath));
    }
  });

  it("leaves nothing behind when nothing was written, and what was there as it was", async () => {
    await (await RunFolder.create({ name: "x" }))[Symbol.asyncDispose]();
    await (await RunFolder.create({ name: "x", out: "deep/out" }))[Symbol.asyncDispose]();
    assert.deepEqual(readdirSync("."), []);
    {
      await using run = await RunFolder.create({ name: "x", out: "out" });
      run.metric({ step: 1 });
    }
    await (await RunFolder.create({ name: "x", out: "out" }))[Symbol.asyncDispose]();
    assert.equal(readFileSync("out/metrics.jsonl", "utf8"), '{"step":1}\n');
    {
      await using run = await RunFolder.create({ name: "x", out: "out" });
      await run.writeRecord({});
      run.metric({ step: 2 });
    }
    assert.equal(readFileSync("out/metrics.jsonl", "utf8"), '{"step":2}\n');
  });

  it("keeps metrics in order and full precision", async () => {
    const run = await RunFolder.create({ name: "x", out: "out" });
    for (let step = 1; step <= 200; step++) run.metric({ step, loss: 1 / step });
    await run.flush();
    run.metric({ step: 201 });
    await run[Symbol.asyncDispose]();
    const lines = readFileSync("out/metrics.jsonl", "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    assert.deepEqual(
      lines.map(({ step }) => step),
      Array.from({ length: 201 }, (_, i) => i + 1),
    );
    assert.equal(lines[6].loss, 1 / 7);
  });

  it("saves a model that loads again, without leftovers of another", async () => {
    await using run = await RunFolder.create({ name: "x", out: "deep/out" });
    await run.writeRecord({ seed: 1 });
    assert.deepEqual(JSON.parse(readFileSync("deep/out/run.json", "utf8")), { seed: 1 });
    const { config } = presets.get("demo")!;
    const tensors = [{ name: "wte.weight", shape: [2], read: () => Float32Array.of(1, 2) }];
    await run.saveModel({ config, tensors, tokenizerFiles: new ByteTokenizer().files });
    assert.deepEqual((await readModelConfig(run.modelPath)).json, config);
    assert.ok((await findTokenizer(run.modelPath)) instanceof ByteTokenizer);
    using weights = await Weights.open(run.modelPath);
    assert.deepEqual([...(await weights.read("wte.weight"))], [1, 2]);
    await run.saveModel({ config, tensors });
    assert.deepEqual(readdirSync(run.modelPath).sort(), ["config.json", "model.safetensors"]);
  });

  it("is refused before any work where it cannot be written", async () => {
    writeFileSync("file", "");
    await assert.rejects(RunFolder.create({ name: "x", out: "file/out" }), (error) => {
      return error instanceof FileError && /file\/out: cannot be written: not a folder/.test(error.message);
    });
    writeFileSync("runs", "");
    await assert.rejects(RunFolder.create({ name: "x" }), FileError);
  });
});
