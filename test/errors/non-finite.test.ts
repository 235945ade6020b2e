// Losses and gradients that are not finite: reported with step and module, and nothing is updated, to the bit.
import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { Weights, writeSafetensors } from "../../lib/checkpoint/safetensors.ts";
import { loadModel } from "../../lib/nn/load.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { trainStep } from "../../lib/train/step.ts";
import { command } from "../parity/cli.ts";
import { scratchFolder, smallBatch, smallConfig, smallModel, smallOptions } from "./small.ts";

/** Every weight and moment on the mesh, as bytes. */
function state(mesh: Mesh, ids: readonly string[]): Map<string, Buffer> {
  return new Map(
    ids.map((id) => {
      const values = mesh.store.read(id);
      return [id, Buffer.from(values.buffer.slice(0), values.byteOffset, values.byteLength)];
    }),
  );
}

describe("values that are not finite", () => {
  const at = scratchFolder();

  for (const axes of [{}, { pp: 2, tp: 2 }, { dp: 2 }]) {
    it(`leave weights and moments as they are on ${JSON.stringify(axes)}`, async () => {
      await using mesh = await Mesh.open({ axes, threads: 1 });
      const model = smallModel();
      using step = await trainStep(mesh, model, smallOptions(model));
      await step.run(smallBatch());
      const ids = model.parameters().flatMap((p) => [p.id, `${p.id}:m`, `${p.id}:v`]);
      const bias = model.parameters().find((p) => p.path === "h.0.mlp.c_fc.bias")!;
      const values = Float32Array.from(mesh.store.read(bias.id));
      for (const [index, wrong] of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY].entries()) {
        mesh.store.write(bias.id, values.with(index, wrong));
        const before = state(mesh, ids);
        const result = await step.run(smallBatch());
        const paths = model.parameters().map((p) => p.path);
        assert.ok(result.nonFinite !== undefined && paths.includes(result.nonFinite), String(result.nonFinite));
        assert.ok(!Number.isFinite(result.gradNorm));
        assert.deepEqual(state(mesh, ids), before);
      }
      mesh.store.write(bias.id, values);
      const after = await step.run(smallBatch());
      assert.equal(after.nonFinite, undefined);
      assert.ok(Number.isFinite(after.loss));
    });
  }

  it("name the module whose gradient overflows alone", async () => {
    await using mesh = await Mesh.open({ threads: 1 });
    const model = smallModel();
    const scale = model.parameters().find((p) => p.path === "ln_f.bias")!;
    const options = smallOptions(model, {
      loss: (batch: Parameters<ReturnType<typeof smallOptions>["loss"]>[0]) => {
        const terms = model.loss(batch.inputs, batch.targets);
        const { context } = batch.inputs;
        // Its value is 0, its gradient infinite.
        const sum = scale.read(context).mul(1e30).mul(1e30).sum();
        return { ...terms, extra: { sum, count: batch.inputs.ne(-1).cast("f32").sum() } };
      },
    });
    using step = await trainStep(mesh, model, options);
    assert.equal((await step.run(smallBatch())).nonFinite, "ln_f.bias");
  });

  const data = () => {
    writeFileSync(at("tokens.u16"), new Uint8Array(Uint16Array.from({ length: 600 }, (_, i) => i % 16).buffer));
    return ["--data", at("tokens.u16"), "--batch-size", "4", "--seq-len", "8", "--order", "sequential"];
  };

  it("end a run after ten steps in a row, with the weights saved", async () => {
    const flags = "--layers 1 --width 8 --heads 2 --vocab 16 --learning-rate 1e30 --steps 18 --warmup 0".split(" ");
    const { code, lines, stderr } = await command(["train", ...flags, ...data(), "--out", at("run")]);
    assert.equal(code, 1);
    assert.match(stderr, /not finite in 10 steps in a row, last in step \d+ \(\S+\).*saved \(ERR_NON_FINITE\)/);
    const steps = lines.filter((line) => line.type === "step");
    assert.deepEqual(
      steps.map((line) => line.skipped === true),
      steps.map((_, i) => i >= steps.length - 10),
    );
    await using weights = await Weights.open(at("run/model"));
    for (const name of weights.tensors.keys()) {
      assert.ok(
        (await weights.read(name)).every((x) => Number.isFinite(x)),
        name,
      );
    }
    const kept = readFileSync(at("run/metrics.jsonl"), "utf8").trim().split("\n");
    assert.equal(kept.length, lines.length);
  });

  it("end a run at once with --on-spike stop, and it can go on from there", async () => {
    const flags = "--layers 1 --width 8 --heads 2 --vocab 16 --learning-rate 1e30 --steps 18 --warmup 0".split(" ");
    const args = ["train", ...flags, ...data(), "--out", at("run"), "--on-spike", "stop"];
    const { code, lines, stderr } = await command(args);
    assert.equal(code, 1);
    assert.match(stderr, /the gradient of \S+ is not finite in step \d+, which changed nothing .*\(ERR_SPIKE\)/);
    const steps = lines.filter((line) => line.type === "step");
    assert.deepEqual(
      steps.map((line) => line.skipped === true),
      steps.map((_, i) => i === steps.length - 1),
    );
    const more = await command(["train", "--resume", at("run"), "--on-spike", "warn", "--steps", "8"]);
    assert.equal(more.lines.find((line) => line.type === "resume")?.step, steps.length, more.stderr);
  });

  it("in a model folder's weights are reported at once, step by step", async () => {
    const folder = at("model");
    const model = smallModel();
    mkdirSync(folder);
    writeFileSync(path.join(folder, "config.json"), JSON.stringify(smallConfig));
    const tensors = model.parameters().map(({ stored: { name, shape } }) => ({
      name,
      shape,
      read: () => new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(name === "ln_f.weight" ? Number.NaN : 0.1),
    }));
    await writeSafetensors(path.join(folder, "model.safetensors"), tensors);
    const args = ["train", "--model", folder, ...data(), "--steps", "3", "--out", at("run")];
    const { code, lines, stderr } = await command(args);
    assert.equal(code, 0, stderr);
    for (const line of lines.filter(({ type }) => type === "step"))
      assert.deepEqual([line.loss, line.skipped], [null, true]);
    const saved = await loadModel(at("run/model"));
    assert.ok(Number.isNaN(saved.parameters().find((p) => p.path === "ln_f.weight")!.loaded![0]));
  });
});
