// Steps whose sequences are split: any loss, with dropout, shifts, masks and positions of its own, is that of one
// device.
import assert from "node:assert/strict";
import { zigzag } from "../../lib/compile/sequence.ts";
import { parseModelConfig } from "../../lib/nn/config.ts";
import { Dropout } from "../../lib/nn/layers.ts";
import { createModel } from "../../lib/nn/load.ts";
import { Module, nameModules } from "../../lib/nn/module.ts";
import { sgd } from "../../lib/optim/optimizer.ts";
import { attention, concat, crossEntropy, embedding, iota } from "../../lib/tensor/functions.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { Parameter } from "../../lib/tensor/parameter.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";
import { forwardStep, lossStep } from "../../lib/train/forward.ts";
import { Placement } from "../../lib/train/placement.ts";
import { trainStep, type TrainStepOptions } from "../../lib/train/step.ts";
import type { LossTerm } from "../../lib/train/trace.ts";

const [width, vocab] = [8, 11];

/** A model that does with its sequences all that models do, and more. */
class Odd extends Module {
  readonly table: Parameter;
  readonly places: Parameter;
  readonly mixer: Parameter;
  readonly dropout = new Dropout(0.3);
  readonly length: number;

  constructor(length: number) {
    super();
    this.length = length;
    const initial = { kind: "normal", std: 0.5 } as const;
    this.table = new Parameter({ shape: [vocab, width], initial });
    this.places = new Parameter({ shape: [length, width], initial });
    this.mixer = new Parameter({ shape: [length, length], initial });
    nameModules(this);
  }

  override forward(ids: Tensor, targets: Tensor, segments: Tensor): Record<string, LossTerm> {
    const [b, t] = ids.shape as readonly [number, number];
    const { context } = ids;
    // Learned positions that are added as they lie, and looked up.
    const looked = embedding(this.places, iota(context, [t]));
    let x = embedding(this.table, ids).add(this.places).add(looked);
    x = this.dropout.call(x);
    // Causal attention within segments, by the fused op.
    const heads = x.reshape([b, t, 1, 2, width / 2]);
    const keys = x.slice(2, 0, width / 2).reshape([b, t, 1, width / 2]);
    const marks = { queries: segments, keys: segments };
    x = x.add(attention(heads, keys, keys, { segments: marks }).reshape([b, t, width]));
    // The same of elementwise ops, with dropout of the weights.
    const mask = iota(context, [t, t], 1).le(iota(context, [t, t], 0));
    const scores = x.einsum("b t w, b s w -> b t s", x).mul(0.3);
    const weights = this.dropout.call(mask.where(scores, -1e30).softmax());
    x = x.add(weights.einsum("b t s, b s w -> b t w", x));
    // A matrix over positions, a shift by one, a reversal of halves, a ramp along the sequence.
    x = x.add(x.einsum("b s w, t s -> b t w", this.mixer.read(x.context)).mul(0.1));
    x = x.add(concat([x.slice(1, 1, t), x.slice(1, 0, 1)], 1).mul(0.5));
    const half = Math.floor(t / 2);
    x = x.add(concat([x.slice(1, half, t), x.slice(1, 0, half)], 1).mul(0.2));
    x = x.mul(iota(context, [b, t, width], 1).cast("f32").mul(0.05).add(1));
    const logits = x.einsum("b t w, v w -> b t v", this.table.read(context));
    const counted = targets.ge(0).cast("f32");
    // A mean over each sequence as a second term; its count differs.
    const spread = x.mul(x).mean([1, 2]).sum();
    return {
      loss: { sum: crossEntropy(logits, targets, -100).sum(), count: counted.sum() },
      spread: { sum: spread, count: iota(context, [b]).cast("f32").mul(0).add(1).sum(), weight: 0.1 },
    };
  }
}

function batchOf(samples: number, length: number) {
  const ids = Int32Array.from({ length: samples * length }, (_, i) => (i * 7 + 3) % vocab);
  const targets = Int32Array.from(ids, (_, i) => (i % 5 === 2 ? -100 : (i * 5 + 1) % vocab));
  const segments = Int32Array.from(ids, (_, i) => (i % length > length * 0.6 ? 1 : 0));
  return { ids, targets, segments };
}

/** Losses and gradient norms of a few steps. */
async function run(axes: Record<string, number>, length: number, changes: object = {}): Promise<number[]> {
  await using mesh = await Mesh.open({ device: "cpu", axes, threads: 1 });
  const model = new Odd(length);
  const field = { dtype: "i32", shape: [length], sequence: 0 } as const;
  const options: TrainStepOptions<"ids" | "targets" | "segments"> = {
    loss: ({ ids, targets, segments }) => model.call(ids, targets, segments),
    optimizer: sgd({ learningRate: 0.05, momentum: 0.9 }),
    batchSize: 3,
    batch: { ids: field, targets: field, segments: field },
    seed: 5,
    clipNorm: 1,
    ...changes,
  };
  using step = await trainStep(mesh, model, options);
  const out: number[] = [];
  for (let k = 0; k < 3; k++) {
    const { loss, terms, gradNorm } = await step.run(batchOf(3, length));
    out.push(loss, terms.spread!, gradNorm);
  }
  return out;
}

function close(found: readonly number[], expected: readonly number[], tolerance: number, what: string): void {
  found.forEach((x, i) => {
    const off = Math.abs(x - expected[i]!) / Math.max(1, Math.abs(expected[i]!));
    assert.ok(off <= tolerance, `${what}: number ${i} is ${x}, not ${expected[i]}`);
  });
}

