// What experts over 16 of 64 null devices send in a step equals the closed form of docs/LAYOUTS.md.
import assert from "node:assert/strict";
import { parseModelConfig } from "../../lib/nn/config.ts";
import { createModel } from "../../lib/nn/load.ts";
import { sgd } from "../../lib/optim/optimizer.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { trainStep } from "../../lib/train/step.ts";

const [layers, width, inner, experts, choices, length] = [2, 64, 96, 32, 2, 24];
const [dp, ep, microbatches] = [4, 16, 2];
/** One sample for each rank of the batch in a microbatch. */
const samples = dp * ep * microbatches;

const config = {
  model_type: "mixtral",
  vocab_size: 128,
  max_position_embeddings: 128,
  hidden_size: width,
  intermediate_size: inner,
  num_hidden_layers: layers,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  num_local_experts: experts,
  num_experts_per_tok: choices,
};

describe("what experts send", function () {
  this.timeout(120_000);
  for (const [precision, size] of [
    ["f32", 4],
    ["bf16", 2],
  ] as const) {
    it(`four exchanges of a rank's choices a layer and microbatch, in ${precision}; the worst case is reserved`, async () => {
      await using mesh = await Mesh.open({ device: "null", axes: { dp, ep } });
      const model = createModel(parseModelConfig(config));
      using step = await trainStep(mesh, model, {
        loss: ({ inputs, targets }) => model.loss(inputs, targets),
        optimizer: sgd({ learningRate: 0.1 }),
        batchSize: samples,
        batch: model.batchFields(length),
        microbatches,
        precision,
      });
      const traffic = () => mesh.engine.stats().devices[0]!.traffic;
      const before = traffic();
      const ids = new Int32Array(samples * length);
      await step.run({ inputs: ids, targets: ids });
      const sent = (op: string, group: number) => {
        const of = (list: typeof before) =>
          list.find((t) => t.op === op && t.groupSize === group) ?? { calls: 0, bytes: 0 };
        const [a, b] = [of(traffic()), of(before)];
        return { calls: a.calls - b.calls, bytes: a.bytes - b.bytes };
      };
      const exchanges = microbatches * layers * 4;
      const bytes = exchanges * length * choices * width * size;
      assert.deepEqual(sent("expert_exchange", ep), { calls: exchanges, bytes });
      const gathers = microbatches * layers;
      assert.deepEqual(sent("all_gather", ep), { calls: gathers, bytes: gathers * ep * experts * 4 });
      for (const op of ["all_to_all", "reduce_scatter"]) assert.equal(sent(op, ep).calls, 0, op);
      // Gradients of experts meet over dp alone.
      assert.equal(sent("all_reduce", dp).bytes, 3 * layers * (experts / ep) * inner * width * 4);
      const reserve = step.plan.devices[0]!.experts!;
      assert.deepEqual([reserve.rows, reserve.evenRows], [ep * length * choices, length * choices]);
      assert.match(String(step.plan), /experts: .* for 768 rows a layer, the most that may come; 48 rows/);
    });
  }
});
