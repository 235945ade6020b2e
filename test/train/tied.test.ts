// A table that is read twice, as embedding and as head: its gradients are added up in one memory, some rows at a time.
// fsdp splits gradients as they are made, so that nothing of it applies there: the others are held against that.
import assert from "node:assert/strict";
import { createModel } from "../../lib/nn/load.ts";
import { sgd } from "../../lib/optim/optimizer.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { planTrainStep, trainStep, type TrainStepOptions } from "../../lib/train/step.ts";
import { assertTrained, smallGpt2, type Trained, weightsOf } from "../parallel/trained.ts";

const [vocabSize, width] = [9001, 512];
const samples = 4;

type Changes = Partial<TrainStepOptions<"inputs" | "targets">>;

function given(changes: Changes) {
  const model = createModel(smallGpt2({ vocabSize, width, layers: 2, heads: 4, headDim: 128, innerWidth: 512 }));
  const options: TrainStepOptions<"inputs" | "targets"> = {
    loss: ({ inputs, targets }) => model.loss(inputs, targets),
    optimizer: sgd({ learningRate: 1 }),
    batchSize: samples,
    batch: model.batchFields(6),
    ...changes,
  };
  return { model, options };
}

/** Tokens at both ends of the table and in between, some of them several times. */
const token = (i: number): number => (i % 5 === 0 ? vocabSize - 1 : (i * i * 2003) % vocabSize);
const inputs = Int32Array.from({ length: samples * 6 }, (_, i) => token(i));
const targets = Int32Array.from({ length: samples * 6 }, (_, i) => token(i + 1));

async function train(axes: Readonly<Record<string, number>>, changes: Changes): Promise<Trained> {
  await using mesh = await Mesh.open({ device: "cpu", axes, threads: 1 });
  const { model, options } = given(changes);
  using step = await trainStep(mesh, model, options);
  return { results: [await step.run({ inputs, targets })], weights: weightsOf(mesh, model) };
}

describe("a tied table", function () {
  this.timeout(60_000);
  let expected: Trained;
  before(async () => {
    expected = await train({ fsdp: 2 }, {});
  });

  for (const [axes, changes] of [
    [{}, {}],
    [{}, { microbatches: 3 }],
    [{ tp: 2 }, {}],
    [{ pp: 2 }, { microbatches: 2 }],
    [{ pp: 2 }, { microbatches: 1, schedule: "zb-v" }],
  ] as const) {
    it(`is trained alike on ${JSON.stringify({ ...axes, ...changes })}`, async () => {
      assertTrained(await train(axes, changes), expected);
    });
  }

  it("needs the memory of one gradient, in one microbatch and in several", async () => {
    await using mesh = await Mesh.open({ device: "null", axes: {} });
    const bytes = vocabSize * width * 4;
    for (const microbatches of [1, 2]) {
      const { model, options } = given({ microbatches });
      const [device] = (await planTrainStep(mesh, model, options)).plan.devices;
      const { cellBytes, parameterBytes, arenaBytes, activationBytes } = device!;
      const reads = microbatches === 1 ? 1 : 2;
      assert.ok(Math.abs(cellBytes - parameterBytes - (reads - 1) * bytes) < 2 ** 16, `${cellBytes}`);
      // Beside cells and activations there are rows of the table's gradient only, not all of it.
      assert.ok(arenaBytes < cellBytes + activationBytes + bytes / 2, `${arenaBytes} for ${microbatches}`);
    }
  });
});
