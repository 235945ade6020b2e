// The oracle of every op: naive float64 evaluation in plain TypeScript, written from the definitions.
import { ProgramError } from "../../lib/core/errors.ts";
import { rowMajorStrides, type Shape, sizeOf } from "../../lib/core/shape.ts";
import type { Params, TensorType } from "../../lib/ir/graph.ts";
import { parseEquation } from "../../lib/ops/contraction.ts";
import type { ElementStep } from "../../lib/ops/expression.ts";
import type { OpName, OpParams } from "../../lib/ops/index.ts";
import { at, build, type Dense, dense, full, indices, join, narrow, roundTo } from "./dense.ts";
import { expertReference } from "./reference-experts.ts";
import {
  attentionReference,
  lossReference,
  normReference,
  optimizerReference,
  randomReference,
} from "./reference-nn.ts";
import { floatFunctions, intFunctions } from "./scalar.ts";

/** One evaluation. Types may be those of a shard: `starts` says where each dim begins in the whole. */
export interface Evaluation<P> {
  readonly inputs: readonly Dense[];
  readonly outputs: readonly TensorType[];
  readonly params: P;
  readonly inputStarts: readonly (readonly number[])[];
  readonly outputStarts: readonly (readonly number[])[];
}

export type Reference<P> = (evaluation: Evaluation<P>) => Dense[];

type Elementwise = Exclude<keyof typeof floatFunctions, "select">;

/** Applies a scalar operation to operands of one shape. */
function scalarOp(op: string, inputs: readonly Dense[], output: TensorType): Dense {
  const last = inputs.at(-1)!;
  const table: Readonly<Record<string, ((...x: number[]) => number) | undefined>> =
    last.dtype === "i32" ? { ...floatFunctions, ...intFunctions } : floatFunctions;
  const f = table[op];
  if (f === undefined) throw new ProgramError(`the reference has no elementwise ${op}`);
  return dense(
    output.dtype,
    output.shape,
    last.data.map((_, i) => f(...inputs.map((x) => x.data[i]!))),
  );
}

function elementwise(op: string): Reference<unknown> {
  return ({ inputs, outputs }) => [scalarOp(op, inputs, outputs[0]!)];
}

function cast(x: Dense, type: TensorType): Dense {
  const toInt = type.dtype === "i32";
  const saturate = (v: number): number =>
    Number.isNaN(v) ? 0 : Math.min(Math.max(Math.trunc(v), -(2 ** 31)), 2 ** 31 - 1);
  return dense(
    type.dtype,
    x.shape,
    x.data.map((v) => (toInt ? saturate(v) : roundTo(type.dtype, v))),
  );
}

function iota({ shape }: TensorType, dim: number, start: number): Dense {
  return build("i32", shape, (index) => index[dim]! + start);
}

function fused({ inputs, outputs, params, outputStarts }: Evaluation<OpParams["fused"]>): Dense[] {
  const { shape } = inputs[0]!;
  const values = [...inputs];
  const run = ({ op, dtype, inputs: reads, attrs }: ElementStep): Dense => {
    const type = { dtype, shape };
    if (op === "constant") return full(dtype, shape, attrs.value as number);
    if (op === "iota") return iota(type, attrs.dim as number, outputStarts[0]![attrs.dim as number]!);
    const operands = reads.map((i) => values[i]!);
    return op === "cast" ? cast(operands[0]!, type) : scalarOp(op, operands, type);
  };
  for (const step of params.expression) values.push(run(step));
  return params.outputs.map((v, i) => ({ ...values[v]!, dtype: outputs[i]!.dtype }));
}

const extremes = { sum: 0, max: Number.NEGATIVE_INFINITY, min: Number.POSITIVE_INFINITY } as const;

function reduce(kind: "sum" | "max" | "min"): Reference<OpParams["reduce_sum"]> {
  const f = { sum: (a: number, b: number) => a + b, max: Math.max, min: Math.min }[kind];
  return ({ inputs, outputs, params: { dims } }) => {
    const x = inputs[0]!;
    const [low, high] = [-(2 ** 31), 2 ** 31 - 1];
    const start = x.dtype !== "i32" ? extremes[kind] : { sum: 0, max: low, min: high }[kind];
    const sums = new Map<string, number>();
    for (const index of indices(x.shape)) {
      const key = index.map((i, d) => (dims.includes(d) ? 0 : i)).join();
      sums.set(key, f(sums.get(key) ?? start, at(x, index)));
    }
    const wrap = (v: number): number => (x.dtype === "i32" ? v | 0 : v);
    return [build(x.dtype, outputs[0]!.shape, (index) => wrap(sums.get(index.join()) ?? start))];
  };
}

