// Cases of norms, embeddings, losses, attention and optimizers.
import { type DType, statisticsDType } from "../../lib/core/dtype.ts";
import { type Shape, sizeOf } from "../../lib/core/shape.ts";
import type { OpParams } from "../../lib/ops/index.ts";
import { type Case, makeCase } from "./case.ts";
import { type Dense, dense, roundTo } from "./dense.ts";
import { Draw } from "./draw.ts";
import { evaluateOp } from "./reference.ts";

/** Results of an op in the dtypes a caller would hand on, to draw consistent operands of derivative ops. */
function results(
  op: string,
  inputs: readonly Dense[],
  types: readonly { dtype: DType; shape: Shape }[],
  params = {},
): Dense[] {
  return evaluateOp(op, inputs, types, params).map((x) => ({ ...x, data: x.data.map((v) => roundTo(x.dtype, v)) }));
}

function normCases(dtype: DType, shape: Shape, weights: DType = dtype): Case[] {
  const draw = new Draw(`norm ${dtype} ${shape.join()}`);
  const n = shape.at(-1)!;
  const stats = { dtype: statisticsDType(dtype), shape: shape.slice(0, -1) };
  const [x, dy] = [draw.uniform(dtype, shape), draw.uniform(dtype, shape)];
  const [w, b] = [draw.uniform(weights, [n], 0.5, 1.5), draw.uniform(weights, [n])];
  const eps = 1e-5;
  const layer = results("layer_norm", [x, w, b], [x, stats, stats], { eps });
  const rms = results("rms_norm", [x, w], [x, stats], { eps });
  return [
    makeCase("layer_norm", { eps }, [x, w, b], { cotangents: [0] }),
    makeCase("layer_norm_grad", {}, [dy, x, w, layer[1]!, layer[2]!], { differentiate: [] }),
    makeCase("rms_norm", { eps }, [x, w], { cotangents: [0] }),
    makeCase("rms_norm_grad", {}, [dy, x, w, rms[1]!], { differentiate: [] }),
  ];
}

function embeddingCases(dtype: DType, ids: Shape, vocab: number, width: number): Case[] {
  const draw = new Draw(`embedding ${dtype} ${ids.join()}`);
  // Some ids are outside the table: a shard sees those of other shards.
  const index = draw.ints(ids, -1, vocab + 1);
  return [
    makeCase("embedding", {}, [draw.uniform(dtype, [vocab, width]), index]),
    makeCase("embedding_grad", { vocab }, [draw.uniform(dtype, [...ids, width]), index]),
  ];
}

function lossCases(dtype: DType, rows: Shape, vocab: number): Case[] {
  const draw = new Draw(`loss ${dtype} ${rows.join()}`);
  const ignore = -100;
  const logits = draw.uniform(dtype, [...rows, vocab], -4, 4);
  const drawn = draw.ints(rows, 0, vocab);
  const targets = dense(
    "i32",
    rows,
    drawn.data.map((t, i) => (i % 4 === 3 ? ignore : t)),
  );
  const row = { dtype: statisticsDType(dtype), shape: rows };
  const lse = results("cross_entropy", [logits, targets], [row, row], { ignore })[1]!;
  const max = dense(
    row.dtype,
    rows,
    Array.from({ length: sizeOf(rows) }, (_, r) => Math.max(...logits.data.slice(r * vocab, (r + 1) * vocab))),
  );
  return [
    makeCase("cross_entropy", { ignore }, [logits, targets]),
    makeCase("cross_entropy_partial", { ignore }, [logits, targets, max], { differentiate: [] }),
    makeCase("cross_entropy_grad", { ignore }, [logits, targets, lse, draw.uniform(row.dtype, rows)], {
      differentiate: [],
    }),
  ];
}

interface AttentionSizes {
  readonly b: number;
  readonly t: number;
  readonly s: number;
  readonly g: number;
  readonly r: number;
  readonly d: number;
  readonly e: number;
}

function attentionCases(dtype: DType, sizes: AttentionSizes, flags: Partial<OpParams["attention"]>): Case[] {
  const { b, t, s, g, r, d, e } = sizes;
  const params = { causal: false, scale: 1 / Math.sqrt(d), positions: false, segments: false, ...flags };
  const draw = new Draw(`attention ${dtype} ${JSON.stringify([sizes, flags])}`);
  const [q, k, v] = [
    draw.uniform(dtype, [b, t, g, r, d]),
    draw.uniform(dtype, [b, s, g, d]),
    draw.uniform(dtype, [b, s, g, e]),
  ];
  const marks = [
    ...(params.positions ? [draw.ints([b, t], 0, s), draw.ints([b, s], 0, s)] : []),
    ...(params.segments ? [draw.ints([b, t], 0, 2), draw.ints([b, s], 0, 2)] : []),
  ];
  const types = [
    { dtype, shape: [b, t, g, r, e] },
    { dtype: statisticsDType(dtype), shape: [b, g, r, t] },
  ];
  const [out, lse] = results("attention", [q, k, v, ...marks], types, params);
  const dout = draw.uniform(dtype, [b, t, g, r, e]);
  return [
    makeCase("attention", params, [q, k, v, ...marks], { cotangents: [0] }),
    makeCase("attention_grad", params, [q, k, v, out!, lse!, dout, ...marks], { differentiate: [] }),
  ];
}

