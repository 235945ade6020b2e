// Schedules and recomputation on small models: the same bits by all, memory as planned, skips and ties across stages.
import assert from "node:assert/strict";
import { fromStorage } from "../../lib/core/dtype.ts";
import { PlanError } from "../../lib/core/errors.ts";
import { GPT2 } from "../../lib/nn/gpt2.ts";
import { Linear } from "../../lib/nn/layers.ts";
import { Module, nameModules } from "../../lib/nn/module.ts";
import { adamw } from "../../lib/optim/optimizer.ts";
import { type RecomputePolicy, recomputePolicies } from "../../lib/passes/remat.ts";
import { scheduleNames } from "../../lib/passes/schedules.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";
import type { Placeable } from "../../lib/train/placement.ts";
import type { PlannedDevice } from "../../lib/train/plan.ts";
import { planTrainStep, type TrainStepOptions, trainStep } from "../../lib/train/step.ts";
import type { BatchField, LossFunction } from "../../lib/train/trace.ts";

const batchSize = 7;
const length = 12;

/** A model, its loss and its batch. */
interface Subject {
  readonly model: Placeable;
  readonly loss: LossFunction;
  readonly batch: Readonly<Record<string, BatchField>>;
  readonly data: Readonly<Record<string, ArrayLike<number>>>;
}

function gpt2(dropout: number): Subject {
  const model = new GPT2({
    architecture: "gpt2",
    vocabSize: 41,
    width: 24,
    layers: 4,
    heads: 4,
    headDim: 6,
    innerWidth: 96,
    maxPositions: 16,
    initializerRange: 0.2,
    endTokens: [],
    activation: "gelu_new",
    tieWordEmbeddings: true,
    layerNormEps: 1e-5,
    attentionDropout: 0,
    embeddingDropout: dropout,
    residualDropout: dropout,
  });
  const ids = Int32Array.from({ length: batchSize * length }, (_, i) => (i * 7919) % 41);
  const field: BatchField = { dtype: "i32", shape: [length] };
  return {
    model,
    loss: (batch) => model.loss(batch.inputs!, batch.targets!),
    batch: { inputs: field, targets: field },
    data: { inputs: ids, targets: ids.toReversed() },
  };
}

/** Eight layers; outputs of the first ones are read by the last ones too, and three layers share one weight. */
class Skips extends Module {
  readonly layers = Array.from({ length: 8 }, () => new Linear(10, 10));

  constructor() {
    super();
    this.layers[4] = this.layers[1]!;
    this.layers[7] = this.layers[1]!;
    nameModules(this);
  }

  pipelineBlocks() {
    return this.layers.map((_, i) => ({ path: `step${i}`, cost: 1 }));
  }

  forward(x: Tensor): Tensor {
    const made: Tensor[] = [];
    let y = x;
    this.layers.forEach((layer, i) => {
      const builder = x.context.builder;
      const outer = builder.path;
      builder.path = `step${i}`;
      const early = i >= 5 ? made[i - 5]! : null;
      y = layer.forward(early ? y.add(early) : y).tanh();
      builder.path = outer;
      made.push(y);
    });
    return y;
  }
}

function skips(): Subject {
  const model = new Skips();
  return {
    model,
    loss: ({ x }) => model.forward(x!).mul(3).sum().div(10),
    batch: { x: { dtype: "f32", shape: [10] } },
    data: { x: Float32Array.from({ length: batchSize * 10 }, (_, i) => Math.sin(i)) },
  };
}

interface Outcome {
  readonly bits: unknown;
  readonly devices: readonly PlannedDevice[];
  readonly seconds: number;
}

