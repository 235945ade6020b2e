// Ops that move elements without computing on them. Most lower to views and cost nothing.
import { ShapeError } from "../core/errors.ts";
import { sameShape, shapeText, sizeOf } from "../core/shape.ts";
import { defineKernel } from "../ir/kernel.ts";
import type { LowerContext, View } from "../ir/lowering.ts";
import type { FactorMap, OpRecord } from "../ir/op.ts";
import { typeText } from "../ir/print.ts";
import { broadcastView, permuteView, reshapeGroups, reshapeView, sliceView } from "../ir/view.ts";
import {
  dimFactors,
  expectDim,
  expectInputs,
  expectSameDType,
  expectSizes,
  identityFactors,
  type NoParams,
  noCost,
  perElement,
} from "./define.ts";
import { elementwiseAttributes } from "./expression.ts";

export const copyKernel = defineKernel({
  name: "copy",
  doc: "y = x. Same rank, dims and dtype; any strides on both sides (y without repeats).",
  inputs: ["x"],
  outputs: ["y"],
  attrs: {},
});

/** The result's shape. */
export type ReshapeParams = { readonly shape: readonly number[] };
/** Result dim i is operand dim permutation[i]. */
export type TransposeParams = { readonly permutation: readonly number[] };
/** The result's shape: the operand's, with dims of size 1 repeated. */
export type BroadcastParams = { readonly shape: readonly number[] };
/** The part [start, stop) of one dim. */
export type SliceParams = { readonly dim: number; readonly start: number; readonly stop: number };
/** Elements of `value` added before and after one dim. */
export type PadParams = {
  readonly dim: number;
  readonly before: number;
  readonly after: number;
  readonly value: number;
};
/** The dim along which operands are joined. */
export type ConcatParams = { readonly dim: number };

function gcd(a: number, b: number): number {
  while (b !== 0) [a, b] = [b, a % b];
  return a;
}

type MutableFactors = (string | null)[];

/** Equal leading and trailing dims correspond; used where empty dims make products meaningless. */
function endFactors(
  from: readonly number[],
  to: readonly number[],
  input: MutableFactors,
  output: MutableFactors,
): void {
  let i = 0;
  for (; i < from.length && i < to.length && from[i] === to[i]; i++) input[i] = output[i] = `d${i}`;
  let k = 1;
  for (; from.length - k >= i && to.length - k >= i && from[from.length - k] === to[to.length - k]; k++) {
    input[from.length - k] = output[to.length - k] = `e${k}`;
  }
}

/**
 * Dims that a reshape keeps are split together. Where dims are split or merged, the outermost ones may be split
 * together if every rank's part is whole in both shapes: over k ranks where k divides both.
 */
function reshapeFactors(from: readonly number[], to: readonly number[]): FactorMap {
  const input: MutableFactors = from.map(() => null);
  const output: MutableFactors = to.map(() => null);
  const divisible: Record<string, number> = {};
  if (sizeOf(from) === 0) {
    endFactors(from, to, input, output);
    return { inputs: [input], outputs: [output] };
  }
  for (const { from: ins, to: outs } of reshapeGroups(from, to)) {
    if (ins.length === 0 || outs.length === 0) continue;
    const [i, o] = [ins[0]!, outs[0]!];
    const name = `d${i}`;
    if (ins.length > 1 || outs.length > 1) {
      const even = gcd(from[i]!, to[o]!);
      if (even === 1) continue;
      divisible[name] = even;
    }
    input[i] = output[o] = name;
  }
  return { inputs: [input], outputs: [output], divisible };
}

const reshape: OpRecord<ReshapeParams> = {
  name: "reshape",
  infer(inputs, { shape }) {
    expectInputs("reshape", inputs, 1);
    expectSizes("reshape", shape);
    const x = inputs[0]!;
    if (sizeOf(x.shape) !== sizeOf(shape)) {
      throw new ShapeError(
        `reshape: ${typeText(x)} has ${sizeOf(x.shape)} elements, ${shapeText(shape)} would have ${sizeOf(shape)}`,
      );
    }
    return [{ dtype: x.dtype, shape }];
  },
  sharding: { factors: (inputs, outputs) => reshapeFactors(inputs[0]!.shape, outputs[0]!.shape), linear: "joint" },
  gradient: { rule: (b, { cotangents, inputs }) => [b.reshape(cotangents[0]!, b.shape(inputs[0]!))] },
  cost: noCost,
  lower(ctx) {
    const { shape } = ctx.outputTypes[0]!;
    const x = ctx.inputs[0]!;
    ctx.alias(0, reshapeView(x, shape) ?? reshapeView(ctx.contiguous(x), shape)!);
  },
};

