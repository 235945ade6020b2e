// A small GPT trained over a mesh of four devices: two pipeline stages, each split in two by tensor parallelism.
// Run with: npx tsx examples/quickstart.ts
import { Mesh, nn, optim, trainStep } from "../lib/index.ts";

await using mesh = await Mesh.open({ axes: { pp: 2, tp: 2 } });
const sizes = { vocab_size: 96, n_positions: 32, n_embd: 64, n_layer: 2, n_head: 4 };
const model = nn.create(nn.parseConfig({ model_type: "gpt2", ...sizes }));
const tokens = { dtype: "i32", shape: [32] } as const;
const step = await trainStep(mesh, model, {
  loss: ({ inputs, targets }) => model.loss(inputs, targets),
  optimizer: optim.adamw({ learningRate: 3e-3 }),
  batch: { inputs: tokens, targets: tokens },
  batchSize: 16,
});
for (let n = 0; n <= 60; n++) {
  const counting = (from: number) => Int32Array.from({ length: 16 * 32 }, (_, i) => (7 * i + n + from) % 96);
  const { loss } = await step.run({ inputs: counting(0), targets: counting(7) });
  if (n % 20 === 0) console.log(`step ${n}: loss ${loss.toFixed(3)}`);
}
console.log(step.plan.toString());