/** Rows of the last dim, each mapped to a row. */
function mapRows(x: Dense, f: (row: readonly number[], r: number) => number[]): Dense {
  const n = x.shape.at(-1)!;
  const rows = n === 0 ? 0 : x.data.length / n;
  return dense(x.dtype, x.shape, Array.from({ length: rows }, (_, r) => f(x.data.slice(r * n, (r + 1) * n), r)).flat());
}

function softmaxRow(row: readonly number[]): number[] {
  const max = Math.max(...row);
  const exps = row.map((v) => Math.exp(v - max));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((v) => v / sum);
}

function softmaxGrad({ inputs }: Evaluation<unknown>): Dense[] {
  const [y, dy] = [inputs[0]!, inputs[1]!];
  const n = y.shape.at(-1)!;
  return [
    mapRows(y, (row, r) => {
      const d = dy.data.slice(r * n, (r + 1) * n);
      const s = row.reduce((sum, v, i) => sum + v * d[i]!, 0);
      return row.map((v, i) => v * (d[i]! - s));
    }),
  ];
}

function einsum({ inputs, outputs, params }: Evaluation<OpParams["einsum"]>): Dense[] {
  const { a, b, out } = parseEquation(params.equation);
  const [x, y, type] = [inputs[0]!, inputs[1]!, outputs[0]!];
  const labels = [...out, ...a.filter((label) => !out.includes(label))];
  const sizes = labels.map((label) => (a.includes(label) ? x.shape[a.indexOf(label)]! : y.shape[b.indexOf(label)]!));
  const stridesOf = (names: readonly string[], shape: Shape): number[] =>
    labels.map((label) => (names.includes(label) ? rowMajorStrides(shape)[names.indexOf(label)]! : 0));
  const steps = [stridesOf(a, x.shape), stridesOf(b, y.shape), stridesOf(out, type.shape)] as const;
  const sums = new Array<number>(sizeOf(type.shape)).fill(0);
  const add = (d: number, i: number, j: number, k: number): void => {
    if (d === labels.length) {
      sums[k]! += x.data[i]! * y.data[j]!;
      return;
    }
    for (let n = 0; n < sizes[d]!; n++) add(d + 1, i + n * steps[0][d]!, j + n * steps[1][d]!, k + n * steps[2][d]!);
  };
  add(0, 0, 0, 0);
  return [dense(type.dtype, type.shape, sums)];
}

function pad({ inputs, outputs, params: { dim, before, value } }: Evaluation<OpParams["pad"]>): Dense[] {
  const x = inputs[0]!;
  return [
    build(x.dtype, outputs[0]!.shape, (index) => {
      const i = index[dim]! - before;
      return i < 0 || i >= x.shape[dim]!
        ? value
        : at(
            x,
            index.map((k, d) => (d === dim ? i : k)),
          );
    }),
  ];
}

function transpose({ inputs, outputs, params: { permutation } }: Evaluation<OpParams["transpose"]>): Dense[] {
  const from = (index: readonly number[]): number[] => index.map((_, d) => index[permutation.indexOf(d)]!);
  return [build(inputs[0]!.dtype, outputs[0]!.shape, (index) => at(inputs[0]!, from(index)))];
}

function broadcast({ inputs, outputs }: Evaluation<unknown>): Dense[] {
  const x = inputs[0]!;
  return [
    build(x.dtype, outputs[0]!.shape, (index) =>
      at(
        x,
        index.map((i, d) => (x.shape[d] === 1 ? 0 : i)),
      ),
    ),
  ];
}

function slice({ inputs, outputs, params: { dim, start } }: Evaluation<OpParams["slice"]>): Dense[] {
  return [narrow(inputs[0]!, dim, start, start + outputs[0]!.shape[dim]!)];
}

