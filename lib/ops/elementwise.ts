// Elementwise ops: one line each, plus cast, and `fused`, which is several of them in one pass over memory.
import { type DType, dtypes, isFloat } from "../core/dtype.ts";
import { DTypeError, ShapeError } from "../core/errors.ts";
import { sameShape } from "../core/shape.ts";
import type { Builder } from "../ir/builder.ts";
import type { TensorType } from "../ir/graph.ts";
import type { LowerContext } from "../ir/lowering.ts";
import type { Linearity, OpRecord } from "../ir/op.ts";
import { typeText } from "../ir/print.ts";
import {
  expectDType,
  expectInputs,
  expectSameDType,
  identityFactors,
  type NoParams,
  numeric,
  perElement,
  streamCost,
  zeroGradient,
} from "./define.ts";
import { type ElementStep, elementwiseAttributes, iotaStart } from "./expression.ts";

const anyFloat: readonly DType[] = ["f32", "f64", "bf16", "f16"];
const bool: readonly DType[] = ["bool"];

/** Operands have one shape and dtype. */
function expectAlike(op: string, inputs: readonly TensorType[], allowed: readonly DType[]): void {
  inputs.forEach((type, i) => {
    expectDType(op, inputs.length === 1 ? "its operand" : `operand ${i}`, type, allowed);
    expectSameDType(op, inputs[0]!, type);
    if (!sameShape(type.shape, inputs[0]!.shape)) {
      throw new ShapeError(`${op} of ${typeText(inputs[0]!)} and ${typeText(type)}: shapes differ; broadcast one`);
    }
  });
}

/** Lowers an op whose result is one scalar operation: a one-step expression. */
function lowerStep<P>(name: string): (ctx: LowerContext<P>) => void {
  return (ctx) => {
    const dtype = ctx.outputTypes[0]!.dtype;
    const operands = ctx.inputs.map((view) => view.dtype);
    const step = { op: name, dtype, inputs: operands.map((_, i) => i), attrs: {} };
    ctx.emit(
      "elementwise",
      ctx.inputs,
      [ctx.output(0)],
      elementwiseAttributes(operands, [step], [operands.length], () => -1),
    );
  };
}

interface ElementwiseSpec {
  readonly arity: number;
  readonly allowed: readonly DType[];
  readonly result?: DType;
  readonly linear?: Linearity;
  readonly flops?: number;
  readonly gradient: OpRecord<NoParams>["gradient"];
}

function elementwise(name: string, spec: ElementwiseSpec): OpRecord<NoParams> {
  return {
    name,
    infer(inputs) {
      expectInputs(name, inputs, spec.arity);
      expectAlike(name, inputs, spec.allowed);
      return [{ dtype: spec.result ?? inputs[0]!.dtype, shape: inputs[0]!.shape }];
    },
    sharding: { factors: identityFactors, linear: spec.linear ?? "none" },
    gradient: spec.gradient,
    cost: perElement(spec.flops ?? 1),
    lower: lowerStep(name),
  };
}

/** Cotangent of x from that of y = f(x). */
type UnaryGradient = <V>(b: Builder<V>, dy: V, x: V, y: V) => V;

/** A smooth function of floats; `flops` is a rough count. */
function unary(name: string, flops: number, gradient: UnaryGradient, allowed = anyFloat): OpRecord<NoParams> {
  return elementwise(name, {
    arity: 1,
    allowed,
    flops,
    gradient: { rule: (b, c) => [gradient(b, c.cotangents[0]!, c.inputs[0]!, c.outputs[0]!)] },
  });
}

/** A function that is flat between jumps. */
function step(name: string, allowed = anyFloat): OpRecord<NoParams> {
  return elementwise(name, { arity: 1, allowed, gradient: zeroGradient });
}

/** Cotangent of one operand from that of z = f(x, y). */
type BinaryGradient = <V>(b: Builder<V>, dz: V, x: V, y: V, z: V) => V;