describe("split sequences", function () {
  this.timeout(60_000);

  it("zig-zag: every token once, and causal work in balance for any length", () => {
    for (const ranks of [1, 2, 3, 4, 7]) {
      for (let length = 0; length < 60; length++) {
        const order = zigzag(length, ranks);
        assert.deepEqual(
          [...order].sort((a, b) => a - b),
          Array.from({ length }, (_, i) => i),
        );
        const base = Math.floor(length / ranks);
        let at = 0;
        const work = Array.from({ length: ranks }, (_, r) => {
          const count = base + (r < length % ranks ? 1 : 0);
          at += count;
          return order.subarray(at - count, at).reduce((sum, p) => sum + p + 1, 0);
        });
        // Ranks differ by a token at most, which sees the whole sequence at most.
        assert.ok(Math.max(...work) - Math.min(...work) <= length + ranks, `${length} over ${ranks}: ${work}`);
      }
    }
    assert.deepEqual([...zigzag(8, 2)], [0, 1, 6, 7, 2, 3, 4, 5]);
    assert.deepEqual([...zigzag(7, 3)], [0, 1, 6, 2, 5, 3, 4]);
  });

  for (const [axes, length, changes] of [
    [{ cp: 2 }, 12, {}],
    [{ cp: 3 }, 7, {}],
    [{ dp: 2, cp: 2 }, 9, { microbatches: 2 }],
    [{ cp: 4 }, 5, {}],
    [{ fsdp: 2, cp: 2 }, 6, {}],
  ] as const) {
    it(`of an odd model, ${length} tokens under ${JSON.stringify(axes)}`, async () => {
      const expected = await run({}, length);
      close(await run(axes, length, changes), expected, 2e-5, "a step");
    });
  }

  it("GPT-2 with all its dropouts has the same loss under every layout", async () => {
    const config = { model_type: "gpt2", vocab_size: 16, n_positions: 16, n_embd: 8, n_layer: 2, n_head: 2 };
    const losses = await Promise.all(
      [{}, { cp: 3 }, { cp: 2, tp: 2 }, { cp: 2, pp: 2 }, { dp: 2, cp: 2 }].map(async (axes) => {
        await using mesh = await Mesh.open({ device: "cpu", axes, threads: 1 });
        const model = createModel(parseModelConfig({ ...config, attn_pdrop: 0.2, resid_pdrop: 0.2, embd_pdrop: 0.2 }));
        using step = await trainStep(mesh, model, {
          loss: ({ inputs, targets }) => model.loss(inputs, targets),
          optimizer: sgd({ learningRate: 0.1 }),
          batchSize: 4,
          batch: model.batchFields(13),
          microbatches: 2,
        });
        const inputs = Int32Array.from({ length: 52 }, (_, i) => (i * 5) % 16);
        const out: number[] = [];
        for (let k = 0; k < 3; k++) out.push((await step.run({ inputs, targets: inputs.toReversed() })).loss);
        return out;
      }),
    );
    losses.forEach((own, i) => void close(own, losses[0]!, 2e-6, `layout ${i}`));
  });

  it("results of forward steps are in their true order, empty parts included", async () => {
    for (const [cp, length] of [
      [2, 5],
      [3, 2],
    ] as const) {
      await using mesh = await Mesh.open({ device: "cpu", axes: { cp }, threads: 1 });
      const placement = await Placement.of(mesh, { parameters: () => [] });
      const field = { dtype: "i32", shape: [length], sequence: 0 } as const;
      const outputs = ({ ids }: Readonly<Record<string, Tensor>>) => ({
        same: ids!.cast("f32").mul(2),
        index: iota(ids!.context, ids!.shape, 1).add(ids!.mul(0)),
        last: ids!.slice(1, length - 1, length).add(0),
      });
      using step = await forwardStep(placement, outputs, { ids: field }, { batchSize: 2 });
      const ids = Int32Array.from({ length: 2 * length }, (_, i) => i * i);
      const results = await step.run({ ids });
      assert.deepEqual(
        [...results.get("same")!],
        [...ids].map((x) => 2 * x),
      );
      assert.deepEqual(
        [...results.get("index")!],
        [...ids].map((_, i) => i % length),
      );
      assert.deepEqual([...results.get("last")!], [ids[length - 1], ids[2 * length - 1]]);
    }
  });

  it("the held-out loss is that of one device", async () => {
    const losses = await Promise.all(
      [{}, { cp: 2 }, { cp: 3, tp: 2 }].map(async (axes) => {
        await using mesh = await Mesh.open({ device: "cpu", axes, threads: 1 });
        const json = { model_type: "llama", vocab_size: 16, hidden_size: 8, intermediate_size: 12 };
        const heads = { num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2 };
        const model = createModel(parseModelConfig({ ...json, ...heads, max_position_embeddings: 16 }));
        const placement = await Placement.of(mesh, model, 3);
        const loss = ({ inputs, targets }: Readonly<Record<string, Tensor>>) => model.loss(inputs!, targets!);
        using step = await lossStep(placement, loss, model.batchFields(11), { batchSize: 2, microbatches: 2 });
        const inputs = Int32Array.from({ length: 22 }, (_, i) => (i * 5) % 16);
        return (await step.run({ inputs, targets: inputs.toReversed() })).get("loss loss")![0]!;
      }),
    );
    close(
      losses,
      losses.map(() => losses[0]!),
      1e-6,
      "the loss",
    );
  });
});
