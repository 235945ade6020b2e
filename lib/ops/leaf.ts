// Ops without tensor operands: inputs, parameters, constants, index tensors and random numbers.
import type { DType } from "../core/dtype.ts";
import { DTypeError, ProgramError, ShapeError } from "../core/errors.ts";
import { shapeText } from "../core/shape.ts";
import { defineKernel } from "../ir/kernel.ts";
import type { TensorType } from "../ir/graph.ts";
import type { Attribute, LowerContext } from "../ir/lowering.ts";
import type { FactorMap, OpRecord } from "../ir/op.ts";
import {
  dimFactors,
  expectDim,
  expectInputs,
  expectShape,
  expectSizes,
  floats,
  noCost,
  perElement,
  startEntry,
  zeroGradient,
} from "./define.ts";
import { elementwiseAttributes, iotaStart } from "./expression.ts";

/** A value the caller gives at each run. */
export type InputParams = { readonly name: string; readonly dtype: DType; readonly shape: readonly number[] };
/** A model's parameter or another value that outlives runs; `id` is unique in a program. */
export type ParameterParams = { readonly id: string; readonly dtype: DType; readonly shape: readonly number[] };
/** A tensor of one repeated number. */
export type ConstantParams = { readonly value: number; readonly dtype: DType; readonly shape: readonly number[] };
/** i32 indices along a dim. */
export type IotaParams = { readonly dim: number; readonly shape: readonly number[] };
/**
 * Random numbers that depend on the key (i32 [3]: seed low, seed high, step), the site and the global index of each
 * element only. `indexed`: dims, ascending, whose indices further operands give, i32 [shape[dim]]: a sample's index in
 * the global batch, the position of a token whose sequence was reordered.
 */
export type RandomParams = {
  readonly kind: "bits" | "uniform" | "normal";
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly site: number;
  readonly indexed: readonly number[];
};

/** No operands; every dim of the result may be split. */
function leafFactors(_: readonly TensorType[], outputs: readonly TensorType[]): FactorMap {
  return { inputs: [], outputs: outputs.map((type) => dimFactors(type.shape.length)) };
}

function placed<P extends { readonly dtype: DType; readonly shape: readonly number[] }>(name: string): OpRecord<P> {
  return {
    name,
    infer(inputs, { dtype, shape }) {
      expectInputs(name, inputs, 0);
      expectSizes(name, shape);
      return [{ dtype, shape }];
    },
    sharding: { factors: leafFactors, linear: "none" },
    gradient: { rule: () => [] },
    cost: noCost,
    lower() {
      throw new ProgramError(`${name} nodes have memory of their own and are not lowered`);
    },
  };
}

const constant: OpRecord<ConstantParams> = {
  name: "constant",
  infer(inputs, { dtype, shape }) {
    expectInputs("constant", inputs, 0);
    expectSizes("constant", shape);
    return [{ dtype, shape }];
  },
  sharding: { factors: leafFactors, linear: "none" },
  gradient: { rule: () => [] },
  cost: perElement(0),
  /** One element, repeated by strides of 0. */
  lower(ctx) {
    const { value, dtype } = ctx.params;
    const step = { op: "constant", dtype, inputs: [], attrs: { value } };
    const one = ctx.temporary(dtype, []);
    ctx.emit(
      "elementwise",
      [],
      [one],
      elementwiseAttributes([], [step], [0], () => -1),
    );
    const dims = ctx.outputTypes[0]!.shape;
    ctx.alias(0, { ...one, dims: [...dims], strides: dims.map(() => 0) });
  },
};