function ropeCases(dtype: DType, shape: Shape): Case[] {
  const draw = new Draw(`rope ${dtype} ${shape.join()}`);
  const half = shape.at(-1)! / 2;
  const frequencies = Array.from({ length: half }, (_, i) => 10000 ** (-i / half));
  const inv = dense("f64", [half], frequencies);
  const narrow = dense("f32", [half], frequencies.map(Math.fround));
  const positions = draw.ints(shape.slice(0, 2), 0, 50);
  const x = draw.uniform(dtype, shape);
  return [
    makeCase("rope", { inverse: false }, [x, positions, inv], { differentiate: [0] }),
    makeCase("rope", { inverse: true }, [x, positions, narrow], { differentiate: [0] }),
  ];
}

function optimizerCases(dtype: "f32" | "f64", shape: Shape, open: boolean): Case[] {
  const draw = new Draw(`optimizer ${dtype} ${shape.join()}`);
  const scalar = (value: number): Dense => dense(dtype, [], [roundTo(dtype, value)]);
  const [p, grad, m] = [draw.uniform(dtype, shape), draw.uniform(dtype, shape), draw.uniform(dtype, shape)];
  const v = draw.uniform(dtype, shape, 0.1, 1);
  const gate = dense("i32", [1], [open ? 1 : 0]);
  const numbers = [scalar(1e-2), scalar(0.1), scalar(0.02), scalar(0.5), gate];
  const extra = { differentiate: [] };
  const adamw = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1 };
  return [
    makeCase("adamw", adamw, [p, grad, m, v, ...numbers], extra),
    makeCase(
      "sgd",
      { momentum: 0.9, weightDecay: 0.1, nesterov: true },
      [p, grad, m, numbers[0]!, numbers[3]!, gate],
      extra,
    ),
    makeCase(
      "sgd",
      { momentum: 0, weightDecay: 0, nesterov: false },
      [p, grad, m, numbers[0]!, numbers[3]!, gate],
      extra,
    ),
  ];
}

export function nnCases(): Case[] {
  const small = { b: 2, t: 3, s: 3, g: 2, r: 2, d: 4, e: 2 };
  const long = { b: 1, t: 37, s: 70, g: 2, r: 3, d: 16, e: 16 };
  const squares = (["f32", "f64", "bf16", "f16"] as const).map((dtype) =>
    makeCase("square_sum", {}, [new Draw(`square ${dtype}`).uniform(dtype, dtype === "f64" ? [2, 3] : [7, 131])]),
  );
  return [
    ...normCases("f64", [3, 4]),
    ...normCases("f64", [2, 1, 5]),
    ...normCases("f32", [7, 65]),
    ...normCases("f32", [0, 8]),
    ...normCases("bf16", [3, 2, 48]),
    ...normCases("f16", [3, 2, 48]),
    ...normCases("bf16", [5, 33], "f32"),
    ...normCases("f16", [5, 33], "f32"),
    ...embeddingCases("f64", [4], 3, 2),
    ...embeddingCases("f32", [2, 9], 7, 33),
    ...embeddingCases("bf16", [5], 4, 17),
    ...embeddingCases("f16", [5], 4, 17),
    ...embeddingCases("f32", [0], 4, 3),
    ...lossCases("f64", [5], 4),
    ...lossCases("f64", [2, 3], 3),
    ...lossCases("f32", [6], 131),
    ...lossCases("bf16", [2, 3], 37),
    ...lossCases("f16", [2, 3], 37),
    ...attentionCases("f64", small, {}),
    ...attentionCases("f64", small, { causal: true }),
    ...attentionCases("f64", { ...small, t: 2, s: 4 }, { causal: true, positions: true, segments: true }),
    ...attentionCases("f64", { ...small, s: 0 }, {}),
    ...attentionCases("f32", long, {}),
    ...attentionCases("f32", { ...long, s: 37 }, { causal: true }),
    ...attentionCases("f32", long, { causal: true, positions: true }),
    ...attentionCases("bf16", { ...long, s: 37 }, { causal: true, segments: true }),
    ...attentionCases("f16", { ...long, s: 37 }, { causal: true, segments: true }),
    ...ropeCases("f64", [2, 3, 2, 4]),
    ...ropeCases("f64", [1, 2, 2, 2, 6]),
    ...ropeCases("f32", [2, 5, 3, 66]),
    ...ropeCases("bf16", [1, 3, 8]),
    ...ropeCases("f16", [1, 3, 8]),
    ...optimizerCases("f32", [7, 19], true),
    ...optimizerCases("f64", [5], true),
    ...optimizerCases("f32", [3], false),
    ...squares,
    makeCase("square_sum", {}, [dense("f32", [0], [])]),
  ];
}
