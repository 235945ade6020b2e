// Training stopped under one layout, gone on with under another: tensors to the bit, the next losses within tolerance.
import assert from "node:assert/strict";
import { loadCheckpoint } from "../../lib/checkpoint/load.ts";
import { saveCheckpoint } from "../../lib/checkpoint/save.ts";
import { type ConfigJson, parseModelConfig } from "../../lib/nn/config.ts";
import { createModel } from "../../lib/nn/load.ts";
import { adamw } from "../../lib/optim/optimizer.ts";
import { cosine } from "../../lib/optim/schedules.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { type TrainStep, trainStep } from "../../lib/train/step.ts";
import { scratchFolder } from "../errors/small.ts";

const long = process.env.MESHWORK_LONG === "1";

type Axes = Readonly<Record<string, number>>;

/** A model and twelve layouts: each axis alone, mixed, and uneven. */
interface Family {
  readonly config: ConfigJson;
  readonly layouts: readonly Axes[];
}

const sizes = { vocab_size: 50, hidden_size: 12, num_hidden_layers: 2, num_attention_heads: 3 };

const families: Readonly<Record<string, Family>> = {
  // 3 does not divide the heads' widths, the batch or the vocabulary.
  "GPT-2 with dropout": {
    config: {
      model_type: "gpt2",
      vocab_size: 50,
      n_positions: 8,
      n_embd: 12,
      n_layer: 2,
      n_head: 3,
      resid_pdrop: 0.1,
      embd_pdrop: 0.1,
      attn_pdrop: 0.1,
    },
    layouts: [
      {},
      { dp: 2 },
      { dp: 3 },
      { tp: 2 },
      { tp: 3 },
      { pp: 2 },
      { pp: 2, tp: 2 },
      { fsdp: 2 },
      { fsdp: 3, tp: 2 },
      { dp: 2, fsdp: 2 },
      { pp: 2, fsdp: 2 },
      { cp: 2, dp: 2 },
    ],
  },
  // Four experts over three ranks, a batch of four over three, fifty tokens over four are uneven.
  "Mixtral with experts over ep": {
    config: {
      ...sizes,
      model_type: "mixtral",
      intermediate_size: 10,
      num_key_value_heads: 3,
      num_local_experts: 4,
      num_experts_per_tok: 2,
      max_position_embeddings: 8,
      attention_dropout: 0.1,
    },
    layouts: [
      {},
      { ep: 2 },
      { ep: 3 },
      { ep: 2, tp: 2 },
      { dp: 2, ep: 2 },
      { fsdp: 2, ep: 2 },
      { pp: 2, ep: 2 },
      { cp: 2, ep: 2 },
      { dp: 3 },
      { tp: 4 },
      { pp: 2, fsdp: 2 },
      { cp: 2, dp: 2 },
    ],
  },
};

const [batchSize, tokens, before, after] = [4, 8, 3, 10];

interface Run {
  readonly mesh: Mesh<string>;
  readonly step: TrainStep<"inputs" | "targets">;
}

async function open(config: ConfigJson, axes: Axes): Promise<Run> {
  const mesh = await Mesh.open<string>({ device: "cpu", axes, threads: 1 });
  const model = createModel(parseModelConfig(config));
  const step = await trainStep(mesh, model, {
    loss: ({ inputs, targets }) => model.loss(inputs, targets),
    optimizer: adamw({ learningRate: 1e-2 }),
    batchSize,
    batch: model.batchFields(tokens),
    microbatches: axes.pp === undefined ? 1 : 2,
    clipNorm: 1,
    seed: 5,
  });
  return { mesh, step };
}

async function train({ step }: Run, count: number): Promise<number[]> {
  const rate = cosine({ learningRate: 1e-2, warmupSteps: 2, totalSteps: 20, finalFraction: 0.1 });
  const losses: number[] = [];
  for (let n = 0; n < count; n++) {
    const at = step.step;
    const ids = Array.from({ length: batchSize * tokens + 1 }, (_, i) => (at * 31 + i * 7 + ((i * at) % 5)) % 50);
    const batch = { inputs: Int32Array.from(ids.slice(0, -1)), targets: Int32Array.from(ids.slice(1)) };
    losses.push((await step.run(batch, { learningRate: rate(at + 1) })).loss);
  }
  return losses;
}

/** All tensors by name, whole. */
function valuesOf({ mesh, step }: Run): Map<string, number[]> {
  return new Map(step.state().tensors.map(({ name, id }) => [name, [...mesh.store.read(id)]]));
}

for (const [name, { config, layouts }] of Object.entries(families)) {
  describe(`a training gone on with under another layout: ${name}`, function () {
    this.timeout(long ? 1_800_000 : 180_000);
    const at = scratchFolder();
    // All ordered pairs in the long tests; here six, so that each layout is left or entered.
    const count = layouts.length;
    const pairs = long
      ? layouts.flatMap((_, i) => layouts.map((__, j) => [i, j] as const)).filter(([i, j]) => i !== j)
      : layouts.flatMap((_, i) => (i % 2 === 0 ? [[i, (i * 5 + 7) % count] as const] : []));

    it(`has the same tensors and losses, for ${pairs.length} pairs of ${count} layouts`, async () => {
      const sources = [...new Set(pairs.map(([i]) => i))];
      for (const i of sources) {
        const run = await open(config, layouts[i]!);
        await using _ = run.mesh;
        await train(run, before);
        const folder = at(`from-${i}`);
        const saved = await saveCheckpoint(folder, run.step.state());
        const values = valuesOf(run);
        const losses = await train(run, after);
        for (const [, j] of pairs.filter(([from]) => from === i)) {
          const other = await open(config, layouts[j]!);
          await using __ = other.mesh;
          const where = `${JSON.stringify(layouts[i])} to ${JSON.stringify(layouts[j])}`;
          const loaded = await loadCheckpoint(folder, other.step.state());
          assert.equal(loaded.bytesRead, saved.bytes, where);
          assert.deepEqual(valuesOf(other), values, where);
          other.step.step = loaded.step;
          const next = await train(other, after);
          next.forEach((loss, n) => {
            // float32 sums in other orders, ten optimizer steps on: PyTorch's tolerance for losses of whole models.
            assert.ok(Math.abs(loss - losses[n]!) <= 1e-3 * losses[n]!, `${where}, step ${n}: ${loss}, ${losses[n]}`);
          });
        }
      }
    });

    it("has the same bits under the same layout", async () => {
      for (const axes of long ? layouts : [layouts[3]!, layouts[6]!]) {
        const run = await open(config, axes);
        await using _ = run.mesh;
        await train(run, long ? 100 : before);
        const folder = at(`same-${JSON.stringify(axes).replace(/\W/g, "")}`);
        await saveCheckpoint(folder, run.step.state());
        const losses = await train(run, long ? 100 : after);
        const other = await open(config, axes);
        await using __ = other.mesh;
        other.step.step = (await loadCheckpoint(folder, other.step.state())).step;
        assert.deepEqual(await train(other, long ? 100 : after), losses, JSON.stringify(axes));
        assert.deepEqual(valuesOf(other), valuesOf(run));
      }
    });
  });
}