const transpose: OpRecord<TransposeParams> = {
  name: "transpose",
  infer(inputs, { permutation }) {
    expectInputs("transpose", inputs, 1);
    const x = inputs[0]!;
    const sorted = permutation.toSorted((a, b) => a - b);
    if (permutation.length !== x.shape.length || !sorted.every((d, i) => d === i)) {
      throw new ShapeError(`transpose: ${shapeText(permutation)} is not a permutation of the dims of ${typeText(x)}`);
    }
    return [{ dtype: x.dtype, shape: permutation.map((d) => x.shape[d]!) }];
  },
  sharding: {
    factors(inputs, _, { permutation }) {
      const dims = dimFactors(inputs[0]!.shape.length);
      return { inputs: [dims], outputs: [permutation.map((d) => dims[d]!)] };
    },
    linear: "joint",
  },
  gradient: {
    rule: (b, { cotangents, params }) => {
      const inverse = params.permutation.map((_, i) => params.permutation.indexOf(i));
      return [b.transpose(cotangents[0]!, inverse)];
    },
  },
  cost: noCost,
  lower: (ctx) => ctx.alias(0, permuteView(ctx.inputs[0]!, ctx.params.permutation)),
};

const broadcast: OpRecord<BroadcastParams> = {
  name: "broadcast",
  infer(inputs, { shape }) {
    expectInputs("broadcast", inputs, 1);
    expectSizes("broadcast", shape);
    const x = inputs[0]!;
    if (shape.length !== x.shape.length || !x.shape.every((n, d) => n === 1 || n === shape[d])) {
      throw new ShapeError(
        `broadcast: ${typeText(x)} does not broadcast to ${shapeText(shape)}; only dims of size 1 repeat`,
      );
    }
    return [{ dtype: x.dtype, shape }];
  },
  sharding: {
    factors(inputs, outputs) {
      const dims = dimFactors(inputs[0]!.shape.length);
      const kept = dims.map((name, d) => (inputs[0]!.shape[d] === outputs[0]!.shape[d] ? name : null));
      return { inputs: [kept], outputs: [dims] };
    },
    linear: "joint",
  },
  gradient: { rule: (b, { cotangents, inputs }) => [b.sumTo(cotangents[0]!, b.shape(inputs[0]!))] },
  cost: noCost,
  lower: (ctx) => ctx.alias(0, broadcastView(ctx.inputs[0]!, ctx.outputTypes[0]!.shape)),
};

/** Identity but for one dim, which is never split. */
function exceptDim(map: FactorMap, dim: number): FactorMap {
  const without = (factors: readonly (string | null)[]) => factors.map((name, d) => (d === dim ? null : name));
  return { inputs: map.inputs.map(without), outputs: map.outputs.map(without) };
}

const slice: OpRecord<SliceParams> = {
  name: "slice",
  infer(inputs, { dim, start, stop }) {
    expectInputs("slice", inputs, 1);
    const x = inputs[0]!;
    expectDim("slice", x, dim);
    if (!Number.isInteger(start) || !Number.isInteger(stop) || start < 0 || stop < start || stop > x.shape[dim]!) {
      throw new ShapeError(`slice: [${start}, ${stop}) is not a part of dim ${dim} of ${typeText(x)}`);
    }
    return [{ dtype: x.dtype, shape: x.shape.map((n, d) => (d === dim ? stop - start : n)) }];
  },
  sharding: {
    factors(inputs, outputs, { dim }) {
      const map = identityFactors(inputs, outputs);
      return sameShape(inputs[0]!.shape, outputs[0]!.shape) ? map : exceptDim(map, dim);
    },
    linear: "joint",
  },
  gradient: {
    rule: (b, { cotangents, inputs, params: { dim, start, stop } }) => {
      const size = b.shape(inputs[0]!)[dim]!;
      return [b.pad(cotangents[0]!, dim, start, size - stop)];
    },
  },
  cost: noCost,
  lower(ctx) {
    const { dim, start, stop } = ctx.params;
    // A slice that takes everything may be split; its local part is everything too.
    const whole = ctx.globalInputs[0]!.shape[dim] === stop - start;
    const x = ctx.inputs[0]!;
    ctx.alias(0, whole ? x : sliceView(x, dim, start, stop));
  },
};

