// Sequence parallelism: with it and without, a step is that of one device; memory falls, and cost decides where nobody
// does.
import assert from "node:assert/strict";
import { PlanError } from "../../lib/core/errors.ts";
import { parseModelConfig } from "../../lib/nn/config.ts";
import { createModel } from "../../lib/nn/load.ts";
import { sgd } from "../../lib/optim/optimizer.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { planTrainStep, type TrainStepOptions, trainStep } from "../../lib/train/step.ts";

const small = { model_type: "gpt2", vocab_size: 17, n_positions: 16, n_embd: 12, n_layer: 2, n_head: 3 };
const dropouts = { attn_pdrop: 0.1, resid_pdrop: 0.2, embd_pdrop: 0.2 };

type Changes = Partial<TrainStepOptions<"inputs" | "targets">>;

function options(json: object, length: number, changes: Changes) {
  const model = createModel(parseModelConfig({ ...small, ...json }));
  const given: TrainStepOptions<"inputs" | "targets"> = {
    loss: ({ inputs, targets }) => model.loss(inputs, targets),
    optimizer: sgd({ learningRate: 0.1 }),
    batchSize: 4,
    batch: model.batchFields(length),
    ...changes,
  };
  return { model, given };
}

/** Losses and gradient norms of a few steps of a GPT-2 with dropout; not clipped. */
async function run(axes: Record<string, number>, length: number, changes: Changes = {}): Promise<number[]> {
  await using mesh = await Mesh.open({ device: "cpu", axes, threads: 1 });
  const { model, given } = options(dropouts, length, changes);
  using step = await trainStep(mesh, model, given);
  const inputs = Int32Array.from({ length: 4 * length }, (_, i) => (i * 5) % 17);
  const out: number[] = [];
  for (let k = 0; k < 3; k++) {
    const { loss, gradNorm } = await step.run({ inputs, targets: inputs.toReversed() });
    out.push(loss, gradNorm);
  }
  return out;
}

/** The plan of a model wide enough to fill devices. */
async function plan(axes: Record<string, number>, json: object, changes: Changes) {
  await using mesh = await Mesh.open({ device: "null", axes });
  const wide = { vocab_size: 512, n_positions: 2048, n_embd: 1024, n_layer: 2, n_head: 16, attn_pdrop: 0 };
  const { model, given } = options({ ...wide, resid_pdrop: 0, embd_pdrop: 0, ...json }, 2048, changes);
  return (await planTrainStep(mesh, model, given)).plan;
}

describe("sequence parallelism", function () {
  this.timeout(60_000);

  for (const [axes, length, changes] of [
    [{ tp: 2 }, 8, {}],
    [{ tp: 3 }, 7, { microbatches: 2 }],
    [{ tp: 4 }, 3, {}],
    [{ dp: 2, tp: 2 }, 5, {}],
    [{ cp: 2, tp: 2 }, 9, {}],
    [{ pp: 2, tp: 2 }, 6, {}],
    [{ pp: 2, cp: 2, tp: 2 }, 7, {}],
  ] as const) {
    it(`${length} tokens under ${JSON.stringify(axes)}, on and off, are one device's`, async () => {
      const [expected, on, off] = await Promise.all([
        run({}, length),
        run(axes, length, { ...changes, sequenceParallel: "on" }),
        run(axes, length, { ...changes, sequenceParallel: "off" }),
      ]);
      expected.forEach((x, i) => {
        for (const y of [on[i]!, off[i]!]) assert.ok(Math.abs(x - y) <= 1e-5 * Math.max(1, x), `${i}: ${y}, not ${x}`);
      });
    });
  }

  it("keeps a share of the residual stream on each device: activations fall, results do not grow", async () => {
    const [on, off] = await Promise.all(
      (["on", "off"] as const).map((sequenceParallel) => plan({ tp: 4 }, {}, { sequenceParallel })),
    );
    const stream = 4 * 2048 * 1024 * 4;
    // Each layer keeps the stream twice and both norms' results: three quarters of those, at least, are gone.
    const kept = (p: typeof on): number => p!.devices[0]!.activationBytes;
    assert.ok(kept(off) - kept(on) >= 2 * 4 * 0.75 * stream, `${kept(off)} and ${kept(on)}`);
    assert.ok(on!.devices[0]!.bytes < off!.devices[0]!.bytes);
    assert.equal(on!.devices[0]!.parameterBytes, off!.devices[0]!.parameterBytes);
  });

  it("left to the cost, is on where the stream is large and off where collectives' latency rules", async () => {
    const large = await plan({ tp: 4 }, { resid_pdrop: 0.1, embd_pdrop: 0.1 }, { batchSize: 16 });
    assert.equal(large.sequenceParallel, true);
    await using mesh = await Mesh.open({ device: "null", axes: { tp: 2 } });
    const { model, given } = options({}, 8, {});
    assert.equal((await planTrainStep(mesh, model, given)).plan.sequenceParallel, false);
  });

  it("asked for where it cannot be is refused", async () => {
    for (const [axes, changes, message] of [
      [{ dp: 2 }, {}, /over the axis tp: mesh dp=2 has none/],
      [{ tp: 2 }, { batch: undefined }, /no array of the batch says where its sequence is/],
    ] as const) {
      await using mesh = await Mesh.open({ device: "null", axes });
      const { model, given } = options({}, 8, { sequenceParallel: "on" });
      const { inputs, targets } = given.batch;
      const unmarked = (f: typeof inputs) => ({ dtype: f.dtype, shape: f.shape });
      const batch = "batch" in changes ? { inputs: unmarked(inputs), targets: unmarked(targets) } : given.batch;
      await assert.rejects(
        planTrainStep(mesh, model, { ...given, batch }),
        (e) => e instanceof PlanError && message.test(e.message),
      );
    }
  });
});