const iota: OpRecord<IotaParams> = {
  name: "iota",
  infer(inputs, { dim, shape }) {
    expectInputs("iota", inputs, 0);
    expectSizes("iota", shape);
    expectDim("iota", { dtype: "i32", shape }, dim);
    return [{ dtype: "i32", shape }];
  },
  sharding: {
    factors: (inputs, outputs, { dim }) => ({ ...leafFactors(inputs, outputs), ordered: [`d${dim}`] }),
    linear: "none",
  },
  gradient: { rule: () => [] },
  cost: perElement(1),
  lower(ctx) {
    const step = { op: "iota", dtype: "i32", inputs: [], attrs: { dim: ctx.params.dim } } as const;
    ctx.emit("elementwise", [], [ctx.output(0)], elementwiseAttributes([], [step], [0], iotaStart(ctx)));
  },
};

export const randomKernel = defineKernel({
  name: "random",
  doc: `Counter-based random numbers, Philox4x32-10. key i32 [3] = seed low, seed high, step. Words after kind, site,
indexed: for each dim of y, two words: start (index into table, -1 for 0) and the global size of that dim. The global
linear index of an element is row-major over global sizes with index start + local index; for each dim d of y whose
bit 1 << d indexed has, an input, i32 [dims[d]], gives the index in that dim instead (inputs in the dims' order).
counter = [lo(q), hi(q), site, step], q = index / 4, key = [seed low, seed high]; lane = index % 4. kind 0: bits
(i32). 1: uniform f32 (bits >> 8) * 2^-24, in [0, 1). 2: normal, Box-Muller on the lane pairs (0,1) and (2,3), r =
sqrt(-2 log(1 - u1)), (r cos 2 pi u2, r sin 2 pi u2), in f32 by own polynomials (no contraction: same bits on every
path). Other y take the f32 number, converted.`,
  inputs: ["key", "indices*"],
  outputs: ["y"],
  attrs: { kind: "int", site: "int", indexed: "int" },
  rest: "int",
});

const randomKinds = ["bits", "uniform", "normal"] as const;

function lowerRandom(ctx: LowerContext<RandomParams>): void {
  const { kind, site, indexed, shape } = ctx.params;
  const words = shape.flatMap((size, d): Attribute[] => {
    const start = startEntry(size, ctx.outputSpecs[0]!.dims[d]!);
    return [start === null ? -1 : { table: start }, size];
  });
  ctx.emit(
    "random",
    ctx.inputs.map(ctx.contiguous),
    [ctx.output(0)],
    [randomKinds.indexOf(kind), site, indexed.reduce((bits, d) => bits + 2 ** d, 0), ...words],
  );
}

const random: OpRecord<RandomParams> = {
  name: "random",
  infer(inputs, { kind, dtype, shape, indexed }) {
    expectInputs("random", inputs, 1 + indexed.length);
    expectSizes("random", shape);
    expectShape("random", "the key", inputs[0]!, [3]);
    indexed.forEach((d, i) => {
      expectDim("random", { dtype, shape }, d);
      if (i > 0 && d <= indexed[i - 1]!) throw new ShapeError(`random: indexed dims ${shapeText(indexed)} must ascend`);
      expectShape("random", `the indices of dim ${d}`, inputs[i + 1]!, [shape[d]!]);
    });
    if (inputs.some((type) => type.dtype !== "i32")) throw new DTypeError("random: key and indices must be i32");
    if (kind === "bits" ? dtype !== "i32" : !floats.includes(dtype)) {
      throw new DTypeError(`random: ${kind} cannot be ${dtype}`);
    }
    return [{ dtype, shape }];
  },
  sharding: {
    factors(_, outputs, { indexed }) {
      const dims = dimFactors(outputs[0]!.shape.length);
      const ordered = dims.filter((_name, d) => !indexed.includes(d));
      return { inputs: [[null], ...indexed.map((d) => [dims[d]!])], outputs: [dims], ordered };
    },
    linear: "none",
  },
  gradient: zeroGradient,
  cost: (inputs, outputs) => perElement(40)(outputs, inputs),
  lower: lowerRandom,
};

export const leafOps = {
  input: placed<InputParams>("input"),
  parameter: placed<ParameterParams>("parameter"),
  constant,
  iota,
  random,
};
