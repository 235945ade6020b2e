// How the work of compiling grows: with a model's layers in proportion, with devices that do the same hardly at all;
// large models on 64 devices within seconds. Time is the processor's, so that a busy machine changes little; bounds are
// generous.
import assert from "node:assert/strict";
import { parseModelConfig } from "../../lib/nn/config.ts";
import { createModel } from "../../lib/nn/load.ts";
import { adamw } from "../../lib/optim/optimizer.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { planTrainStep, type TrainStepOptions } from "../../lib/train/step.ts";

const long = process.env.MESHWORK_LONG === "1";

interface Planned {
  /** Of all threads of the process. */
  readonly cpuSeconds: number;
  /** Of the device that has most. */
  readonly instructions: number;
}

async function plan(
  layers: number,
  axes: Readonly<Record<string, number>>,
  options: Partial<TrainStepOptions<"inputs" | "targets">> = {},
): Promise<Planned> {
  await using mesh = await Mesh.open({ device: "null", axes });
  const common = { hidden_size: 64, num_attention_heads: 16, num_hidden_layers: layers, vocab_size: 128 };
  const dense = { model_type: "gpt2", attn_pdrop: 0, embd_pdrop: 0, resid_pdrop: 0, n_positions: 128 };
  const mixtral = { model_type: "mixtral", num_local_experts: 8, num_experts_per_tok: 2, num_key_value_heads: 4 };
  const sizes = { n_embd: 64, n_head: 16, n_layer: layers, intermediate_size: 96, max_position_embeddings: 128 };
  const kind = (axes.ep ?? 1) > 1 ? { ...mixtral, tie_word_embeddings: false } : dense;
  const model = createModel(parseModelConfig({ ...common, ...sizes, ...kind }));
  const used = process.cpuUsage();
  const { plan } = await planTrainStep(mesh, model, {
    loss: ({ inputs, targets }) => model.loss(inputs, targets),
    optimizer: adamw({ learningRate: 1e-3 }),
    batchSize: 64,
    batch: model.batchFields(128),
    clipNorm: 1,
    ...options,
  });
  const { user, system } = process.cpuUsage(used);
  return { cpuSeconds: (user + system) / 1e6, instructions: Math.max(...plan.devices.map((d) => d.instructions)) };
}

describe("compiling", function () {
  this.timeout(600_000);
  before(() => plan(4, { dp: 2, tp: 2 })); // loads and warms what compiles

  it("takes instructions and time in proportion to layers", async () => {
    const [few, twice, many] = [await plan(8, { tp: 2 }), await plan(16, { tp: 2 }), await plan(64, { tp: 2 })];
    const each = (twice.instructions - few.instructions) / 8;
    assert.equal(many.instructions - twice.instructions, 48 * each);
    const grown = many.cpuSeconds / twice.cpuSeconds;
    assert.ok(grown < 8, `four times the layers took ${grown.toFixed(1)} times as long`);
  });

  it("takes hardly longer for more devices that do the same", async () => {
    const [few, many] = [await plan(16, { dp: 8 }), await plan(16, { dp: 64 })];
    assert.equal(many.instructions, few.instructions);
    const grown = many.cpuSeconds / few.cpuSeconds;
    assert.ok(grown < 4, `eight times the devices took ${grown.toFixed(1)} times as long`);
  });

  if (!long) return;
  const kinds: readonly [Readonly<Record<string, number>>, Partial<TrainStepOptions<"inputs" | "targets">>?][] = [
    [{ dp: 64 }, { recompute: "full" }],
    [{ fsdp: 64 }],
    [{ fsdp: 64 }, { zero: 1 }],
    [{ dp: 4, tp: 16 }, { sequenceParallel: "auto" }],
    [{ dp: 4, cp: 16 }],
    [{ dp: 8, ep: 8 }],
    [{ pp: 16, dp: 4 }, { schedule: "zb-h1" }],
    [{ pp: 8, dp: 8 }, { schedule: "zb-v" }],
    [
      { pp: 8, dp: 8 },
      { schedule: "interleaved-1f1b", virtualStages: 3 },
    ],
    [{ pp: 2, dp: 2, fsdp: 2, cp: 2, ep: 2, tp: 2 }],
  ];
  for (const [axes, options] of kinds) {
    it(`takes less than 20 s for 48 layers on ${JSON.stringify({ ...axes, ...options })}`, async () => {
      const { cpuSeconds } = await plan(48, axes, options);
      assert.ok(cpuSeconds < 20, `it took ${cpuSeconds.toFixed(1)} s`);
    });
  }
});
