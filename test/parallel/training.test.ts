// Training steps of small models on every kind of mesh: losses, gradient norms and weights are those of one device,
// with uneven batches, uneven microbatches, targets that do not count, and dropout.
import assert from "node:assert/strict";
import type { ModelConfig } from "../../lib/nn/config.ts";
import { createModel } from "../../lib/nn/load.ts";
import { adamw } from "../../lib/optim/optimizer.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { type StepResult, trainStep } from "../../lib/train/step.ts";
import { testDevice } from "../device.ts";
import { Draw } from "../conformance/draw.ts";
import { assertTrained, smallGpt2, smallLlama, type Trained, weightsOf } from "./trained.ts";

const sizes = { vocabSize: 37, width: 24, layers: 3, heads: 4, headDim: 6, innerWidth: 40 } as const;

const configs: Readonly<Record<string, ModelConfig>> = {
  "GPT-2": smallGpt2(sizes),
  "GPT-2 with dropout": smallGpt2(sizes, 0.2),
  Llama: smallLlama(sizes),
  Mixtral: smallLlama(sizes, true),
  "Mixtral with bounded experts and a dense layer": {
    ...smallLlama(sizes, true),
    experts: { count: 4, perToken: 2, balanceWeight: 0, capacityFactor: 0.7, denseLayers: [1] },
  } as ModelConfig,
};

interface Layout {
  readonly axes: Readonly<Record<string, number>>;
  readonly microbatches: number;
  readonly schedule?: string;
  readonly zero?: 1 | 2 | 3;
  readonly regather?: "segment" | "step";
  readonly sequenceParallel?: "on" | "off";
}

/** For models with experts. */
const expertLayouts: readonly Layout[] = [
  { axes: { ep: 2 }, microbatches: 1 },
  { axes: { ep: 3 }, microbatches: 2 },
  { axes: { ep: 5 }, microbatches: 1 },
  { axes: { dp: 2, ep: 2 }, microbatches: 2 },
  { axes: { fsdp: 2, ep: 2 }, microbatches: 1, zero: 3 },
  { axes: { fsdp: 2, ep: 2 }, microbatches: 2, zero: 1 },
  { axes: { ep: 2, tp: 2 }, microbatches: 3 },
  { axes: { ep: 2, tp: 2 }, microbatches: 1, sequenceParallel: "on" },
  { axes: { cp: 2, ep: 2 }, microbatches: 1 },
  { axes: { pp: 2, ep: 2 }, microbatches: 3, schedule: "zb-h1" },
  { axes: { pp: 2, ep: 2, tp: 2 }, microbatches: 3 },
];

const layouts: readonly Layout[] = [
  { axes: {}, microbatches: 1 },
  { axes: {}, microbatches: 3 },
  { axes: { dp: 2 }, microbatches: 1 },
  { axes: { dp: 2 }, microbatches: 3 },
  { axes: { dp: 3 }, microbatches: 2 },
  { axes: { fsdp: 2 }, microbatches: 2 },
  { axes: { fsdp: 3 }, microbatches: 1, zero: 1 },
  { axes: { fsdp: 3 }, microbatches: 2, zero: 2 },
  { axes: { fsdp: 2, tp: 2 }, microbatches: 1, zero: 3 },
  { axes: { dp: 2, fsdp: 2 }, microbatches: 2, zero: 3 },
  { axes: { pp: 2, fsdp: 2 }, microbatches: 3, zero: 3, regather: "step" },
  { axes: { pp: 2, fsdp: 2 }, microbatches: 3, zero: 1 },
  { axes: { pp: 2, fsdp: 2 }, microbatches: 3, zero: 2 },
  { axes: { pp: 2, fsdp: 2, tp: 2 }, microbatches: 2, zero: 3 },
  { axes: { tp: 2 }, microbatches: 1 },
  { axes: { tp: 2 }, microbatches: 2, sequenceParallel: "on" },
  { axes: { pp: 2, tp: 2 }, microbatches: 3, schedule: "zb-h1", sequenceParallel: "on" },
  { axes: { cp: 2 }, microbatches: 2 },
  { axes: { cp: 3 }, microbatches: 1 },
  { axes: { dp: 2, cp: 2 }, microbatches: 2 },
  { axes: { cp: 2, tp: 2 }, microbatches: 1, sequenceParallel: "on" },
  { axes: { pp: 2, cp: 2 }, microbatches: 3, schedule: "zb-v" },
  { axes: { fsdp: 2, cp: 2 }, microbatches: 1, zero: 3 },
  { axes: { tp: 3 }, microbatches: 2 },
  { axes: { pp: 2 }, microbatches: 4, schedule: "gpipe" },
  { axes: { pp: 3 }, microbatches: 3 },
  { axes: { pp: 2, tp: 2 }, microbatches: 2 },
  { axes: { dp: 2, tp: 2 }, microbatches: 4 },
  { axes: { pp: 2, dp: 2 }, microbatches: 3 },
  { axes: { pp: 2, dp: 2, tp: 2 }, microbatches: 5 },
];

