// Training steps against arithmetic by hand: terms with weights and counts, clipping, AdamW; targets that do not
// count, choices that experts drop.
import assert from "node:assert/strict";
import type { ModelConfig } from "../../lib/nn/config.ts";
import { Projection } from "../../lib/nn/layers.ts";
import { createModel } from "../../lib/nn/load.ts";
import { Module, nameModules } from "../../lib/nn/module.ts";
import { adamw, sgd } from "../../lib/optim/optimizer.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";
import { trainStep } from "../../lib/train/step.ts";
import { smallGpt2, smallLlama } from "../parallel/trained.ts";

const samples = 5;
const weights = { error: 0.5, size: 0.1 } as const;
const first = [0.5, 0.5, 0.5];
const [learningRate, betas, eps] = [0.1, [0.8, 0.9] as const, 1e-3];

/** y = x w. */
class Line extends Module {
  readonly line = new Projection({ dims: "w", over: "w", sizes: { w: 3 }, initial: { kind: "constant", value: 0.5 } });

  constructor() {
    super();
    nameModules(this);
  }

  forward(x: Tensor): Tensor {
    return this.line.call(x);
  }
}

interface Batch {
  readonly x: readonly number[];
  readonly target: readonly number[];
  /** 1 where a sample counts for the first term, else 0. */
  readonly counts: readonly number[];
}

function batchOf(step: number): Batch {
  const of = (n: number, by: number): number[] => Array.from({ length: n }, (_, i) => Math.sin(by * i + step));
  return { x: of(3 * samples, 1.7), target: of(samples, 0.9), counts: [1, 0, 1, 1, 0] };
}

interface Expected {
  readonly loss: number;
  readonly gradNorm: number;
  readonly w: readonly number[];
}

/** Steps of AdamW on the mean squared error of what counts, and a little of the mean square of y. */
function byHand(steps: number, clip: number): Expected[] {
  let w = [...first];
  let [m, v] = [first.map(() => 0), first.map(() => 0)];
  return Array.from({ length: steps }, (_, k) => {
    const { x, target, counts } = batchOf(k);
    const counted = counts.reduce((a, b) => a + b, 0);
    let loss = 0;
    const gradient = [0, 0, 0];
    for (let i = 0; i < samples; i++) {
      const row = x.slice(3 * i, 3 * i + 3);
      const y = row.reduce((sum, a, d) => sum + a * w[d]!, 0);
      const error = y - target[i]!;
      loss += (weights.error * counts[i]! * error ** 2) / counted + (weights.size * y ** 2) / samples;
      const slope = (weights.error * counts[i]! * 2 * error) / counted + (weights.size * 2 * y) / samples;
      row.forEach((a, d) => {
        gradient[d]! += slope * a;
      });
    }
    const gradNorm = Math.hypot(...gradient);
    const scale = clip > 0 ? Math.min(1, clip / (gradNorm + 1e-6)) : 1;
    const g = gradient.map((a) => a * scale);
    m = m.map((a, d) => betas[0] * a + (1 - betas[0]) * g[d]!);
    v = v.map((a, d) => betas[1] * a + (1 - betas[1]) * g[d]! ** 2);
    const [c1, c2] = [1 - betas[0] ** (k + 1), 1 - betas[1] ** (k + 1)];
    w = w.map((a, d) => a - ((learningRate / c1) * m[d]!) / (Math.sqrt(v[d]! / c2) + eps));
    return { loss, gradNorm, w };
  });
}

function near(found: number, expected: number, what: string): void {
  assert.ok(Math.abs(found - expected) <= 1e-5 * Math.max(1, Math.abs(expected)), `${what}: ${found}, not ${expected}`);
}

