// Parameter updates in place, and the squared norm that clipping needs.
import { statisticsDType } from "../core/dtype.ts";
import { DTypeError, ShapeError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { TensorType } from "../ir/graph.ts";
import { defineKernel } from "../ir/kernel.ts";
import type { Attribute, LowerContext } from "../ir/lowering.ts";
import type { FactorMap, OpRecord } from "../ir/op.ts";
import { typeText } from "../ir/print.ts";
import { reshapeView } from "../ir/view.ts";
import { dimFactors, expectDType, expectInputs, expectShape, floats, type NoParams, perElement } from "./define.ts";

export const squareSumKernel = defineKernel({
  name: "square_sum",
  doc: "y[1] = sum of x^2 in a fixed order, in blocks. x contiguous f32, f64, bf16 or f16; y f32 (f64 for f64).",
  inputs: ["x"],
  outputs: ["y"],
  attrs: {},
});

export const adamwKernel = defineKernel({
  name: "adamw",
  doc: `Decoupled AdamW, in place (outputs are the same memory as p, m, v) on contiguous f32 or f64. Nothing is written
unless gate (i32 [1]) is 1. g = grad * scale; p *= 1 - lr * weight_decay; m += (1 - beta1)(g - m); v = beta2 v + (1 -
beta2) g^2; p -= lr / correction1 * m / (sqrt(v / correction2) + eps). lr, correction1, correction2, scale are
scalars of p's dtype (correctionN = 1 - betaN^step).`,
  inputs: ["p", "grad", "m", "v", "lr", "correction1", "correction2", "scale", "gate"],
  outputs: ["p", "m", "v"],
  attrs: { beta1: "float", beta2: "float", eps: "float", weight_decay: "float" },
});

export const sgdKernel = defineKernel({
  name: "sgd",
  doc: `In place as adamw. g = grad * scale + weight_decay * p; buf = momentum * buf + g; p -= lr * (nesterov ? g +
momentum * buf : buf). PyTorch's rule with dampening 0; buf starts at zero.`,
  inputs: ["p", "grad", "buf", "lr", "scale", "gate"],
  outputs: ["p", "buf"],
  attrs: { momentum: "float", weight_decay: "float", nesterov: "int" },
});

/** AdamW's constants; what changes from step to step travels as operands. */
export type AdamWParams = {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
};
/** SGD's constants. */
export type SgdParams = { readonly momentum: number; readonly weightDecay: number; readonly nesterov: boolean };

/** The first `tensors` operands are alike, then come scalars of their dtype, then the gate, i32 [1]. */
function expectUpdate(op: string, inputs: readonly TensorType[], tensors: number, scalars: number): void {
  expectInputs(op, inputs, tensors + scalars + 1);
  const p = inputs[0]!;
  expectDType(op, "the parameter", p, ["f32", "f64"]);
  inputs.forEach((type, i) => {
    const gate = i === tensors + scalars;
    if (type.dtype !== (gate ? "i32" : p.dtype)) {
      throw new DTypeError(`${op}: operand ${i} is ${typeText(type)} for a parameter ${typeText(p)}`);
    }
    if (i < tensors) expectShape(op, `operand ${i}`, type, p.shape);
    else if (sizeOf(type.shape) !== 1) {
      throw new ShapeError(`${op}: operand ${i} is ${typeText(type)}, but must be one number`);
    }
  });
}

/** Tensors are split alike, numbers are whole. */
function updateFactors(inputs: readonly TensorType[], tensors: number, outputs: number): FactorMap {
  const dims = dimFactors(inputs[0]!.shape.length);
  return {
    inputs: inputs.map((type, i) => (i < tensors ? dims : type.shape.map(() => null))),
    outputs: new Array<string[]>(outputs).fill(dims),
  };
}

/** Emits an update whose results overwrite the operands at `places`. */
function lowerUpdate<P>(
  ctx: LowerContext<P>,
  kernel: string,
  places: readonly number[],
  scalars: number,
  words: readonly Attribute[],
): void {
  const results = places.map((j, i) => ctx.inPlace(i, j));
  const last = ctx.inputs.length - 1;
  const operands = ctx.inputs.map((view, i) => {
    if (i === last) return reshapeView(view, [1])!;
    return i >= last - scalars ? reshapeView(view, [])! : ctx.contiguous(view);
  });
  ctx.emit(kernel, operands, results, words);
}

const untraced = { none: "optimizer updates are not differentiable" };

/** p, grad, m, v, lr, correction1, correction2, scale, gate -> p, m, v, in place. */
const adamw: OpRecord<AdamWParams> = {
  name: "adamw",
  infer(inputs) {
    expectUpdate("adamw", inputs, 4, 4);
    return [inputs[0]!, inputs[2]!, inputs[3]!];
  },
  sharding: { factors: (inputs) => updateFactors(inputs, 4, 3), linear: "none" },
  gradient: untraced,
  cost: perElement(14),
  lower(ctx) {
    const { beta1, beta2, eps, weightDecay } = ctx.params;
    const words = [beta1, beta2, eps, weightDecay].map((float) => ({ float }));
    lowerUpdate(ctx, "adamw", [0, 2, 3], 4, words);
  },
};

/** p, grad, buf, lr, scale, gate -> p, buf, in place. */
const sgd: OpRecord<SgdParams> = {
  name: "sgd",
  infer(inputs) {
    expectUpdate("sgd", inputs, 3, 2);
    return [inputs[0]!, inputs[2]!];
  },
  sharding: { factors: (inputs) => updateFactors(inputs, 3, 2), linear: "none" },
  gradient: untraced,
  cost: perElement(7),
  lower(ctx) {
    const { momentum, weightDecay, nesterov } = ctx.params;
    lowerUpdate(ctx, "sgd", [0, 2], 2, [{ float: momentum }, { float: weightDecay }, nesterov ? 1 : 0]);
  },
};

/** x -> [1], the sum of squares over all elements, in the statistics' dtype. */
const squareSum: OpRecord<NoParams> = {
  name: "square_sum",
  infer(inputs) {
    expectInputs("square_sum", inputs, 1);
    expectDType("square_sum", "its operand", inputs[0]!, floats);
    return [{ dtype: statisticsDType(inputs[0]!.dtype), shape: [1] }];
  },
  sharding: {
    factors: ([x]) => ({ inputs: [dimFactors(x!.shape.length)], outputs: [[null]] }),
    linear: "none",
  },
  gradient: {
    rule: (b, { inputs, cotangents }) => {
      const x = inputs[0]!;
      const dy = b.cast(b.reshape(cotangents[0]!, []), b.dtype(x));
      return [b.mul(b.mul(x, 2), dy)];
    },
  },
  cost: perElement(2),
  lower: (ctx) => ctx.emit("square_sum", [ctx.contiguous(ctx.inputs[0]!)], [ctx.output(0)]),
};

export const optimizerOps = { adamw, sgd, square_sum: squareSum };
