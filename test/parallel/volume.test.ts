// What a step sends, counted by null devices on meshes of 64, equals closed forms: tensor parallelism with and without
// sequence parallelism, ring attention (docs/LAYOUTS.md says where they come from).
import assert from "node:assert/strict";
import { parseModelConfig } from "../../lib/nn/config.ts";
import { createModel } from "../../lib/nn/load.ts";
import { sgd } from "../../lib/optim/optimizer.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { type TrainStepOptions, trainStep } from "../../lib/train/step.ts";

const [layers, width, heads, vocab] = [3, 64, 16, 128];
const [samples, microbatches] = [8, 2];

const configs = {
  gpt2: { model_type: "gpt2", vocab_size: vocab, n_positions: 128, n_embd: width, n_layer: layers, n_head: heads },
  llama: {
    model_type: "llama",
    vocab_size: vocab,
    max_position_embeddings: 128,
    hidden_size: width,
    intermediate_size: 96,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: 4,
    tie_word_embeddings: false,
  },
};

interface Sent {
  readonly calls: number;
  readonly bytes: number;
}

/** What device 0 counts in one step, by op and size of group: calls, and bytes of the larger operand. */
async function count(
  model: keyof typeof configs,
  axes: Record<string, number>,
  length: number,
  changes: Partial<TrainStepOptions<"inputs" | "targets">> = {},
): Promise<(op: string, group: number) => Sent> {
  await using mesh = await Mesh.open({ device: "null", axes });
  const made = createModel(parseModelConfig({ ...configs[model], attn_pdrop: 0, resid_pdrop: 0, embd_pdrop: 0 }));
  using step = await trainStep(mesh, made, {
    loss: ({ inputs, targets }) => made.loss(inputs, targets),
    optimizer: sgd({ learningRate: 0.1 }),
    batchSize: samples,
    batch: made.batchFields(length),
    microbatches,
    sequenceParallel: "off",
    ...changes,
  });
  const traffic = () => mesh.engine.stats().devices[0]!.traffic;
  const before = traffic();
  const ids = new Int32Array(samples * length);
  await step.run({ inputs: ids, targets: ids });
  const find = (list: ReturnType<typeof traffic>, op: string, group: number): Sent =>
    list.find((t) => t.op === op && t.groupSize === group) ?? { calls: 0, bytes: 0 };
  const after = traffic();
  return (op, group) => {
    const [a, b] = [find(after, op, group), find(before, op, group)];
    return { calls: a.calls - b.calls, bytes: a.bytes - b.bytes };
  };
}

describe("what a step sends", function () {
  this.timeout(120_000);
  const [dp, tp, length] = [4, 16, 48];
  /** Elements of a microbatch's residual stream on one of the dp ranks, and tokens. */
  const stream = (samples / microbatches / dp) * length * width;
  const tokens = stream / width;
  // Sums of products have the compute type; the embedding is of the parameters' type.
  for (const [model, precision, bytes] of [
    ["gpt2", "f32", 4],
    ["llama", "f32", 4],
    ["gpt2", "bf16", 2],
    ["llama", "bf16", 2],
  ] as const) {
    const product = stream * bytes;
    const embedded = stream * 4;
    // Where several products add to one gradient (q, k and v; gate and up), their sum is one, in float32.
    const sums = layers * (2 * product + 2 * (model === "llama" ? embedded : product));
    it(`${model} in ${precision}, tensor parallel over 16 of 64 devices: 4 L + 2 all-reduces of the stream`, async () => {
      const sent = await count(model, { dp, tp }, length, { precision });
      const all = sent("all_reduce", tp);
      // Each layer two forward and two backward; the split vocabulary one each way, and three numbers a token in the
      // loss.
      const micro = sums + product + embedded + 3 * tokens * 4;
      assert.equal(all.bytes, microbatches * micro + normBytes(model));
      for (const op of ["all_gather", "reduce_scatter", "all_to_all"]) assert.equal(sent(op, tp).calls, 0, op);
    });

    it(`${model} in ${precision}, with sequence parallelism: 4 L + 2 reduce-scatters, 6 L + 3 all-gathers`, async () => {
      const sent = await count(model, { dp, tp }, length, { sequenceParallel: "on", precision });
      assert.deepEqual(sent("reduce_scatter", tp), {
        calls: microbatches * (4 * layers + 2),
        bytes: microbatches * (sums + product + embedded),
      });
      assert.deepEqual(sent("all_gather", tp), {
        calls: microbatches * (6 * layers + 3),
        bytes: microbatches * ((6 * layers + 2) * product + embedded),
      });
      // Learned positions are looked up where the stream is scattered: once a step their gradient is summed over tp.
      const positions = model === "gpt2" ? configs.gpt2.n_positions * width * 4 : 0;
      assert.equal(sent("all_reduce", tp).bytes, microbatches * 3 * tokens * 4 + normBytes(model) + positions);
    });
  }

  it("ring attention over 16 of 64 devices: keys, values and their gradients n - 1 times each", async () => {
    const cp = 16;
    for (const [model, groups] of [
      ["gpt2", heads],
      ["llama", 4],
    ] as const) {
      for (const [precision, bytes] of [
        ["f32", 4 + 4 + 4],
        ["bf16", 2 + 2 + 4],
      ] as const) {
        const sent = await count(model, { dp, cp }, length, { precision });
        const own = (samples / microbatches / dp) * (length / cp);
        const pair = own * groups * 2 * (width / heads);
        assert.deepEqual(sent("all_to_all", cp), {
          calls: microbatches * layers * 3 * (cp - 1),
          bytes: microbatches * layers * (cp - 1) * pair * bytes,
        });
        // The loss's sum and count; nothing else is exchanged within a ring.
        for (const op of ["all_gather", "reduce_scatter"]) assert.equal(sent(op, cp).calls, 0, op);
      }
    }
  });
});

/** The norms of split gradients are summed over tp once a step: one number for each split parameter. */
function normBytes(model: keyof typeof configs): number {
  const made = createModel(parseModelConfig(configs[model]));
  return 4 * made.parameters().filter((p) => p.spec?.flat().includes("tp")).length;
}
