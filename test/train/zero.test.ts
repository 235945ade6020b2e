// What the fsdp axis splits at each ZeRO level: bytes of the plan, and the arena that devices really take.
import assert from "node:assert/strict";
import { ConfigError } from "../../lib/core/errors.ts";
import { MeshLayout } from "../../lib/ir/mesh.ts";
import { replicated, specText, type ValueSpec } from "../../lib/ir/spec.ts";
import { GPT2 } from "../../lib/nn/gpt2.ts";
import { adamw } from "../../lib/optim/optimizer.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import type { StepPlan } from "../../lib/train/plan.ts";
import { planTrainStep, type TrainStepOptions, trainStep } from "../../lib/train/step.ts";
import { splitByFsdp, type ZeroLevel } from "../../lib/train/zero.ts";

const length = 16;

function newModel(): GPT2 {
  return new GPT2({
    architecture: "gpt2",
    vocabSize: 257,
    width: 64,
    layers: 2,
    heads: 4,
    headDim: 16,
    innerWidth: 256,
    maxPositions: 32,
    initializerRange: 0.02,
    endTokens: [],
    activation: "gelu_new",
    tieWordEmbeddings: true,
    layerNormEps: 1e-5,
    attentionDropout: 0,
    embeddingDropout: 0,
    residualDropout: 0,
  });
}

function optionsOf(model: GPT2, zero: ZeroLevel): TrainStepOptions<"inputs" | "targets"> {
  return {
    loss: ({ inputs, targets }) => model.loss(inputs, targets),
    optimizer: adamw({ learningRate: 1e-3 }),
    batchSize: 8,
    microbatches: 2,
    batch: { inputs: { dtype: "i32", shape: [length] }, targets: { dtype: "i32", shape: [length] } },
    zero,
    clipNorm: 1,
  };
}

async function planOf(axes: Readonly<Record<string, number>>, zero: ZeroLevel): Promise<StepPlan> {
  await using mesh = await Mesh.open({ device: "null", axes });
  const model = newModel();
  return (await planTrainStep(mesh, model, optionsOf(model, zero))).plan;
}

/** Asserts that every device holds so much of what one device alone holds, within 2 %. */
function assertShare(plan: StepPlan, whole: StepPlan, shares: readonly [number, number, number]): void {
  const kinds = ["parameterBytes", "cellBytes", "stateBytes"] as const;
  for (const device of plan.devices) {
    kinds.forEach((kind, i) => {
      const share = device[kind] / whole.devices[0]![kind];
      assert.ok(Math.abs(share / shares[i]! - 1) < 0.02, `${device.device} holds ${share} of ${kind}`);
    });
  }
}

describe("ZeRO", function () {
  this.timeout(60_000);

  it("holds a quarter of parameters, gradients and optimizer state on fsdp=4, as the level says", async () => {
    const whole = await planOf({}, 3);
    assertShare(await planOf({ fsdp: 4 }, 3), whole, [1 / 4, 1 / 4, 1 / 4]);
    assertShare(await planOf({ fsdp: 4 }, 2), whole, [1, 1 / 4, 1 / 4]);
    assertShare(await planOf({ fsdp: 4 }, 1), whole, [1, 1, 1 / 4]);
  });

  it("takes the arena that the plan says, and holds no gathered weight longer than it is used", async () => {
    for (const zero of [1, 2, 3] as const) {
      await using mesh = await Mesh.open({ device: "cpu", axes: { fsdp: 2 }, threads: 1 });
      const model = newModel();
      using step = await trainStep(mesh, model, optionsOf(model, zero));
      const ids = Array.from({ length: 8 * length }, (_, i) => i % 257);
      await step.run({ inputs: ids, targets: ids });
      const { arenaBytes } = mesh.engine.stats();
      assert.deepEqual(
        arenaBytes,
        step.plan.devices.map((d) => d.arenaBytes),
      );
    }
    const [kept, gathered] = [await planOf({ fsdp: 2 }, 1), await planOf({ fsdp: 2 }, 3)];
    const whole = kept.devices[0]!.parameterBytes;
    assert.ok(gathered.devices[0]!.bytes < kept.devices[0]!.bytes - 0.5 * whole);
  });

  it("splits the first dim that makes the largest shard smallest, inside tp's shards", () => {
    const split = (shape: number[], dims: string[][], axes: Record<string, number>): string => {
      const spec: ValueSpec = { dims, partial: {} };
      return specText(splitByFsdp(shape, spec, new MeshLayout(axes)));
    };
    assert.equal(split([8, 6], [[], []], { fsdp: 2 }), "[fsdp, -]");
    assert.equal(split([3, 64], [[], []], { fsdp: 2 }), "[-, fsdp]");
    assert.equal(split([8, 6], [["tp"], []], { fsdp: 2, tp: 2 }), "[tp.fsdp, -]");
    assert.equal(split([2, 6], [["tp"], []], { fsdp: 2, tp: 2 }), "[tp, fsdp]");
    assert.equal(split([1], [[]], { fsdp: 4 }), "[-]");
    assert.equal(split([], [], { fsdp: 4 }), specText(replicated(0)));
    assert.equal(split([8], [[]], { dp: 4 }), "[-]");
  });

  it("is refused for a level that does not exist", async () => {
    await using mesh = await Mesh.open({ device: "null", axes: { fsdp: 2 } });
    const model = newModel();
    const options = { ...optionsOf(model, 3), zero: 4 as ZeroLevel };
    await assert.rejects(planTrainStep(mesh, model, options), ConfigError);
  });
});
