// Whole models against PyTorch's reference runs, through the command, under every layout (tolerances: the runs'
// README).
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import path from "node:path";
import { describeWithReference } from "./reference.ts";
import { assertGeneration, assertParity, train } from "./train.ts";

const layouts = ["dp=1", "dp=2", "tp=2", "pp=2", "tp=4", "pp=4", "dp=2,tp=2,pp=2", "dp=3", "tp=3", "pp=3"];

describeWithReference("parity with PyTorch", function () {
  this.timeout(120_000);
  for (const model of ["gpt2", "llama", "mixtral"]) {
    for (const mesh of model === "mixtral" ? ["dp=1", "tp=2", "dp=2,pp=2"] : layouts) {
      it(`${model} under ${mesh}`, async () => {
        await assertParity(model, mesh);
      });
    }

    for (const mesh of ["dp=1", "dp=2", "tp=3", "pp=2", "dp=2,tp=2,pp=2"]) {
      it(`${model} generates as PyTorch does under ${mesh}`, async () => {
        await assertGeneration(model, mesh);
      });
    }
  }

  it("the same command gives the same bits twice; gpipe and 1f1b agree to the bit", async () => {
    const digests = await Promise.all(
      [
        ["gpt2", "dp=2,pp=2", []],
        ["gpt2", "dp=2,pp=2", []],
        ["gpt2", "dp=2,pp=2", ["--schedule", "gpipe"]],
      ].map(async ([model, mesh, extra]) => {
        const { out, steps } = await train(model as string, mesh as string, extra as string[]);
        const weights = readFileSync(path.join(out, "model", "model.safetensors")).toString("base64");
        await rm(out, { recursive: true });
        return { losses: steps.map((s) => [s.loss, s.gradNorm]), weights };
      }),
    );
    assert.deepEqual(digests[0], digests[1]);
    assert.deepEqual(digests[0], digests[2]);
  });
});
