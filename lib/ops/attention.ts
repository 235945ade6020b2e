// Attention without a stored score matrix, and rotary positions.
import { statisticsDType } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { TensorType } from "../ir/graph.ts";
import { defineKernel } from "../ir/kernel.ts";
import type { LowerContext, View } from "../ir/lowering.ts";
import type { FactorMap, OpRecord } from "../ir/op.ts";
import { typeText } from "../ir/print.ts";
import type { ValueSpec } from "../ir/spec.ts";
import { collapseView } from "../ir/view.ts";
import {
  expectDType,
  expectInputs,
  expectNoCotangent,
  expectRank,
  expectSameDType,
  expectShape,
  floats,
  onceOnly,
  outputAs,
  perElement,
  rowDims,
  streamCost,
  unitStride,
} from "./define.ts";
import { ringAttention, ringAttentionGrad, ringAxis } from "./ring-attention.ts";

export const ropeKernel = defineKernel({
  name: "rope",
  doc: `Rotary positions, "rotate half" form: x[b,t,h,d] and y the same dims, unit stride in d; positions i32 [b,t]
(stride 0 allowed). Angle of pair i: position * inv_freq[i], inv_freq f32 or f64 [d/2], computed in the statistics'
type. inverse 1 rotates back (the gradient). f32, f64, bf16, f16.`,
  inputs: ["x", "positions", "inv_freq"],
  outputs: ["y"],
  attrs: { inverse: "int" },
});

export const attentionKernel = defineKernel({
  name: "attention",
  doc: `out[b,t,h,d] = softmax(scale * q k^T + mask) v per head; q[b,t,h,d], k[b,s,g,d], v[b,s,g,e] (out [b,t,h,e]); h =
g*r, query head j uses key head j / r. lse[b,h,t] = log-sum-exp of the scaled scores (f32; f64 for f64). flags: 1
causal (key position <= query position), 2 positions_q[b,t] and positions_k[b,s] i32 are given (else the indices), 4
segments_q and segments_k i32 are given (only equal segments attend). Inputs that are not given are absent, the
others keep their order. A row with no visible key gives out = 0 and lse = -inf. Unit stride in d and e, any other
strides. Never stores t x s.`,
  inputs: ["q", "k", "v", "positions_q?", "positions_k?", "segments_q?", "segments_k?"],
  outputs: ["out", "lse"],
  attrs: { flags: "int", scale: "float" },
});

export const attentionGradKernel = defineKernel({
  name: "attention_grad",
  doc: `dq, dk, dv (dims of q, k, v) of attention. Recomputes the probabilities from lse. Sums in a fixed order.
Optional inputs as attention's.`,
  inputs: ["q", "k", "v", "out", "lse", "dout", "positions_q?", "positions_k?", "segments_q?", "segments_k?"],
  outputs: ["dq", "dk", "dv"],
  attrs: { flags: "int", scale: "float" },
});

/**
 * Scores are scaled by `scale`. `causal`: a query sees keys at its position and before. `positions`: two operands give
 * the positions (else they are the indices). `segments`: two operands give segments, and only equal ones see each
 * other.
 */
export type AttentionParams = {
  readonly causal: boolean;
  readonly scale: number;
  readonly positions: boolean;
  readonly segments: boolean;
};

/** `inverse` turns back, which is the gradient. */
export type RopeParams = { readonly inverse: boolean };

/** Operands after the first `fixed` ones: positions of queries and keys, segments of queries and keys. */
function expectMarks(op: string, inputs: readonly TensorType[], fixed: number, params: AttentionParams): void {
  const pairs = Number(params.positions) + Number(params.segments);
  expectInputs(op, inputs, fixed + 2 * pairs);
  const [q, k] = [inputs[0]!, inputs[1]!];
  inputs.slice(fixed).forEach((type, i) => {
    const what = `its ${i % 2 === 0 ? "query" : "key"} ${params.positions && i < 2 ? "position" : "segment"} tensor`;
    expectDType(op, what, type, ["i32"]);
    expectShape(op, what, type, (i % 2 === 0 ? q : k).shape.slice(0, 2));
  });
}

/** q[b,t,g,r,d], k[b,s,g,d], v[b,s,g,e]. Returns the types of out and lse. */
function expectAttention(op: string, inputs: readonly TensorType[]): [TensorType, TensorType] {
  const [q, k, v] = [inputs[0]!, inputs[1]!, inputs[2]!];
  expectDType(op, "q", q, floats);
  expectSameDType(op, q, k);
  expectSameDType(op, q, v);
  expectRank(op, "q (batch, query, group, head, width)", q, 5);
  expectRank(op, "k (batch, key, group, width)", k, 4);
  expectRank(op, "v (batch, key, group, width)", v, 4);
  const [b, t, g, r, d] = q.shape as readonly [number, number, number, number, number];
  const s = k.shape[1]!;
  const e = v.shape[3]!;
  if (k.shape[0] !== b || k.shape[2] !== g || k.shape[3] !== d) {
    throw new ShapeError(`${op}: q ${typeText(q)} and k ${typeText(k)} differ in batch, groups or width`);
  }
  expectShape(op, "v", v, [b, s, g, e]);
  return [
    { dtype: q.dtype, shape: [b, t, g, r, e] },
    { dtype: statisticsDType(q.dtype), shape: [b, g, r, t] },
  ];
}