describe("a training step by hand", function () {
  this.timeout(30_000);

  const layouts = [
    { axes: {}, microbatches: 1 },
    { axes: {}, microbatches: 3 },
    { axes: { dp: 2 }, microbatches: 2 },
    { axes: { fsdp: 2 }, microbatches: 1 },
  ];
  for (const { axes, microbatches } of layouts) {
    it(`is right on ${JSON.stringify(axes)} in ${microbatches} microbatches, whatever is clipped`, async () => {
      for (const clipNorm of [0, 0.05, 1000]) {
        await using mesh = await Mesh.open({ device: "cpu", axes, threads: 1 });
        const model = new Line();
        using step = await trainStep(mesh, model, {
          loss: ({ x, target, counts }) => {
            const [y, again] = [model.call(x!), model.call(x!)]; // two reads of the weight, whose gradients add up
            const error = y.sub(target!);
            return {
              error: { sum: error.mul(error).mul(counts!).sum(), count: counts!.sum(), weight: weights.error },
              size: { sum: again.mul(again).sum(), count: counts!.mul(0).add(1).sum(), weight: weights.size },
            };
          },
          optimizer: adamw({ learningRate, betas, eps, weightDecay: 0 }),
          batchSize: samples,
          batch: {
            x: { dtype: "f32", shape: [3] },
            target: { dtype: "f32", shape: [] },
            counts: { dtype: "f32", shape: [] },
          },
          microbatches,
          clipNorm,
        });
        for (const [k, expected] of byHand(3, clipNorm).entries()) {
          const { loss, gradNorm } = await step.run({ ...batchOf(k) });
          near(loss, expected.loss, `the loss of step ${k + 1}`);
          near(gradNorm, expected.gradNorm, `the gradient's norm of step ${k + 1}`);
          const found = [...mesh.store.read(model.line.weight.id)];
          found.forEach((a, d) => {
            near(a, expected.w[d]!, `weight ${d} after step ${k + 1}, clipped at ${clipNorm}`);
          });
        }
      }
    });
  }

  it("takes the mean over targets that count", async () => {
    const config = smallGpt2({ vocabSize: 11, width: 8, layers: 1, heads: 2, headDim: 4, innerWidth: 16 });
    await using mesh = await Mesh.open({ device: "cpu", axes: {}, threads: 1 });
    const model = createModel(config);
    using step = await trainStep(mesh, model, {
      loss: ({ inputs, targets }) => model.loss(inputs, targets),
      optimizer: sgd({ learningRate: 0 }),
      batchSize: 1,
      batch: model.batchFields(6),
      seed: 2,
    });
    const inputs = Int32Array.of(1, 2, 3, 4, 5, 6);
    const lossOf = async (...counted: number[]): Promise<number> => {
      const targets = Int32Array.from(inputs, (token, i) => (counted.includes(i) ? (token + 3) % 11 : -100));
      return (await step.run({ inputs, targets })).loss;
    };
    near(await lossOf(1, 4), ((await lossOf(1)) + (await lossOf(4))) / 2, "the loss of two targets");
  });

  it("counts the choices that experts drop", async () => {
    const length = 8;
    const sizes = { vocabSize: 11, width: 8, layers: 2, heads: 2, headDim: 4, innerWidth: 16 };
    // An expert takes 0.5 x 8 x 2 / 4 = 2 of a sample's choices. Equal tokens all choose the same two experts.
    const experts = { count: 4, perToken: 2, balanceWeight: 0, capacityFactor: 0.5 };
    for (const axes of [{}, { ep: 2 }]) {
      await using mesh = await Mesh.open({ device: "cpu", axes, threads: 1 });
      const model = createModel({ ...smallLlama(sizes, true), experts } as ModelConfig);
      using step = await trainStep(mesh, model, {
        loss: ({ inputs, targets }) => model.loss(inputs, targets),
        optimizer: sgd({ learningRate: 0 }),
        batchSize: 3,
        batch: model.batchFields(length),
      });
      const tokens = new Int32Array(3 * length).fill(5);
      const { terms } = await step.run({ inputs: tokens, targets: tokens });
      near(terms.dropped!, 1 - 2 / length, "the share of choices that are dropped");
    }
  });
});