function binary(
  name: string,
  linear: Linearity,
  left: BinaryGradient,
  right: BinaryGradient,
  allowed = numeric,
  flops = 1,
): OpRecord<NoParams> {
  return elementwise(name, {
    arity: 2,
    allowed,
    linear,
    flops,
    gradient: {
      rule: (b, { cotangents, inputs, outputs, wanted }) => {
        const args = [b, cotangents[0]!, inputs[0]!, inputs[1]!, outputs[0]!] as const;
        return [wanted[0] ? left(...args) : null, wanted[1] ? right(...args) : null];
      },
    },
  });
}

function comparison(name: string, allowed: readonly DType[]): OpRecord<NoParams> {
  return elementwise(name, { arity: 2, allowed, result: "bool", gradient: zeroGradient });
}

function logical(name: string, arity: number): OpRecord<NoParams> {
  return elementwise(name, { arity, allowed: bool, gradient: zeroGradient });
}

/** dy where x is the chosen one of a pair, half of it where both are equal. */
function chosen<V>(b: Builder<V>, dy: V, isChosen: V, x: V, y: V): V {
  const equal = b.binary("eq", x, y);
  return b.select(equal, b.mul(dy, 0.5), b.select(isChosen, dy, 0));
}

const GELU_C = Math.sqrt(2 / Math.PI);
const GELU_A = 0.044715;

/** Second derivative of the tanh form of gelu. */
function geluSecond<V>(b: Builder<V>, x: V): V {
  const square = b.mul(x, x);
  const t = b.unary("tanh", b.mul(b.mul(x, GELU_C), b.add(b.mul(square, GELU_A), 1)));
  const du = b.mul(b.add(b.mul(square, 3 * GELU_A), 1), GELU_C);
  const ddu = b.mul(x, 6 * GELU_A * GELU_C);
  const sech = b.sub(1, b.mul(t, t));
  const inner = b.sub(ddu, b.mul(b.mul(t, b.mul(du, du)), 2));
  return b.mul(sech, b.add(du, b.mul(b.mul(x, 0.5), inner)));
}

/** Second derivative of silu. */
function siluSecond<V>(b: Builder<V>, x: V): V {
  const s = b.unary("sigmoid", x);
  const slope = b.mul(s, b.sub(1, s));
  return b.mul(slope, b.add(b.mul(x, b.sub(1, b.mul(s, 2))), 2));
}

/** dx = f'(x) dy as an op of its own, so that the kernel need not keep f's insides. */
function activationGrad(name: string, of: string, second: <V>(b: Builder<V>, x: V) => V): OpRecord<NoParams> {
  return elementwise(name, {
    arity: 2,
    allowed: anyFloat,
    linear: [1],
    flops: 20,
    gradient: {
      rule: (b, { cotangents, inputs, wanted }) => {
        const [x, dy] = [inputs[0]!, inputs[1]!];
        const d = cotangents[0]!;
        return [wanted[0] ? b.mul(b.mul(d, dy), second(b, x)) : null, wanted[1] ? b.one(`${of}_grad`, [x, d]) : null];
      },
    },
  });
}

const select: OpRecord<NoParams> = {
  name: "select",
  infer(inputs) {
    expectInputs("select", inputs, 3);
    expectDType("select", "the condition", inputs[0]!, bool);
    expectAlike("select", inputs.slice(1), dtypes);
    if (!sameShape(inputs[0]!.shape, inputs[1]!.shape)) {
      throw new ShapeError(
        `select: condition ${typeText(inputs[0]!)} and values ${typeText(inputs[1]!)} differ in shape`,
      );
    }
    return [inputs[1]!];
  },
  sharding: { factors: identityFactors, linear: "none" },
  gradient: {
    rule: (b, { cotangents, inputs, wanted }) => {
      const [condition, dy] = [inputs[0]!, cotangents[0]!];
      return [null, wanted[1] ? b.select(condition, dy, 0) : null, wanted[2] ? b.select(condition, 0, dy) : null];
    },
  },
  cost: perElement(1),
  lower: lowerStep("select"),
};

