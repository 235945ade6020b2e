// Mixtral against PyTorch with its experts split over ep, alone and with every other axis.
import assert from "node:assert/strict";
import { rm } from "node:fs/promises";
import path from "node:path";
import { command } from "./cli.ts";
import { describeWithReference, referenceFolder } from "./reference.ts";
import { assertGeneration, assertParity, train } from "./train.ts";

const meshes = [
  "cp=2,ep=2",
  "ep=2",
  "dp=2,ep=2",
  "ep=2,tp=2,pp=2",
  "ep=3",
  "ep=4",
  "ep=5",
  "fsdp=2,ep=2",
  "fsdp=2,ep=2,tp=2",
];

describeWithReference("parity with PyTorch under ep", function () {
  this.timeout(120_000);
  for (const mesh of meshes) it(`mixtral under ${mesh}`, () => assertParity("mixtral", mesh));
  for (const mesh of ["ep=2", "ep=3,tp=2", "dp=2,ep=2", "ep=2,pp=2"]) {
    it(`mixtral generates as PyTorch does under ${mesh}`, () => assertGeneration("mixtral", mesh));
  }

  it("mixtral in bf16 stays within 1 % under ep=2,tp=2", async () => {
    const { out, reference, result, steps } = await train("mixtral", "ep=2,tp=2", ["--precision", "bf16"]);
    await rm(out, { recursive: true });
    assert.equal(result.code, 0, result.stderr);
    steps.forEach((s, i) => {
      const expected = reference.loss[i]!;
      assert.ok(Math.abs(Number(s.loss) - expected) <= 0.01 * expected, `loss of step ${i + 1}: ${s.loss}`);
    });
  });

  it("--capacity-factor drops choices, counts them in every step, and alike under every mesh", async () => {
    const runs = await Promise.all(
      ["dp=1", "ep=2,tp=2"].map(async (mesh) => {
        const { out, result, steps } = await train("mixtral", mesh, ["--steps", "3", "--capacity-factor", "0.75"]);
        await rm(out, { recursive: true });
        assert.equal(result.code, 0, result.stderr);
        return steps.map((s) => (s.terms as { dropped: number }).dropped);
      }),
    );
    assert.equal(runs[0]![0], runs[1]![0]);
    // Later a rounding may turn a choice that was close.
    runs[0]!.forEach((dropped, i) => {
      assert.ok(Math.abs(dropped - runs[1]![i]!) < 5e-3, `step ${i + 1}: ${dropped}, ${runs[1]![i]}`);
    });
    for (const dropped of runs[0]!) assert.ok(dropped > 0.2 && dropped < 0.6, String(dropped));
    const args = ["train", "--model", path.join(referenceFolder, "gpt2"), "--capacity-factor", "1"];
    const { code, stderr } = await command([...args, "--data", path.join(referenceFolder, "gpt2", "tokens.u16")]);
    assert.equal(code, 2);
    assert.match(stderr, /--capacity-factor bounds what experts take; the model has none/);
  });

  it("the same command gives the same bits twice", async () => {
    const runs = [1, 2].map(async () => {
      const { out, steps } = await train("mixtral", "dp=2,ep=2", ["--steps", "5"]);
      await rm(out, { recursive: true });
      return steps.map((s) => [s.loss, s.gradNorm]);
    });
    assert.deepEqual(await runs[0], await runs[1]);
  });

  it("a model without experts is refused with the reason", async () => {
    const args = ["generate", "--model", path.join(referenceFolder, "gpt2"), "--prompt-tokens", "1"];
    const { code, stderr } = await command([...args, "--mesh", "ep=2"]);
    assert.equal(code, 1);
    assert.match(stderr, /mesh ep=2: axis ep splits experts, of which the model has none/);
  });
});
