// The reference runs with parameters, gradients and optimizer state split over fsdp, at every ZeRO level.
import assert from "node:assert/strict";
import { rm } from "node:fs/promises";
import path from "node:path";
import { command } from "./cli.ts";
import { describeWithReference, referenceFolder } from "./reference.ts";
import { assertParity, readJson, train } from "./train.ts";

const long = process.env.MESHWORK_LONG === "1";
const meshes = ["fsdp=2", "fsdp=2,tp=2", "fsdp=2,pp=2,tp=2", "fsdp=3"];

/** Every mesh and level in the long tests; else each mesh and each level a few times. */
function isRun(model: number, mesh: number, zero: number): boolean {
  return long || (mesh + model) % 3 === zero - 1;
}

describeWithReference("parity with PyTorch under fsdp", function () {
  this.timeout(120_000);
  ["gpt2", "llama", "mixtral"].forEach((model, i) => {
    meshes.forEach((mesh, k) => {
      for (const zero of [1, 2, 3]) {
        if (!isRun(i, k, zero)) continue;
        it(`${model} under ${mesh} with --zero ${zero}`, () => assertParity(model, mesh, ["--zero", String(zero)]));
      }
    });
  });

  for (const [precision, tolerance] of [
    ["bf16", 0.01],
    ["fp16", 0.002],
  ] as const) {
    it(`gpt2 in ${precision} stays within ${100 * tolerance} % under fsdp=2,pp=2`, async () => {
      const { out, reference, result, steps } = await train("gpt2", "fsdp=2,pp=2", ["--precision", precision]);
      await rm(out, { recursive: true });
      assert.equal(result.code, 0, result.stderr);
      steps.forEach((s, i) => {
        const expected = reference.loss[i]!;
        assert.ok(Math.abs(Number(s.loss) - expected) <= tolerance * expected, `loss of step ${i + 1}: ${s.loss}`);
        assert.equal(s.skipped, undefined);
      });
    });
  }

  it("llama generates as PyTorch does with its weights split over fsdp=3", async () => {
    const dir = path.join(referenceFolder, "llama");
    const expected = readJson<{ prompt: number[]; greedy: number[] }>(path.join(dir, "logits.json"));
    const prompt = ["--prompt-tokens", expected.prompt.join(), "--max-tokens", "12", "--temperature", "0"];
    const { code, lines, stderr } = await command(["generate", "--model", dir, ...prompt, "--mesh", "fsdp=3"]);
    assert.equal(code, 0, stderr);
    assert.deepEqual(lines.at(-1)!.tokens, expected.greedy);
  });
});
