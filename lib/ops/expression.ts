// Elementwise expressions: how scalar operations become the words of the elementwise kernel.
import { type DType, dtypeCode } from "../core/dtype.ts";
import { ProgramError } from "../core/errors.ts";
import type { Params } from "../ir/graph.ts";
import { defineKernel } from "../ir/kernel.ts";
import type { Attribute, LowerContext } from "../ir/lowering.ts";
import { startEntry } from "./define.ts";

export const elementwiseKernel = defineKernel({
  name: "elementwise",
  doc: `Runs a straight-line expression for every element. All operands have the output's rank and dims; inputs may
repeat (stride 0). Words after count: count instructions of 5 words [eop, type, a, b, c], then the number of outputs,
then one value number per output. Values 0..inputs-1 are the inputs; instruction k makes value inputs+k. type: 0 f32,
1 f64, 2 i32, the type of the operands a, b, c (for select: of b and c); for cast the type of the result, converted
from a's own type. bf16 and f16 load as f32, bool as i32 0/1, and stores round to nearest even (f32 to bool: not
zero). Comparisons, and, or, not and is_finite give i32 0/1. const: a is an index into floats. iota: a is a dim, the
value is the index in that dim plus table[b] (b = -1: plus nothing). round_to: rounds an f32 to dtype b and back. No
contraction to fused multiply-add. i32 add, sub and mul wrap around, div truncates, division by zero gives 0. rem has
the sign of a (fmod); round is half to even; max, min and sign give NaN for NaN; cast to i32 truncates and saturates,
NaN gives 0. gelu is the tanh form; gelu_grad and silu_grad take a = x, b = dy and give dy times the derivative at x.
At most 256 values in all and 64 outputs.`,
  inputs: ["x*"],
  outputs: ["y*"],
  attrs: { count: "int" },
  rest: "int",
});

/** Scalar operations of the elementwise kernel: code, number of operands. */
export const elementOps = {
  const: { code: 0, arity: 0 },
  iota: { code: 1, arity: 0 },
  cast: { code: 2, arity: 1 },
  round_to: { code: 3, arity: 1 },
  neg: { code: 4, arity: 1 },
  abs: { code: 5, arity: 1 },
  sign: { code: 6, arity: 1 },
  floor: { code: 7, arity: 1 },
  ceil: { code: 8, arity: 1 },
  round: { code: 9, arity: 1 },
  exp: { code: 10, arity: 1 },
  log: { code: 11, arity: 1 },
  sqrt: { code: 12, arity: 1 },
  rsqrt: { code: 13, arity: 1 },
  reciprocal: { code: 14, arity: 1 },
  sin: { code: 15, arity: 1 },
  cos: { code: 16, arity: 1 },
  tanh: { code: 17, arity: 1 },
  erf: { code: 18, arity: 1 },
  sigmoid: { code: 19, arity: 1 },
  gelu: { code: 20, arity: 1 },
  gelu_grad: { code: 21, arity: 2 },
  silu: { code: 22, arity: 1 },
  silu_grad: { code: 23, arity: 2 },
  not: { code: 24, arity: 1 },
  is_finite: { code: 25, arity: 1 },
  add: { code: 26, arity: 2 },
  sub: { code: 27, arity: 2 },
  mul: { code: 28, arity: 2 },
  div: { code: 29, arity: 2 },
  rem: { code: 30, arity: 2 },
  max: { code: 31, arity: 2 },
  min: { code: 32, arity: 2 },
  pow: { code: 33, arity: 2 },
  eq: { code: 34, arity: 2 },
  ne: { code: 35, arity: 2 },
  lt: { code: 36, arity: 2 },
  le: { code: 37, arity: 2 },
  and: { code: 38, arity: 2 },
  or: { code: 39, arity: 2 },
  select: { code: 40, arity: 3 },
} as const;

/** Name of a scalar operation of the elementwise kernel. */
export type ElementOp = keyof typeof elementOps;

/**
 * One step of an expression: an elementwise op (or `cast`, `constant`, `iota`) on values numbered inputs first, then
 * steps. `dtype` is the result's; `attrs` are the op's params (constant: `value`; iota: `dim`).
 */
