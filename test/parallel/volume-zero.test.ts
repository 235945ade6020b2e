// Communication of a training step, counted on 64 null devices, against the closed forms.
import assert from "node:assert/strict";
import { Llama } from "../../lib/nn/llama.ts";
import { adamw } from "../../lib/optim/optimizer.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { trainStep, type TrainStepOptions } from "../../lib/train/step.ts";

const vocab = 512;
const width = 64;
const layers = 2;
const time = 8;

type Options = Partial<TrainStepOptions<"inputs" | "targets">> & { readonly samples: number };

/**
 * Bytes of the whole tensors of a device's exchanges in one step, by op and size of the group; and the model's sizes.
 */
async function volume(axes: Readonly<Record<string, number>>, { samples, ...options }: Options) {
  await using mesh = await Mesh.open({ device: "null", axes, timeoutMs: 60_000 });
  const model = new Llama({
    architecture: "llama",
    vocabSize: vocab,
    width,
    layers,
    heads: 8,
    headDim: 8,
    kvHeads: 4,
    innerWidth: 128,
    maxPositions: 32,
    initializerRange: 0.02,
    endTokens: [],
    activation: "silu",
    tieWordEmbeddings: false,
    attentionDropout: 0,
    rmsNormEps: 1e-5,
    ropeTheta: 10_000,
    ropeScaling: undefined,
    attentionBias: false,
    mlpBias: false,
    experts: undefined,
  });
  using step = await trainStep(mesh, model, {
    loss: ({ inputs, targets }) => model.loss(inputs, targets),
    optimizer: adamw({ learningRate: 1e-3 }),
    batchSize: samples,
    batch: { inputs: { dtype: "i32", shape: [time] }, targets: { dtype: "i32", shape: [time] } },
    ...options,
  });
  const traffic = (): Map<string, number> => {
    const list = mesh.engine.stats().devices[0]!.traffic;
    return new Map(list.map(({ op, groupSize, bytes }) => [`${op} ${groupSize}`, bytes]));
  };
  const before = traffic();
  const ids = new Array<number>(samples * time).fill(1);
  await step.run({ inputs: ids, targets: ids });
  const bytes = Object.fromEntries([...traffic()].map(([key, n]) => [key, n - (before.get(key) ?? 0)]));
  const shapes = model.parameters().map((p) => p.shape);
  const count = (rank: number): number =>
    shapes.filter((s) => s.length >= rank).reduce((sum, s) => sum + s.reduce((a, b) => a * b, 1), 0);
  const parameters = count(1);
  return { bytes, tensors: shapes.length, parameters, matrices: count(2), vectors: parameters - count(2) };
}

/** Sum of the loss, and its count. */
const scalars = 8;
const embedding = vocab * width;

describe("communication of a step on 64 devices", function () {
  this.timeout(120_000);

  it("dp: one all-reduce of the gradients, whatever the microbatches", async () => {
    for (const microbatches of [1, 3]) {
      const { bytes, parameters } = await volume({ dp: 64 }, { samples: 64 * microbatches, microbatches });
      assert.deepEqual(bytes, { "all_reduce 64": 4 * parameters + scalars });
    }
  });

  it("ZeRO-1: one reduce-scatter of the gradients and one gather of the parameters", async () => {
    const { bytes, parameters, tensors } = await volume({ fsdp: 64 }, { samples: 128, microbatches: 2, zero: 1 });
    assert.deepEqual(bytes, {
      "reduce_scatter 64": 4 * parameters,
      "all_gather 64": 4 * parameters,
      "all_reduce 64": scalars + 4 * tensors,
    });
  });

  it("ZeRO-2: a reduce-scatter in each microbatch and one gather", async () => {
    const { bytes, parameters, tensors } = await volume({ fsdp: 64 }, { samples: 192, microbatches: 3, zero: 2 });
    assert.deepEqual(bytes, {
      "reduce_scatter 64": 3 * 4 * parameters,
      "all_gather 64": 4 * parameters,
      "all_reduce 64": scalars + 4 * tensors,
    });
  });

  it("ZeRO-3: in each microbatch a gather, one more of what the backward reads, and a reduce-scatter", async () => {
    for (const microbatches of [1, 3]) {
      const { bytes, parameters, tensors } = await volume({ fsdp: 64 }, { samples: 64 * microbatches, microbatches });
      assert.deepEqual(bytes, {
        "reduce_scatter 64": 4 * microbatches * parameters,
        "all_gather 64": 4 * microbatches * (2 * parameters - embedding),
        "all_reduce 64": scalars + 4 * tensors,
      });
    }
  });

  it("ZeRO-3 gathered once a step: one gather of what is read", async () => {
    const { bytes, parameters } = await volume({ fsdp: 64 }, { samples: 192, microbatches: 3, regather: "step" });
    assert.equal(bytes["reduce_scatter 64"], 3 * 4 * parameters);
    assert.equal(bytes["all_gather 64"], 4 * parameters);
  });

  it("ZeRO-3 in bf16: matrices are gathered in bf16, gradients reduced in float32", async () => {
    const found = await volume({ fsdp: 64 }, { samples: 128, microbatches: 2, precision: "bf16" });
    const { bytes, parameters, matrices, vectors } = found;
    // The embedding's rows are looked up in float32; its gradient needs no weight.
    const gathered = 2 * 2 * (matrices - embedding) + 4 * embedding + 2 * 4 * vectors;
    assert.equal(bytes["all_gather 64"], 2 * gathered);
    assert.equal(bytes["reduce_scatter 64"], 2 * 4 * parameters);
  });

  it("ZeRO-3 under dp: the shards' gradients are reduced once over dp", async () => {
    const { bytes, parameters } = await volume({ dp: 4, fsdp: 16 }, { samples: 128, microbatches: 2 });
    assert.equal(bytes["reduce_scatter 16"], 4 * 2 * parameters);
    assert.equal(bytes["all_gather 16"], 4 * 2 * (2 * parameters - embedding));
    assert.equal(bytes["all_reduce 4"], (4 * parameters) / 16);
  });
});