/** Dtype of a cast's result. */
export type CastParams = { readonly dtype: DType };

const cast: OpRecord<CastParams> = {
  name: "cast",
  infer(inputs, { dtype }) {
    expectInputs("cast", inputs, 1);
    if (!dtypes.includes(dtype)) throw new DTypeError(`cast: ${String(dtype)} is not a dtype`);
    return [{ dtype, shape: inputs[0]!.shape }];
  },
  sharding: { factors: identityFactors, linear: "none" },
  gradient: {
    rule: (b, { cotangents, inputs }) => {
      const dtype = b.dtype(inputs[0]!);
      return [isFloat(dtype) && cotangents[0] != null ? b.cast(cotangents[0], dtype) : null];
    },
  },
  cost: perElement(1),
  lower: lowerStep("cast"),
};

/** An expression over the operands; `outputs` are value numbers (operands first, then steps). */
export type FusedParams = { readonly expression: readonly ElementStep[]; readonly outputs: readonly number[] };

/** The dtype of each value of an expression over operands of one shape; throws where a step does not fit. */
function expressionDTypes(inputs: readonly TensorType[], expression: readonly ElementStep[]): DType[] {
  const values = inputs.map((type) => type.dtype);
  const lookup: Readonly<Record<string, OpRecord<NoParams> | undefined>> = { ...simpleOps, select };
  for (const { op, dtype, inputs: operands, attrs } of expression) {
    const types = operands.map((i) => ({ dtype: values[i]!, shape: [] }));
    if (types.some((type) => type.dtype === undefined)) throw new ShapeError(`fused: ${op} reads a value not made yet`);
    const own = op === "constant" || op === "iota" ? dtype : op === "cast" ? (attrs.dtype ?? dtype) : null;
    const found = own ?? lookup[op]?.infer(types, {})[0]?.dtype ?? "nothing";
    if (found !== dtype) throw new DTypeError(`fused: ${op} gives ${String(found)}, not ${dtype}`);
    values.push(dtype);
  }
  return values;
}

const fused: OpRecord<FusedParams> = {
  name: "fused",
  infer(inputs, { expression, outputs }) {
    for (const type of inputs) {
      if (!sameShape(type.shape, inputs[0]!.shape)) {
        throw new ShapeError(`fused: ${typeText(inputs[0]!)} and ${typeText(type)} differ in shape`);
      }
    }
    if (inputs.length === 0) throw new ShapeError("fused: an expression without operands has no shape");
    const values = expressionDTypes(inputs, expression);
    return outputs.map((i) => ({ dtype: values[i]!, shape: inputs[0]!.shape }));
  },
  sharding: {
    factors(inputs, outputs, { expression }) {
      const ordered = expression.flatMap(({ op, attrs }) => (op === "iota" ? [`d${String(attrs.dim)}`] : []));
      return { ...identityFactors(inputs, outputs), ordered };
    },
    linear: "none",
  },
  gradient: { none: "it is made after differentiation" },
  cost: (inputs, outputs, { expression }) =>
    streamCost(inputs, outputs, expression.length * perElement(1)(inputs, []).flops),
  lower(ctx) {
    const { expression, outputs } = ctx.params;
    const views = outputs.map((_, i) => ctx.output(i));
    const operands = ctx.inputs.map((view) => view.dtype);
    ctx.emit("elementwise", ctx.inputs, views, elementwiseAttributes(operands, expression, outputs, iotaStart(ctx)));
  },
};

