// Reductions over dims (which stay, with size 1), and softmax.
import type { DType } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { shapeText } from "../core/shape.ts";
import type { Builder } from "../ir/builder.ts";
import type { TensorType } from "../ir/graph.ts";
import { defineKernel } from "../ir/kernel.ts";
import type { FactorMap, GradientContext, OpRecord } from "../ir/op.ts";
import type { ReduceKind } from "../ir/spec.ts";
import {
  dimFactors,
  expectDim,
  expectDType,
  expectInputs,
  expectLastDim,
  expectSameDType,
  expectShape,
  floats,
  type NoParams,
  perElement,
  rowDims,
  rowsView,
} from "./define.ts";

export const reduceKernel = defineKernel({
  name: "reduce",
  doc: `y = x reduced over the dims where y has size 1 and x has not. Same rank. kind: 0 sum, 1 max, 2 min. x is f32,
f64, bf16, f16 or i32; y has x's dtype, or f32 for bf16 and f16 x. An empty reduction gives 0, -inf, +inf (i32: lowest,
highest). x may have any strides, y too.`,
  inputs: ["x"],
  outputs: ["y"],
  attrs: { kind: "int" },
});

export const softmaxKernel = defineKernel({
  name: "softmax",
  doc: "y[r,n] = softmax of each row. Unit stride in n, any row stride. f32, f64, bf16, f16.",
  inputs: ["x"],
  outputs: ["y"],
  attrs: {},
});

export const softmaxGradKernel = defineKernel({
  name: "softmax_grad",
  doc: "dx[r,n] = y * (dy - sum_n(y * dy)). Unit stride in n.",
  inputs: ["y", "dy"],
  outputs: ["dx"],
  attrs: {},
});

/** Dims to reduce over: ascending, each once. */
export type ReduceParams = { readonly dims: readonly number[] };

/** Codes of reductions in programs. */
export const reduceKinds: readonly ReduceKind[] = ["sum", "max", "min"];

const reducible: readonly DType[] = ["f32", "f64", "bf16", "f16", "i32"];

function reduceFactors(kind: ReduceKind, inputs: readonly TensorType[], dims: readonly number[]): FactorMap {
  const names = dimFactors(inputs[0]!.shape.length);
  const kept = names.map((name, d) => (dims.includes(d) ? null : name));
  return { inputs: [names], outputs: [kept], reduce: Object.fromEntries(dims.map((d) => [names[d]!, kind])) };
}

/** The cotangent goes to the elements that are the extreme one, in equal parts. */
function extremeGradient<V>(
  b: Builder<V>,
  { inputs, outputs, cotangents, params }: GradientContext<V, ReduceParams>,
): V {
  const x = inputs[0]!;
  const shape = b.shape(x);
  const mask = b.cast(b.binary("eq", x, b.broadcastTo(outputs[0]!, shape)), b.dtype(x));
  const count = b.sum(mask, params.dims, true);
  return b.mul(mask, b.broadcastTo(b.div(cotangents[0]!, count), shape));
}

function reduction(kind: ReduceKind): OpRecord<ReduceParams> {
  const name = `reduce_${kind}`;
  return {
    name,
    infer(inputs, { dims }) {
      expectInputs(name, inputs, 1);
      const x = inputs[0]!;
      expectDType(name, "its operand", x, reducible);
      for (const d of dims) expectDim(name, x, d);
      if (!dims.every((d, i) => i === 0 || d > dims[i - 1]!)) {
        throw new ShapeError(`${name}: dims ${shapeText(dims)} must ascend, each once`);
      }
      return [{ dtype: x.dtype, shape: x.shape.map((n, d) => (dims.includes(d) ? 1 : n)) }];
    },
    sharding: {
      factors: (inputs, _, { dims }) => reduceFactors(kind, inputs, dims),
      linear: kind === "sum" ? "joint" : "none",
    },
    gradient: {
      rule: (b, c) => [kind === "sum" ? b.broadcastTo(c.cotangents[0]!, b.shape(c.inputs[0]!)) : extremeGradient(b, c)],
    },
    cost: perElement(1),
    lower: (ctx) => ctx.emit("reduce", [ctx.inputs[0]!], [ctx.output(0)], [reduceKinds.indexOf(kind)]),
  };
}

/** All operands have the same dims; the last is never split. */
function rowFactors(inputs: readonly TensorType[], outputs: readonly TensorType[]): FactorMap {
  const of = (type: TensorType) => rowDims(type.shape.length);
  const row = (type: TensorType) => rowDims(type.shape.length).map((name) => (name === null ? "row" : null));
  const unsplit = { inputs: inputs.map(row), outputs: outputs.map(row) };
  return { inputs: inputs.map(of), outputs: outputs.map(of), unsplit };
}

/** y * (dy - sum(y * dy)), of elementwise ops and a sum. */
function softmaxBackward<V>(b: Builder<V>, y: V, dy: V): V {
  const last = b.shape(y).length - 1;
  return b.mul(y, b.sub(dy, b.sum(b.mul(y, dy), last, true)));
}

const softmax: OpRecord<NoParams> = {
  name: "softmax",
  infer(inputs) {
    expectInputs("softmax", inputs, 1);
    const x = inputs[0]!;
    expectDType("softmax", "its operand", x, floats);
    expectLastDim("softmax", "its operand", x);
    return [x];
  },
  sharding: { factors: rowFactors, linear: "none" },
  gradient: { rule: (b, { outputs, cotangents }) => [b.one("softmax_grad", [outputs[0]!, cotangents[0]!])] },
  cost: perElement(15),
  lower: (ctx) => ctx.emit("softmax", [rowsView(ctx, ctx.inputs[0]!)], [rowsView(ctx, ctx.output(0))]),
};

const softmaxGrad: OpRecord<NoParams> = {
  name: "softmax_grad",
  infer(inputs) {
    expectInputs("softmax_grad", inputs, 2);
    const [y, dy] = [inputs[0]!, inputs[1]!];
    expectDType("softmax_grad", "y", y, floats);
    expectSameDType("softmax_grad", y, dy);
    expectShape("softmax_grad", "dy", dy, y.shape);
    expectLastDim("softmax_grad", "y", y);
    return [y];
  },
  sharding: { factors: rowFactors, linear: [1] },
  gradient: {
    rule: (b, { inputs, cotangents, wanted }) => {
      const [y, dy, d] = [inputs[0]!, inputs[1]!, cotangents[0]!];
      if (!wanted[0]) return [null, softmaxBackward(b, y, d)];
      const last = b.shape(y).length - 1;
      // dx = y dy - y s with s = sum(y dy): in y, d (dy - s) - dy sum(d y); in dy, the same map again.
      const s = b.sum(b.mul(y, dy), last, true);
      const forY = b.sub(b.mul(d, b.sub(dy, s)), b.mul(dy, b.sum(b.mul(d, y), last, true)));
      return [forY, wanted[1] ? softmaxBackward(b, y, d) : null];
    },
  },
  cost: perElement(4),
  lower: (ctx) =>
    ctx.emit(
      "softmax_grad",
      ctx.inputs.map((view) => rowsView(ctx, view)),
      [rowsView(ctx, ctx.output(0))],
    ),
};

export const reductionOps = {
  reduce_sum: reduction("sum"),
  reduce_max: reduction("max"),
  reduce_min: reduction("min"),
  softmax,
  softmax_grad: softmaxGrad,
};