const kvFactors = ["b", null, "g", null];

/**
 * Factors of operands by kind: q-like, k-like, lse; then the marks. Queries may be split where their index says
 * nothing.
 */
function attentionFactors(count: number, params: AttentionParams, inputs: string, outputs: string): FactorMap {
  const t = params.causal && !params.positions ? null : "t";
  const of = (kind: string): (string | null)[] =>
    kind === "q" ? ["b", t, "g", null, null] : kind === "k" ? kvFactors : ["b", "g", null, t];
  const marks = Array.from({ length: count - inputs.length }, (_, i) => ["b", i % 2 === 0 ? t : null]);
  // Without positions, where a causal key stands is its index.
  const keys = (kind: string): (string | null)[] => {
    return kind === "k" && t !== null ? [null, "s", null, null] : new Array<null>(kind === "q" ? 5 : 4).fill(null);
  };
  const keyMarks = marks.map((_, i) => [null, i % 2 === 0 || t === null ? null : "s"]);
  const unsplit = { inputs: [...[...inputs].map(keys), ...keyMarks], outputs: [...outputs].map(keys) };
  return { inputs: [...[...inputs].map(of), ...marks], outputs: [...outputs].map(of), unsplit };
}

/** The axis round whose ring keys and values go; null where the factors suffice. */
function ringOf(specs: readonly ValueSpec[], { causal, positions }: AttentionParams): string | null {
  return causal && !positions ? null : ringAxis(specs);
}

/**
 * So many products of width d or e for each pair of query and key; causal attention of a sequence to itself, or of
 * zig-zag parts of it to each other, sees half of the pairs.
 */
function pairFlops(inputs: readonly TensorType[], { causal, positions }: AttentionParams, products: number): number {
  const [q, v] = [inputs[0]!, inputs[2]!];
  const pairs = sizeOf(q.shape.slice(0, 4)) * v.shape[1]!;
  const half = causal && (!positions || q.shape[1] === v.shape[1]);
  return ((products * (q.shape[4]! + v.shape[3]!) + 10) * pairs) / (half ? 2 : 1);
}

/** [b,t,g,r,d] as [b,t,h,d] with unit stride in d. */
function headsView<P>(ctx: LowerContext<P>, view: View): View {
  const groups = [[0], [1], [2, 3], [4]];
  const fits = view.dims[4] === 1 || view.strides[4] === 1 ? collapseView(view, groups) : null;
  return fits ?? collapseView(ctx.contiguous(view), groups)!;
}

/** Output i, [b,t,g,r,d], as [b,t,h,d]. */
function headsOut<P>(ctx: LowerContext<P>, i: number): View {
  const [b, t, g, r, d] = ctx.outputTypes[i]!.shape as readonly [number, number, number, number, number];
  return outputAs(ctx, i, [b, t, g * r, d]);
}

/** lse [b,g,r,t] as [b,h,t]. */
function lseView<P>(ctx: LowerContext<P>, view: View): View {
  return collapseView(ctx.contiguous(view), [[0], [1, 2], [3]])!;
}

function attentionWords({ causal, positions, segments, scale }: AttentionParams): [number, { float: number }] {
  return [Number(causal) + 2 * Number(positions) + 4 * Number(segments), { float: scale }];
}

/**
 * q[b,t,g,r,d], k[b,s,g,d], v[b,s,g,e] (, positions_q[b,t], positions_k[b,s]) (, segments_q[b,t], segments_k[b,s]) ->
 * out[b,t,g,r,e], lse[b,g,r,t]. g key-value groups, r query heads for each.
 */
const attention: OpRecord<AttentionParams> = {
  name: "attention",
  infer(inputs, params) {
    expectMarks("attention", inputs, 3, params);
    return expectAttention("attention", inputs);
  },
  sharding: {
    factors: (inputs, _, params) => attentionFactors(inputs.length, params, "qkk", "ql"),
    linear: "none",
    decompose(b, inputs, specs, params, local) {
      const axis = ringOf(specs, params);
      return axis === null ? null : ringAttention(b, local, inputs, specs[0]!, axis, params);
    },
  },
  gradient: {
    rule: (b, { inputs, outputs, cotangents, params }) => {
      expectNoCotangent("attention", "lse", cotangents[1]);
      const operands = [...inputs.slice(0, 3), outputs[0]!, outputs[1]!, cotangents[0]!, ...inputs.slice(3)];
      return [...b.emit("attention_grad", operands, params), ...inputs.slice(3).map(() => null)];
    },
  },
  cost: (inputs, outputs, params) => streamCost(inputs, outputs, pairFlops(inputs, params, 2)),
  lower(ctx) {
    const [q, k, v] = [ctx.inputs[0]!, ctx.inputs[1]!, ctx.inputs[2]!];
    const marks = ctx.inputs.slice(3).map(ctx.contiguous);
    const operands = [headsView(ctx, q), unitStride(ctx, k, 3), unitStride(ctx, v, 3), ...marks];
    ctx.emit("attention", operands, [headsOut(ctx, 0), lseView(ctx, ctx.output(1))], attentionWords(ctx.params));
  },
};