function embedding({ inputs, outputs, inputStarts }: Evaluation<unknown>): Dense[] {
  const [table, ids] = [inputs[0]!, inputs[1]!];
  return [
    build(table.dtype, outputs[0]!.shape, (index) => {
      const row = at(ids, index.slice(0, -1)) - inputStarts[0]![0]!;
      return row >= 0 && row < table.shape[0]! ? at(table, [row, index.at(-1)!]) : 0;
    }),
  ];
}

function embeddingGrad({ inputs, outputs, outputStarts }: Evaluation<unknown>): Dense[] {
  const [dy, ids] = [inputs[0]!, inputs[1]!];
  const [rows, width] = outputs[0]!.shape as readonly [number, number];
  const data = new Array<number>(rows * width).fill(0);
  for (const index of indices(dy.shape)) {
    const row = at(ids, index.slice(0, -1)) - outputStarts[0]![0]!;
    if (row >= 0 && row < rows) data[row * width + index.at(-1)!]! += at(dy, index);
  }
  return [dense(outputs[0]!.dtype, outputs[0]!.shape, data)];
}

const same: Reference<unknown> = ({ inputs, outputs }) => [{ ...inputs[0]!, shape: outputs[0]!.shape }];

function fed(): never {
  throw new ProgramError("inputs and parameters are given, not computed");
}

const elementwiseReference = Object.fromEntries(
  Object.keys(floatFunctions).map((op) => [op, elementwise(op)]),
) as Readonly<Record<Elementwise, Reference<unknown>>>;

/** The reference of every op; leaving one out does not compile. */
export const references: { readonly [Name in OpName]: Reference<OpParams[Name]> } = {
  input: fed,
  parameter: fed,
  constant: ({ outputs, params: { dtype, value } }) => [full(dtype, outputs[0]!.shape, roundTo(dtype, value))],
  iota: ({ outputs, params: { dim }, outputStarts }) => [iota(outputs[0]!, dim, outputStarts[0]![dim]!)],
  random: randomReference,
  ...elementwiseReference,
  select: elementwise("select"),
  cast: ({ inputs, outputs }) => [cast(inputs[0]!, outputs[0]!)],
  fused,
  reshape: same,
  transpose,
  broadcast,
  slice,
  pad,
  concat: ({ inputs, params: { dim } }) => [join(inputs, dim)],
  stop_gradient: same,
  reduce_sum: reduce("sum"),
  reduce_max: reduce("max"),
  reduce_min: reduce("min"),
  softmax: ({ inputs }) => [mapRows(inputs[0]!, softmaxRow)],
  softmax_grad: softmaxGrad,
  einsum,
  ...normReference,
  embedding,
  embedding_grad: embeddingGrad,
  ...lossReference,
  ...attentionReference,
  ...optimizerReference,
  ...expertReference,
  reshard: same,
  assign: ({ inputs }) => [inputs[1]!],
  all_reduce: same,
  all_gather: same,
  reduce_scatter: same,
  all_to_all: same,
  shard_slice: same,
  bucket: ({ inputs }) => [...inputs],
  broadcast_from: same,
  ring_shift: same,
};

const zeros = (types: readonly TensorType[]): number[][] => types.map(({ shape }) => shape.map(() => 0));

/** Evaluates one op on whole tensors. */
export function evaluateOp(
  op: string,
  inputs: readonly Dense[],
  outputs: readonly TensorType[],
  params: Params,
): Dense[] {
  const evaluation = { inputs, outputs, params, inputStarts: zeros(inputs), outputStarts: zeros(outputs) };
  return evaluatePart(op, evaluation);
}

/** Evaluates one op on the shards that the evaluation names. */
export function evaluatePart(op: string, evaluation: Evaluation<Params>): Dense[] {
  // The node's params are those its record was inferred from.
  const reference = (references as Readonly<Record<string, Reference<never>>>)[op];
  if (reference === undefined) throw new ProgramError(`the reference has no op ${op}`);
  const results = reference(evaluation as Evaluation<never>);
  results.forEach((result, i) => {
    if (result.data.length !== sizeOf(result.shape)) throw new ProgramError(`${op}: result ${i} has the wrong size`);
  });
  return results;
}