async function train(
  subject: () => Subject,
  axes: Readonly<Record<string, number>>,
  options: Partial<TrainStepOptions>,
  unbuffered = false,
): Promise<Outcome> {
  await using mesh = await Mesh.open({ device: "cpu", axes, threads: 1, timeoutMs: 20_000, unbuffered });
  const { model, loss, batch, data } = subject();
  using step = await trainStep(mesh, model, {
    loss,
    optimizer: adamw({ learningRate: 1e-2 }),
    batchSize,
    batch,
    clipNorm: 1,
    seed: 5,
    ...options,
  });
  const results: number[] = [];
  for (let k = 0; k < 2; k++) {
    const { loss: value, gradNorm } = await step.run(data);
    results.push(value, gradNorm);
  }
  assert.deepEqual(
    mesh.engine.stats().arenaBytes,
    step.plan.devices.map((d) => d.arenaBytes),
    "the arenas are not what was planned",
  );
  const weights = model.parameters().map((p) => [p.path, fromStorage(p.dtype, mesh.store.read(p.id))]);
  return { bits: [results, weights], devices: step.plan.devices, seconds: step.plan.seconds };
}

describe("schedules", function () {
  this.timeout(120_000);

  const meshes = [{ pp: 2 }, { pp: 3 }, { pp: 2, tp: 2 }, { pp: 2, dp: 2 }, { pp: 2, fsdp: 2 }];
  for (const axes of meshes) {
    it(`give the same bits on ${JSON.stringify(axes)}, with dropout and a tied head`, async () => {
      const expected = await train(() => gpt2(0.1), axes, { schedule: "gpipe", microbatches: 5 });
      for (const schedule of scheduleNames.filter((name) => name !== "gpipe")) {
        const found = await train(() => gpt2(0.1), axes, { schedule, microbatches: 5 });
        assert.deepEqual(found.bits, expected.bits, schedule);
      }
    });
  }

  it("take values that skip stages and a weight that three stages share", async () => {
    for (const axes of [{ pp: 2 }, { pp: 4 }]) {
      const expected = await train(skips, axes, { schedule: "gpipe", microbatches: 4 });
      for (const schedule of scheduleNames.filter((name) => name !== "gpipe")) {
        const found = await train(skips, axes, { schedule, microbatches: 4 });
        assert.deepEqual(found.bits, expected.bits, `${schedule} on ${JSON.stringify(axes)}`);
      }
    }
  });

  it("run where sends hold their device up until they are received, but those with several stages a device", async () => {
    for (const schedule of ["gpipe", "1f1b", "zb-h1"]) {
      const expected = await train(() => gpt2(0.1), { pp: 3 }, { schedule, microbatches: 5 });
      const found = await train(() => gpt2(0.1), { pp: 3 }, { schedule, microbatches: 5 }, true);
      assert.deepEqual(found.bits, expected.bits, schedule);
    }
  });

  it("take stages as the user places them", async () => {
    const stageOf = (path: string): number =>
      path === "lm_head" || path === "ln_f" || path === "h.3" ? 3 : path === "h.2" ? 2 : path === "h.1" ? 1 : 0;
    const expected = await train(() => gpt2(0), { pp: 4 }, { schedule: "gpipe", microbatches: 3, stageOf });
    for (const schedule of ["interleaved-1f1b", "zb-v"]) {
      const found = await train(() => gpt2(0), { pp: 2 }, { schedule, microbatches: 3, stageOf });
      assert.deepEqual(
        found.devices.map((d) => d.stages),
        schedule === "zb-v"
          ? [
              [0, 3],
              [1, 2],
            ]
          : [
              [0, 2],
              [1, 3],
            ],
      );
      assert.deepEqual((found.bits as unknown[])[1], (expected.bits as unknown[])[1], schedule);
    }
  });

  it("hold min(p - s, m) microbatches on stage s under 1f1b, and what the paper says under zb-h1", async () => {
    await using mesh = await Mesh.open({ device: "null", axes: { pp: 3 } });
    for (const microbatches of [2, 3, 6]) {
      const { model, loss, batch } = gpt2(0);
      const options = { loss, optimizer: adamw({ learningRate: 1e-2 }), batchSize: 12, batch, microbatches };
      const slots = async (schedule: string, pool: string): Promise<number[]> => {
        const { plan } = await planTrainStep(mesh, model, { ...options, schedule });
        return plan.devices.map((d) => d.pools.find((p) => p.pool === pool)?.slots ?? 0);
      };
      const at = (n: number): number => Math.min(n, microbatches);
      assert.deepEqual(await slots("1f1b", "FB"), [at(3), at(2), at(1)]);
      assert.deepEqual(await slots("zb-h1", "FB"), [at(3), at(2), at(1)]);
      assert.deepEqual(await slots("zb-h1", "BW"), [at(1), at(2), at(3)]);
    }
  });
});