const simpleOps = {
  neg: elementwise("neg", {
    arity: 1,
    allowed: numeric,
    linear: "joint",
    gradient: { rule: (b, { cotangents }) => [b.neg(cotangents[0]!)] },
  }),
  abs: unary("abs", 1, (b, dy, x) => b.mul(dy, b.unary("sign", x)), numeric),
  sign: step("sign", numeric),
  floor: step("floor"),
  ceil: step("ceil"),
  round: step("round"),
  exp: unary("exp", 10, (b, dy, _x, y) => b.mul(dy, y)),
  log: unary("log", 10, (b, dy, x) => b.div(dy, x)),
  sqrt: unary("sqrt", 4, (b, dy, _x, y) => b.div(b.mul(dy, 0.5), y)),
  rsqrt: unary("rsqrt", 5, (b, dy, _x, y) => b.mul(b.mul(dy, -0.5), b.mul(y, b.mul(y, y)))),
  reciprocal: unary("reciprocal", 4, (b, dy, _x, y) => b.neg(b.mul(dy, b.mul(y, y)))),
  sin: unary("sin", 12, (b, dy, x) => b.mul(dy, b.unary("cos", x))),
  cos: unary("cos", 12, (b, dy, x) => b.neg(b.mul(dy, b.unary("sin", x)))),
  tanh: unary("tanh", 15, (b, dy, _x, y) => b.mul(dy, b.sub(1, b.mul(y, y)))),
  erf: unary("erf", 15, (b, dy, x) => b.mul(dy, b.mul(b.unary("exp", b.neg(b.mul(x, x))), 2 / Math.sqrt(Math.PI)))),
  sigmoid: unary("sigmoid", 12, (b, dy, _x, y) => b.mul(dy, b.mul(y, b.sub(1, y)))),
  /** 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). */
  gelu: unary("gelu", 20, (b, dy, x) => b.one("gelu_grad", [x, dy])),
  gelu_grad: activationGrad("gelu_grad", "gelu", geluSecond),
  /** x sigmoid(x). */
  silu: unary("silu", 15, (b, dy, x) => b.one("silu_grad", [x, dy])),
  silu_grad: activationGrad("silu_grad", "silu", siluSecond),
  not: logical("not", 1),
  is_finite: elementwise("is_finite", { arity: 1, allowed: anyFloat, result: "bool", gradient: zeroGradient }),
  add: binary(
    "add",
    "joint",
    (_, d) => d,
    (_, d) => d,
  ),
  sub: binary(
    "sub",
    "joint",
    (_, d) => d,
    (b, d) => b.neg(d),
  ),
  mul: binary(
    "mul",
    [0, 1],
    (b, d, _x, y) => b.mul(d, y),
    (b, d, x) => b.mul(d, x),
  ),
  div: binary(
    "div",
    [0],
    (b, d, _x, y) => b.div(d, y),
    (b, d, _x, y, z) => b.neg(b.div(b.mul(d, z), y)),
    numeric,
    4,
  ),
  /** x - y trunc(x / y): the sign is x's. */
  rem: binary(
    "rem",
    "none",
    (_, d) => d,
    (b, d, x, y, z) => b.mul(d, b.div(b.sub(z, x), y)),
    numeric,
    8,
  ),
  max: binary(
    "max",
    "none",
    (b, d, x, y) => chosen(b, d, b.binary("lt", y, x), x, y),
    (b, d, x, y) => chosen(b, d, b.binary("lt", x, y), x, y),
  ),
  min: binary(
    "min",
    "none",
    (b, d, x, y) => chosen(b, d, b.binary("lt", x, y), x, y),
    (b, d, x, y) => chosen(b, d, b.binary("lt", y, x), x, y),
  ),
  pow: binary(
    "pow",
    "none",
    // x^0 is flat even at x = 0, where y x^(y-1) is not a number.
    (b, d, x, y) => b.select(b.binary("eq", y, 0), 0, b.mul(d, b.mul(y, b.binary("pow", x, b.sub(y, 1))))),
    (b, d, x, _y, z) => b.select(b.binary("eq", x, 0), 0, b.mul(d, b.mul(z, b.unary("log", x)))),
    anyFloat,
    30,
  ),
  eq: comparison("eq", dtypes),
  ne: comparison("ne", dtypes),
  lt: comparison("lt", numeric),
  le: comparison("le", numeric),
  and: logical("and", 2),
  or: logical("or", 2),
};

export const elementwiseOps = { ...simpleOps, select, cast, fused };
