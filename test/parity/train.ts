// Trains the reference runs' models by the command and compares with PyTorch (tolerances: the runs' README).
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { Weights } from "../../lib/checkpoint/safetensors.ts";
import { command } from "./cli.ts";
import { referenceFolder as folder } from "./reference.ts";

interface Reference {
  readonly learning_rate: number;
  readonly betas: readonly number[];
  readonly eps: number;
  readonly weight_decay: number;
  readonly clip_norm: number;
  readonly steps: number;
  readonly batch_size: number;
  readonly sequence_length: number;
  readonly loss: readonly number[];
  readonly grad_norm: readonly number[];
}

/** A JSON file. */
export function readJson<T>(file: string): T {
  return JSON.parse(readFileSync(file, "utf8"));
}

function relative(found: number, expected: number): number {
  return Math.abs(found - expected) / Math.abs(expected);
}

/** norm(final - reference) / norm(reference - initial) of the worst tensor. */
async function worstDrift(model: string, out: string): Promise<{ name: string; drift: number }> {
  await using initial = await Weights.open(path.join(folder, model, "model.safetensors"));
  await using reference = await Weights.open(path.join(folder, model, "final.safetensors"));
  await using final = await Weights.open(path.join(out, "model", "model.safetensors"));
  assert.deepEqual([...final.tensors.keys()].sort(), [...reference.tensors.keys()].sort());
  let worst = { name: "", drift: 0 };
  for (const name of reference.tensors.keys()) {
    const [a, r, f] = [await initial.read(name), await reference.read(name), await final.read(name)];
    let moved = 0;
    let off = 0;
    for (let i = 0; i < r.length; i++) {
      // The gradient of GPT-2's key biases is zero in exact arithmetic: Adam divides rounding by rounding there.
      if (name.endsWith("attn.c_attn.bias") && i >= r.length / 3 && i < (2 * r.length) / 3) continue;
      moved += (r[i]! - a[i]!) ** 2;
      off += (f[i]! - r[i]!) ** 2;
    }
    const drift = Math.sqrt(off / moved);
    if (drift > worst.drift) worst = { name, drift };
  }
  return worst;
}

/** Trains as the reference run did, by the command. */
export async function train(model: string, mesh: string, extra: readonly string[] = []) {
  const dir = path.join(folder, model);
  const out = await mkdtemp(path.join(os.tmpdir(), "meshwork-parity-"));
  const r = readJson<Reference>(path.join(dir, "train.json"));
  const flags: Record<string, string | number> = {
    model: dir,
    data: path.join(dir, "tokens.u16"),
    order: "sequential",
    steps: r.steps,
    "batch-size": r.batch_size,
    "seq-len": r.sequence_length,
    "learning-rate": r.learning_rate,
    "lr-schedule": "constant",
    warmup: 0,
    betas: r.betas.join(),
    eps: r.eps,
    "weight-decay": r.weight_decay,
    "clip-norm": r.clip_norm,
    mesh,
    device: "cpu",
    precision: "f32",
    out,
  };
  const args = Object.entries(flags).flatMap(([k, v]) => [`--${k}`, String(v)]);
  const result = await command(["train", ...args, ...extra]);
  return { out, reference: r, result, steps: result.lines.filter((l) => l.type === "step") };
}

/** Trains under a mesh and compares every step and the final weights with the reference run. */
export async function assertParity(model: string, mesh: string, extra: readonly string[] = []): Promise<void> {
  const { out, reference, result, steps } = await train(model, mesh, extra);
  try {
    assert.equal(result.code, 0, result.stderr);
    assert.equal(steps.length, reference.steps);
    steps.forEach((s, i) => {
      assert.ok(relative(Number(s.loss), reference.loss[i]!) <= 2e-5, `loss of step ${i + 1}: ${s.loss}`);
      const norm = Number(s.gradNorm);
      assert.ok(relative(norm, reference.grad_norm[i]!) <= 2e-4, `gradient norm of step ${i + 1}: ${norm}`);
    });
    const worst = await worstDrift(model, out);
    if (process.env.SHOW) console.log(mesh, worst);
    assert.ok(worst.drift <= 2e-3, `${worst.name} drifts by ${worst.drift}`);
  } finally {
    await rm(out, { recursive: true });
  }
}

/** Generates after the reference's prompt under a mesh, and compares tokens and first logits with the reference's. */
export async function assertGeneration(model: string, mesh: string): Promise<void> {
  const expected = readJson<{ prompt: number[]; last_logits: number[]; greedy: number[] }>(
    path.join(folder, model, "logits.json"),
  );
  const prompt = ["--prompt-tokens", expected.prompt.join(), "--max-tokens", "12", "--temperature", "0", "--logits"];
  const args = ["generate", "--model", path.join(folder, model), ...prompt, "--mesh", mesh];
  const { code, lines, stderr } = await command(args);
  assert.equal(code, 0, stderr);
  const done = lines.at(-1)!;
  assert.deepEqual(done.tokens, expected.greedy);
  (done.logits as number[]).forEach((x, i) => {
    assert.ok(Math.abs(x - expected.last_logits[i]!) <= 1e-4, `logit ${i}: ${x}`);
  });
}
