// Context parallelism against PyTorch's reference runs, through the command: sequences split over ranks, with every
// other axis.
import assert from "node:assert/strict";
import { rm } from "node:fs/promises";
import path from "node:path";
import { command } from "./cli.ts";
import { describeWithReference, referenceFolder as folder } from "./reference.ts";
import { assertParity, readJson, train } from "./train.ts";

const layouts = ["cp=2", "cp=3", "dp=2,cp=2", "cp=2,tp=2", "cp=2,pp=2", "cp=2,fsdp=2"];

describeWithReference("parity with PyTorch, sequences split", function () {
  this.timeout(240_000);
  for (const model of ["gpt2", "llama"]) {
    for (const mesh of layouts) {
      it(`${model} under ${mesh}`, async () => {
        await assertParity(model, mesh);
      });
    }

    it(`${model} in bf16 under cp=3,tp=2, activations split too: losses within 1 %`, async () => {
      const flags = ["--precision", "bf16", "--sequence-parallel", "on"];
      const { out, reference, result, steps } = await train(model, "cp=3,tp=2", flags);
      await rm(out, { recursive: true });
      assert.equal(result.code, 0, result.stderr);
      const losses = steps.map((s) => Number(s.loss));
      assert.equal(losses.length, reference.steps);
      losses.forEach((x, i) => void assert.ok(Math.abs(x / reference.loss[i]! - 1) <= 0.01, `step ${i + 1}: ${x}`));
    });

    it(`${model} generates as PyTorch does under cp=3`, async () => {
      const expected = readJson<{ prompt: number[]; last_logits: number[]; greedy: number[] }>(
        path.join(folder, model, "logits.json"),
      );
      const flags = { model: path.join(folder, model), "prompt-tokens": expected.prompt.join(), "max-tokens": "12" };
      const args = Object.entries(flags).flatMap(([k, v]) => [`--${k}`, v]);
      const { code, lines, stderr } = await command([
        "generate",
        ...args,
        "--temperature",
        "0",
        "--logits",
        "--mesh",
        "cp=3",
      ]);
      assert.equal(code, 0, stderr);
      const done = lines.at(-1)!;
      assert.deepEqual(done.tokens, expected.greedy);
      (done.logits as number[]).forEach((x, i) => {
        assert.ok(Math.abs(x - expected.last_logits[i]!) <= 1e-4, `logit ${i}: ${x}`);
      });
    });
  }
});
