// A small GPT trained over a mesh of four devices: two pipeline stages, each split in two by tensor parallelism.
// Run with: npx tsx examples/quickstart.ts
import { Mesh, nn, optim, trainStep } from "../lib/index.ts";

await using mesh = await Mesh.open({ axes: { pp: 2, tp: 2 } });
const model = nn.create(
  nn.parseConfig({ model_type: "gpt2", vocab_size: 96, n_positions: 32, n_embd: 64, n_layer: 2, n_head: 4 }),
);
const tokens = { dtype: "i32", shape: [32] } as const;
const step = await trainStep(mesh, model, {
  loss: ({ inputs, targets }) => model.loss(inputs, targets),
  optimizer: optim.adamw({ learningRate: 3e-3 }),
  batchSize: 16,
  batch: { inputs: tokens, targets: tokens },
  clipNorm: 1,
});
console.log(step.plan.toString());
for (let n = 1; n <= 60; n++) {
  const text = Int32Array.from({ length: 16 * 33 }, (_, i) => (7 * (i % 33) + 11 * Math.floor(i / 33) + n) % 96);
  const rows = (from: number) => text.filter((_, i) => i % 33 >= from && i % 33 < from + 32);
  const { loss, gradNorm } = await step.run({ inputs: rows(0), targets: rows(1) });
  if (n % 20 === 0) console.log(`step ${n}: loss ${loss.toFixed(3)}, gradient norm ${gradNorm.toFixed(3)}`);
}
