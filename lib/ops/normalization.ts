// Layer normalisation and its root-mean-square form, over the last dim.
import { statisticsDType } from "../core/dtype.ts";
import { DTypeError } from "../core/errors.ts";
import type { TensorType } from "../ir/graph.ts";
import { defineKernel } from "../ir/kernel.ts";
import type { LowerContext, View } from "../ir/lowering.ts";
import type { FactorMap, OpRecord } from "../ir/op.ts";
import { typeText } from "../ir/print.ts";
import {
  expectDType,
  expectInputs,
  expectLastDim,
  expectNoCotangent,
  expectSameDType,
  expectShape,
  floats,
  flatView,
  type NoParams,
  onceOnly,
  outputAs,
  perElement,
  rowDims,
  rowsView,
} from "./define.ts";

export const layerNormKernel = defineKernel({
  name: "layer_norm",
  doc: `y[r,n] = (x - mean) * rstd * w[n] + b[n]; mean[r], rstd[r] = 1/sqrt(var + eps). Unit stride in n. Statistics are
f32 (f64 for f64 x); w and b have the statistics' dtype or x's; y has x's dtype.`,
  inputs: ["x", "w", "b"],
  outputs: ["y", "mean", "rstd"],
  attrs: { eps: "float" },
});

export const layerNormGradKernel = defineKernel({
  name: "layer_norm_grad",
  doc: `From dy[r,n]: dx[r,n] (x's dtype), dw[n] and db[n] (the statistics' dtype, summed over rows in a fixed order).`,
  inputs: ["dy", "x", "w", "mean", "rstd"],
  outputs: ["dx", "dw", "db"],
  attrs: {},
});

export const rmsNormKernel = defineKernel({
  name: "rms_norm",
  doc: "y[r,n] = x * rstd * w[n]; rstd[r] = 1/sqrt(mean(x^2) + eps). dtypes as layer_norm.",
  inputs: ["x", "w"],
  outputs: ["y", "rstd"],
  attrs: { eps: "float" },
});

export const rmsNormGradKernel = defineKernel({
  name: "rms_norm_grad",
  doc: "From dy[r,n]: dx[r,n], dw[n]. dtypes as layer_norm_grad.",
  inputs: ["dy", "x", "w", "rstd"],
  outputs: ["dx", "dw"],
  attrs: {},
});

/** Added to the variance (layer_norm) or the mean square (rms_norm). */
export type NormParams = { readonly eps: number };

/** x has a last dim; weights have its size and x's or the statistics' dtype. */
function expectNorm(op: string, x: TensorType, weights: readonly (readonly [string, TensorType])[]): void {
  expectDType(op, "x", x, floats);
  expectLastDim(op, "x", x);
  for (const [what, type] of weights) {
    if (type.dtype !== x.dtype && type.dtype !== statisticsDType(x.dtype)) {
      throw new DTypeError(`${op}: ${what} is ${typeText(type)} for x ${typeText(x)}; cast one`);
    }
    expectShape(op, what, type, x.shape.slice(-1));
  }
}

/** The type of one number a row. */
function statistic(x: TensorType): TensorType {
  return { dtype: statisticsDType(x.dtype), shape: x.shape.slice(0, -1) };
}

function expectGrad(op: string, dy: TensorType, x: TensorType, statistics: readonly TensorType[]): void {
  expectSameDType(op, x, dy);
  expectShape(op, "dy", dy, x.shape);
  for (const type of statistics) {
    expectShape(op, "a statistic", type, x.shape.slice(0, -1));
    expectDType(op, "a statistic", type, [statisticsDType(x.dtype)]);
  }
}

/** Factors of operands by kind: x-like, weight-like (never split), one number a row. */
function normFactors(rank: number, inputs: string, outputs: string): FactorMap {
  const of = (kind: string): (string | null)[] =>
    kind === "x" ? rowDims(rank) : kind === "w" ? [null] : rowDims(rank).slice(0, -1);
  return { inputs: [...inputs].map(of), outputs: [...outputs].map(of) };
}

/** Output i with a number a row as one dim. */
function statsOut<P>(ctx: LowerContext<P>, i: number): View {
  return outputAs(ctx, i, [ctx.outputTypes[i]!.shape.reduce((n, d) => n * d, 1)]);
}