function layoutText({ axes, microbatches, zero, regather, sequenceParallel }: Layout): string {
  const more = `${zero ? ` (ZeRO-${zero}${regather ? ", gathered once" : ""})` : ""}${sequenceParallel === "on" ? " (sequence parallel)" : ""}`;
  return `${JSON.stringify(axes)}${more} in ${microbatches} microbatches`;
}

const batchSize = 5;
const length = 7;
const steps = 3;

async function train(
  config: ModelConfig,
  { axes, microbatches, schedule = "1f1b", zero = 3, regather = "segment", sequenceParallel = "off" }: Layout,
): Promise<Trained> {
  await using mesh = await Mesh.open({ device: testDevice, axes, threads: 1, timeoutMs: 20_000 });
  const model = createModel(config);
  using step = await trainStep(mesh, model, {
    loss: ({ inputs, targets }) => model.loss(inputs, targets),
    // A large eps: keys' biases have no gradient but rounding, which AdamW would magnify to full steps.
    optimizer: adamw({ learningRate: 1e-2, weightDecay: 0.1, eps: 1e-3 }),
    batchSize,
    batch: {
      inputs: { dtype: "i32", shape: [length], sequence: 0 },
      targets: { dtype: "i32", shape: [length], sequence: 0 },
    },
    microbatches,
    schedule,
    zero,
    regather,
    sequenceParallel,
    clipNorm: 1,
    seed: 3,
  });
  const results: StepResult[] = [];
  for (let k = 0; k < steps; k++) {
    const draw = new Draw(`batch ${k}`);
    const tokens = draw.ints([batchSize, length], 0, config.vocabSize).data;
    // The last sample counts little, the one before not at all.
    const counts = (i: number): boolean => i < 3 * length || i >= 4 * length + 5;
    const targets = draw.ints([batchSize, length], 0, config.vocabSize).data.map((t, i) => (counts(i) ? t : -100));
    results.push(await step.run({ inputs: tokens, targets }));
  }
  return { results, weights: weightsOf(mesh, model) };
}

describe("training", function () {
  this.timeout(120_000);
  for (const [name, config] of Object.entries(configs)) {
    let whole: Trained;
    before(async () => {
      whole = await train(config, layouts[0]!);
    });
    const more = config.architecture === "mixtral" ? expertLayouts : [];
    for (const layout of [...layouts.slice(1), ...more]) {
      it(`${name} on ${layoutText(layout)} is as on one device`, async () => {
        assertTrained(await train(config, layout), whole);
      });
    }
    it(`${name} trains to the same bits again, on every layout and schedule`, async () => {
      for (const layout of [layouts[0]!, layouts.at(-1)!]) {
        const first = await train(config, layout);
        const again = await train(config, { ...layout, schedule: "gpipe" });
        const numbers = ({ results }: Trained): number[] => results.flatMap((r) => [r.loss, r.gradNorm]);
        assert.deepEqual(numbers(again), numbers(first));
        assert.deepEqual(again.weights, first.weights);
      }
    });
  }
});