/** Writes one number to every element of a view. */
function fill<P>(ctx: LowerContext<P>, view: View, value: number): void {
  if (sizeOf(view.dims) === 0) return;
  const step = { op: "constant", dtype: view.dtype, inputs: [], attrs: { value } };
  ctx.emit(
    "elementwise",
    [],
    [view],
    elementwiseAttributes([], [step], [0], () => -1),
  );
}

const pad: OpRecord<PadParams> = {
  name: "pad",
  infer(inputs, { dim, before, after }) {
    expectInputs("pad", inputs, 1);
    const x = inputs[0]!;
    expectDim("pad", x, dim);
    expectSizes("pad", [before, after]);
    return [{ dtype: x.dtype, shape: x.shape.map((n, d) => (d === dim ? n + before + after : n)) }];
  },
  sharding: {
    factors(inputs, outputs, { dim }) {
      const map = identityFactors(inputs, outputs);
      return sameShape(inputs[0]!.shape, outputs[0]!.shape) ? map : exceptDim(map, dim);
    },
    linear: "none",
  },
  gradient: {
    rule: (b, { cotangents, inputs, params: { dim, before } }) => [
      b.slice(cotangents[0]!, dim, before, before + b.shape(inputs[0]!)[dim]!),
    ],
  },
  cost: perElement(0),
  lower(ctx) {
    const { dim, before, after, value } = ctx.params;
    const y = ctx.output(0);
    const n = y.dims[dim]!;
    fill(ctx, sliceView(y, dim, 0, before), value);
    ctx.emit("copy", [ctx.inputs[0]!], [sliceView(y, dim, before, n - after)]);
    fill(ctx, sliceView(y, dim, n - after, n), value);
  },
};

const concat: OpRecord<ConcatParams> = {
  name: "concat",
  infer(inputs, { dim }) {
    expectInputs("concat", inputs, 1, Number.POSITIVE_INFINITY);
    const x = inputs[0]!;
    expectDim("concat", x, dim);
    for (const type of inputs) {
      expectSameDType("concat", x, type);
      if (type.shape.length !== x.shape.length || !type.shape.every((n, d) => d === dim || n === x.shape[d])) {
        throw new ShapeError(`concat along dim ${dim}: ${typeText(x)} and ${typeText(type)} differ in another dim`);
      }
    }
    const size = inputs.reduce((sum, type) => sum + type.shape[dim]!, 0);
    return [{ dtype: x.dtype, shape: x.shape.map((n, d) => (d === dim ? size : n)) }];
  },
  sharding: {
    factors: (inputs, outputs, { dim }) => {
      const map = identityFactors(inputs, outputs);
      return inputs.length === 1 ? map : exceptDim(map, dim);
    },
    linear: "joint",
  },
  gradient: {
    rule: (b, { cotangents, inputs, params: { dim }, wanted }) => {
      let start = 0;
      return inputs.map((x, i) => {
        const from = start;
        start += b.shape(x)[dim]!;
        return wanted[i] ? b.slice(cotangents[0]!, dim, from, start) : null;
      });
    },
  },
  cost: (inputs, outputs) => perElement(0)(inputs, outputs),
  lower(ctx) {
    const { dim } = ctx.params;
    const y = ctx.output(0);
    let start = 0;
    for (const x of ctx.inputs) {
      const stop = start + x.dims[dim]!;
      ctx.emit("copy", [x], [sliceView(y, dim, start, stop)]);
      start = stop;
    }
  },
};

const stopGradient: OpRecord<NoParams> = {
  name: "stop_gradient",
  infer(inputs) {
    expectInputs("stop_gradient", inputs, 1);
    return [inputs[0]!];
  },
  sharding: { factors: identityFactors, linear: "joint" },
  gradient: { rule: () => [null] },
  cost: noCost,
  lower: (ctx) => ctx.alias(0, ctx.inputs[0]!),
};

export const movementOps = { reshape, transpose, broadcast, slice, pad, concat, stop_gradient: stopGradient };