/** q, k, v, out, lse, dout (, positions) (, segments) -> dq, dk, dv. */
const attentionGrad: OpRecord<AttentionParams> = {
  name: "attention_grad",
  infer(inputs, params) {
    expectMarks("attention_grad", inputs, 6, params);
    const [out, lse] = expectAttention("attention_grad", inputs);
    [out, lse, out].forEach((type, i) => {
      const what = ["out", "lse", "dout"][i]!;
      expectDType("attention_grad", what, inputs[i + 3]!, [type.dtype]);
      expectShape("attention_grad", what, inputs[i + 3]!, type.shape);
    });
    return inputs.slice(0, 3);
  },
  sharding: {
    factors: (inputs, _, params) => attentionFactors(inputs.length, params, "qkkqlq", "qkk"),
    linear: "none",
    decompose(b, inputs, specs, params, local) {
      const axis = ringOf(specs, params);
      return axis === null ? null : ringAttentionGrad(b, local, inputs, specs[0]!, axis, params);
    },
  },
  gradient: onceOnly("attention"),
  cost: (inputs, outputs, params) => streamCost(inputs, outputs, pairFlops(inputs, params, 5)),
  lower(ctx) {
    const [q, k, v, out, lse, dout] = ctx.inputs as readonly [View, View, View, View, View, View];
    const operands = [
      headsView(ctx, q),
      unitStride(ctx, k, 3),
      unitStride(ctx, v, 3),
      headsView(ctx, out),
      lseView(ctx, lse),
      headsView(ctx, dout),
      ...ctx.inputs.slice(6).map(ctx.contiguous),
    ];
    ctx.emit("attention_grad", operands, [headsOut(ctx, 0), ctx.output(1), ctx.output(2)], attentionWords(ctx.params));
  },
};

/** Batch and time, all head dims as one, width. */
function ropeGroups(rank: number): number[][] {
  return [[0], [1], Array.from({ length: rank - 3 }, (_, i) => i + 2), [rank - 1]];
}

/** x[b,t,...heads,d], positions[b,t] (i32), inv_freq[d/2] -> y, with the pairs (i, i + d/2) of each head rotated. */
const rope: OpRecord<RopeParams> = {
  name: "rope",
  infer(inputs) {
    expectInputs("rope", inputs, 3);
    const [x, positions, frequencies] = [inputs[0]!, inputs[1]!, inputs[2]!];
    expectDType("rope", "x", x, floats);
    const width = x.shape.at(-1) ?? 0;
    if (x.shape.length < 3 || width % 2 !== 0) {
      throw new ShapeError(`rope: x is ${typeText(x)}, but must be [batch, time, ..., width] with an even width`);
    }
    expectDType("rope", "the position tensor", positions, ["i32"]);
    expectShape("rope", "the position tensor", positions, x.shape.slice(0, 2));
    expectDType("rope", "the frequency tensor", frequencies, ["f32", "f64"]);
    expectShape("rope", "the frequency tensor", frequencies, [width / 2]);
    return [x];
  },
  sharding: {
    factors([x]) {
      const dims = rowDims(x!.shape.length);
      return { inputs: [dims, dims.slice(0, 2), [null]], outputs: [dims] };
    },
    linear: [0],
  },
  gradient: {
    rule: (b, { inputs, cotangents, params, wanted }) => {
      if (wanted[2]) expectNoCotangent("rope", "as a function of its frequencies", cotangents[0]);
      const operands = [cotangents[0]!, inputs[1]!, inputs[2]!];
      return [b.one("rope", operands, { inverse: !params.inverse }), null, null];
    },
  },
  cost: perElement(8),
  lower(ctx) {
    const [x, positions, frequencies] = [ctx.inputs[0]!, ctx.inputs[1]!, ctx.inputs[2]!];
    const groups = ropeGroups(x.dims.length);
    const from =
      collapseView(unitStride(ctx, x, x.dims.length - 1), groups) ?? collapseView(ctx.contiguous(x), groups)!;
    const to = collapseView(ctx.output(0), groups)!;
    ctx.emit("rope", [from, positions, ctx.contiguous(frequencies)], [to], [ctx.params.inverse ? 1 : 0]);
  },
};

export const attentionOps = { attention, attention_grad: attentionGrad, rope };