export type ElementStep = {
  readonly op: string;
  readonly dtype: DType;
  readonly inputs: readonly number[];
  readonly attrs: Params;
};

/** The three types the kernel computes in. */
const compute = { f32: 0, f64: 1, i32: 2 } as const;

function computeType(dtype: DType): number {
  return dtype === "f64" ? compute.f64 : dtype === "i32" || dtype === "bool" ? compute.i32 : compute.f32;
}

/**
 * Collects instructions; the expression's value numbers are mapped to the kernel's, which has extra steps for rounding.
 */
class Assembler {
  readonly words: Attribute[] = [];
  private readonly numbers: number[];
  private readonly dtypes: DType[];
  private readonly inputs: number;
  private readonly start: (dim: number) => Attribute;
  private count = 0;

  constructor(inputs: readonly DType[], start: (dim: number) => Attribute) {
    this.inputs = inputs.length;
    this.numbers = inputs.map((_, i) => i);
    this.dtypes = [...inputs];
    this.start = start;
  }

  private push(op: ElementOp, type: number, ...operands: Attribute[]): number {
    this.words.push(elementOps[op].code, type, operands[0] ?? 0, operands[1] ?? 0, operands[2] ?? 0);
    return this.inputs + this.count++;
  }

  private cast(value: number, from: DType, to: DType): number {
    if (to === "bool" && from !== "bool") {
      const type = computeType(from);
      return this.push("ne", type, value, this.push("const", type, { float: 0 }));
    }
    return computeType(from) === computeType(to) ? value : this.push("cast", computeType(to), value);
  }

  private compute(step: ElementStep): number {
    const operands = step.inputs.map((i) => this.numbers[i]!);
    if (step.op === "constant") {
      return this.push("const", computeType(step.dtype), { float: step.attrs.value as number });
    }
    if (step.op === "iota") {
      const dim = step.attrs.dim as number;
      return this.push("iota", compute.i32, dim, this.start(dim));
    }
    if (step.op === "cast") return this.cast(operands[0]!, this.dtypes[step.inputs[0]!]!, step.dtype);
    if (!(step.op in elementOps)) throw new ProgramError(`${step.op} is not an elementwise op`);
    // The last operand has the type the op works in: select's first is its condition.
    const dtype = this.dtypes[step.inputs.at(-1)!]!;
    return this.push(step.op as ElementOp, computeType(dtype), ...operands);
  }

  /** Adds a step. A narrow result that later steps read is rounded as its store would round it. */
  step(step: ElementStep, readAgain: boolean): void {
    let number = this.compute(step);
    const narrow = step.dtype === "bf16" || step.dtype === "f16";
    if (narrow && readAgain) number = this.push("round_to", compute.f32, number, dtypeCode(step.dtype));
    this.numbers.push(number);
    this.dtypes.push(step.dtype);
  }

  finish(outputs: readonly number[]): Attribute[] {
    return [this.count, ...this.words, outputs.length, ...outputs.map((i) => this.numbers[i]!)];
  }
}

/**
 * Attributes of the elementwise kernel for an expression over inputs of these dtypes. A chain gives the same bits as
 * its ops one by one. `start` gives the word for where this device's part of a dim begins (an index into the table, or
 * -1).
 */
export function elementwiseAttributes(
  inputs: readonly DType[],
  steps: readonly ElementStep[],
  outputs: readonly number[],
  start: (dim: number) => Attribute,
): Attribute[] {
  const assembler = new Assembler(inputs, start);
  const read = new Set(steps.flatMap((step) => step.inputs));
  steps.forEach((step, k) => {
    assembler.step(step, read.has(inputs.length + k));
  });
  return assembler.finish(outputs);
}

/** The word of iota steps for where this device's part of a dim of output 0 begins. */
export function iotaStart<P>(ctx: LowerContext<P>): (dim: number) => Attribute {
  return (dim) => {
    const entry = startEntry(ctx.globalOutputs[0]!.shape[dim]!, ctx.outputSpecs[0]!.dims[dim]!);
    return entry === null ? -1 : { table: entry };
  };
}