describe("recomputation", function () {
  this.timeout(120_000);

  const cases: readonly (readonly [Readonly<Record<string, number>>, string])[] = [
    [{}, "1f1b"],
    ...scheduleNames.map((schedule) => [{ pp: 2 }, schedule] as const),
    [{ tp: 2 }, "1f1b"],
    [{ fsdp: 2 }, "1f1b"],
    [{ pp: 2, tp: 2 }, "zb-v"],
  ];
  for (const [axes, schedule] of cases) {
    it(`gives the same bits and takes less memory on ${JSON.stringify(axes)} under ${schedule}, with dropout`, async () => {
      const outcomes: Outcome[] = [];
      for (const recompute of recomputePolicies) {
        outcomes.push(await train(() => gpt2(0.1), axes, { schedule, microbatches: 3, recompute }));
      }
      const [none, selective, full] = outcomes as [Outcome, Outcome, Outcome];
      assert.deepEqual(selective.bits, none.bits);
      assert.deepEqual(full.bits, none.bits);
      assert.ok(full.seconds > selective.seconds && selective.seconds > none.seconds);
      none.devices.forEach((device, d) => {
        const kept = (o: Outcome): number => o.devices[d]!.activationBytes;
        assert.ok(kept(full) < kept(selective) && kept(selective) < device.activationBytes, `device ${d}`);
      });
    });
  }

  it("is the cheapest that fits the memory where none is asked for", async () => {
    await using mesh = await Mesh.open({ device: "null", axes: {} });
    const { model, loss, batch } = gpt2(0);
    const options = { loss, optimizer: adamw({ learningRate: 1e-2 }), batchSize, batch };
    const bytes = new Map<RecomputePolicy, number>();
    for (const recompute of recomputePolicies) {
      const { plan } = await planTrainStep(mesh, model, { ...options, recompute });
      bytes.set(recompute, plan.outcome.bytes);
      assert.equal(plan.recompute, recompute);
    }
    for (const policy of recomputePolicies) {
      const { plan } = await planTrainStep(mesh, model, { ...options, memory: bytes.get(policy)! });
      assert.equal(plan.recompute, policy);
      assert.equal(plan.policies.at(-1)!.bytes, bytes.get(policy));
      assert.deepEqual(
        plan.policies.map((t) => t.policy),
        recomputePolicies.slice(0, recomputePolicies.indexOf(policy) + 1),
      );
      const seconds = plan.policies.map((t) => t.seconds);
      assert.deepEqual(
        seconds,
        [...seconds].sort((a, b) => a - b),
      );
      assert.match(plan.toString(), new RegExp(`recompute ${policy}: .* MiB`));
    }
    for (const recompute of [undefined, ...recomputePolicies]) {
      const chosen = recompute === undefined ? {} : { recompute };
      const { plan } = await planTrainStep(mesh, model, { ...options, ...chosen, compareRecompute: true });
      assert.equal(plan.recompute, recompute ?? "none");
      assert.deepEqual(
        plan.policies.map(({ policy, bytes }) => [policy, bytes]),
        [...bytes],
      );
      assert.match(String(plan), new RegExp(`recompute ${recompute ?? "none"}: .* \\(taken\\)`));
    }
    const less = { ...options, memory: bytes.get("full")! - 1 };
    await assert.rejects(trainStep(mesh, model, less), PlanError);
  });
});
