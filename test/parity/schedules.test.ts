// Whole models under every pipeline schedule, by the command: PyTorch's losses, and gpipe's to the bit.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import path from "node:path";
import { scheduleNames } from "../../lib/passes/schedules.ts";
import { describeWithReference } from "./reference.ts";
import { assertParity, train } from "./train.ts";

interface Outcome {
  readonly numbers: readonly unknown[];
  readonly weights: string;
}

async function outcome(model: string, mesh: string, extra: readonly string[]): Promise<Outcome> {
  const { out, steps, result } = await train(model, mesh, extra);
  try {
    assert.equal(result.code, 0, result.stderr);
    const weights = readFileSync(path.join(out, "model", "model.safetensors")).toString("base64");
    return { numbers: steps.map((s) => [s.loss, s.gradNorm]), weights };
  } finally {
    await rm(out, { recursive: true });
  }
}

describeWithReference("parity with PyTorch under schedules", function () {
  this.timeout(240_000);
  for (const model of ["gpt2", "llama"]) {
    for (const mesh of ["pp=2", "pp=3"]) {
      it(`${model} under ${mesh}, every schedule, with the same bits`, async () => {
        await assertParity(model, mesh, ["--schedule", "gpipe"]);
        const expected = await outcome(model, mesh, ["--schedule", "gpipe"]);
        for (const schedule of scheduleNames.filter((name) => name !== "gpipe")) {
          const found = await outcome(model, mesh, ["--schedule", schedule]);
          assert.deepEqual(found.numbers, expected.numbers, schedule);
          assert.ok(found.weights === expected.weights, `${schedule} leaves other weights than gpipe`);
        }
      });
    }
  }

  it("three stages a device, and a number of microbatches that is no multiple of the devices", async () => {
    const extra = ["--microbatches", "5"];
    const expected = await outcome("gpt2", "pp=2", [...extra, "--schedule", "gpipe"]);
    for (const more of [["interleaved-1f1b", "--virtual-stages", "3"], ["interleaved-1f1b"], ["zb-h1"], ["zb-v"]]) {
      const found = await outcome("gpt2", "pp=2", [...extra, "--schedule", ...more]);
      assert.deepEqual(found.numbers, expected.numbers, more.join(" "));
      assert.ok(found.weights === expected.weights, `${more.join(" ")} leaves other weights than gpipe`);
    }
  });
});