const layerNorm: OpRecord<NormParams> = {
  name: "layer_norm",
  infer(inputs) {
    expectInputs("layer_norm", inputs, 3);
    const [x, w, b] = [inputs[0]!, inputs[1]!, inputs[2]!];
    expectNorm("layer_norm", x, [
      ["w", w],
      ["b", b],
    ]);
    return [x, statistic(x), statistic(x)];
  },
  sharding: { factors: ([x]) => normFactors(x!.shape.length, "xww", "xss"), linear: "none" },
  gradient: {
    rule: (g, { inputs, outputs, cotangents }) => {
      expectNoCotangent("layer_norm", "mean", cotangents[1]);
      expectNoCotangent("layer_norm", "rstd", cotangents[2]);
      const [x, w, b] = [inputs[0]!, inputs[1]!, inputs[2]!];
      const grads = g.emit("layer_norm_grad", [cotangents[0]!, x, w, outputs[1]!, outputs[2]!]);
      return [grads[0]!, g.cast(grads[1]!, g.dtype(w)), g.cast(grads[2]!, g.dtype(b))];
    },
  },
  cost: perElement(8),
  lower(ctx) {
    const [x, w, b] = [ctx.inputs[0]!, ctx.inputs[1]!, ctx.inputs[2]!];
    const operands = [rowsView(ctx, x), ctx.contiguous(w), ctx.contiguous(b)];
    const results = [rowsView(ctx, ctx.output(0)), statsOut(ctx, 1), statsOut(ctx, 2)];
    ctx.emit("layer_norm", operands, results, [{ float: ctx.params.eps }]);
  },
};

const layerNormGrad: OpRecord<NoParams> = {
  name: "layer_norm_grad",
  infer(inputs) {
    expectInputs("layer_norm_grad", inputs, 5);
    const [dy, x, w] = [inputs[0]!, inputs[1]!, inputs[2]!];
    expectNorm("layer_norm_grad", x, [["w", w]]);
    expectGrad("layer_norm_grad", dy, x, inputs.slice(3));
    const dw = { dtype: statisticsDType(x.dtype), shape: w.shape };
    return [x, dw, dw];
  },
  sharding: { factors: ([, x]) => normFactors(x!.shape.length, "xxwss", "xww"), linear: [0] },
  gradient: onceOnly("layer_norm"),
  cost: perElement(14),
  lower(ctx) {
    const [dy, x, w, mean, rstd] = ctx.inputs as readonly [View, View, View, View, View];
    const operands = [rowsView(ctx, dy), rowsView(ctx, x), ctx.contiguous(w), flatView(ctx, mean), flatView(ctx, rstd)];
    ctx.emit("layer_norm_grad", operands, [rowsView(ctx, ctx.output(0)), ctx.output(1), ctx.output(2)]);
  },
};

const rmsNorm: OpRecord<NormParams> = {
  name: "rms_norm",
  infer(inputs) {
    expectInputs("rms_norm", inputs, 2);
    const [x, w] = [inputs[0]!, inputs[1]!];
    expectNorm("rms_norm", x, [["w", w]]);
    return [x, statistic(x)];
  },
  sharding: { factors: ([x]) => normFactors(x!.shape.length, "xw", "xs"), linear: "none" },
  gradient: {
    rule: (g, { inputs, outputs, cotangents }) => {
      expectNoCotangent("rms_norm", "rstd", cotangents[1]);
      const [x, w] = [inputs[0]!, inputs[1]!];
      const grads = g.emit("rms_norm_grad", [cotangents[0]!, x, w, outputs[1]!]);
      return [grads[0]!, g.cast(grads[1]!, g.dtype(w))];
    },
  },
  cost: perElement(5),
  lower(ctx) {
    const operands = [rowsView(ctx, ctx.inputs[0]!), ctx.contiguous(ctx.inputs[1]!)];
    ctx.emit("rms_norm", operands, [rowsView(ctx, ctx.output(0)), statsOut(ctx, 1)], [{ float: ctx.params.eps }]);
  },
};

const rmsNormGrad: OpRecord<NoParams> = {
  name: "rms_norm_grad",
  infer(inputs) {
    expectInputs("rms_norm_grad", inputs, 4);
    const [dy, x, w] = [inputs[0]!, inputs[1]!, inputs[2]!];
    expectNorm("rms_norm_grad", x, [["w", w]]);
    expectGrad("rms_norm_grad", dy, x, inputs.slice(3));
    return [x, { dtype: statisticsDType(x.dtype), shape: w.shape }];
  },
  sharding: { factors: ([, x]) => normFactors(x!.shape.length, "xxws", "xw"), linear: [0] },
  gradient: onceOnly("rms_norm"),
  cost: perElement(10),
  lower(ctx) {
    const [dy, x, w, rstd] = ctx.inputs as readonly [View, View, View, View];
    const operands = [rowsView(ctx, dy), rowsView(ctx, x), ctx.contiguous(w), flatView(ctx, rstd)];
    ctx.emit("rms_norm_grad", operands, [rowsView(ctx, ctx.output(0)), ctx.output(1)]);
  },
};

export const normalizationOps = {
  layer_norm: layerNorm,
  layer_norm_grad: layerNormGrad,
  rms_norm: rmsNorm,
  rms_norm_grad: rmsNormGrad,
};
