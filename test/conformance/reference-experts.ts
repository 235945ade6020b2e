// Reference evaluation of routing to experts and of what experts compute.
import type { OpParams } from "../../lib/ops/index.ts";
import { type Dense, dense } from "./dense.ts";
import type { Evaluation } from "./reference.ts";

type Rows = readonly (readonly number[])[];

/** The rows of the last dim. */
function rowsOf(x: Dense): Rows {
  const n = x.shape.at(-1)!;
  const count = x.shape.slice(0, -1).reduce((a, b) => a * b, 1);
  return Array.from({ length: count }, (_, r) => x.data.slice(r * n, (r + 1) * n));
}

function topk({ inputs, outputs, params: { count } }: Evaluation<OpParams["topk"]>): Dense[] {
  const best = rowsOf(inputs[0]!).map((row) => {
    const order = row.map((value, i) => ({ value, i }));
    const rank = (v: number): number => (Number.isNaN(v) ? Number.POSITIVE_INFINITY : v);
    const above = (a: number, b: number): number => (rank(a) === rank(b) ? Number(Number.isNaN(b)) : 0);
    order.sort((a, b) => (rank(b.value) > rank(a.value) ? 1 : rank(b.value) < rank(a.value) ? -1 : 0) || a.i - b.i);
    order.sort((a, b) => above(a.value, b.value) - above(b.value, a.value));
    return order.slice(0, count);
  });
  const shape = outputs[0]!.shape;
  return [
    dense(
      outputs[0]!.dtype,
      shape,
      best.flatMap((row) => row.map(({ value }) => value)),
    ),
    dense(
      "i32",
      shape,
      best.flatMap((row) => row.map(({ i }) => i)),
    ),
  ];
}

function capacity({ inputs, params }: Evaluation<OpParams["expert_capacity"]>): Dense[] {
  const ids = inputs[0]!;
  const [b, t, k] = ids.shape as readonly [number, number, number];
  const kept = [...ids.data];
  for (let sample = 0; sample < b; sample++) {
    const taken = new Map<number, number>();
    for (let j = 0; j < k; j++) {
      for (let i = 0; i < t; i++) {
        const at = (sample * t + i) * k + j;
        const id = kept[at]!;
        const fits = id >= 0 && id < params.experts && (taken.get(id) ?? 0) < params.capacity;
        if (fits) taken.set(id, (taken.get(id) ?? 0) + 1);
        else kept[at] = -1;
      }
    }
  }
  return [dense("i32", ids.shape, kept)];
}

function sort({ inputs, params: { experts } }: Evaluation<OpParams["expert_sort"]>): Dense[] {
  const ids = inputs[0]!;
  const key = (id: number): number => (id >= 0 && id < experts ? id : experts);
  const order = ids.data.map((_, i) => i).sort((a, b) => key(ids.data[a]!) - key(ids.data[b]!) || a - b);
  const place = new Array<number>(order.length);
  order.forEach((row, i) => {
    place[row] = i;
  });
  const counts = Array.from({ length: experts }, (_, e) => ids.data.filter((id) => id === e).length);
  return [dense("i32", ids.shape, order), dense("i32", ids.shape, place), dense("i32", [experts], counts)];
}

/** Row index[i] of the rows; zeros where there is none. */
function permuted(rows: Rows, index: readonly number[], width: number): number[] {
  return index.flatMap((i) => rows[i] ?? new Array<number>(width).fill(0));
}

function dispatch({ inputs, outputs }: Evaluation<unknown>): Dense[] {
  const [x, order, , counts] = inputs as [Dense, Dense, Dense, Dense];
  const choices = x.shape.length === 3 ? order.shape[2]! : 1;
  const rows = rowsOf(x).flatMap((row) => new Array<readonly number[]>(choices).fill(row));
  return [dense(x.dtype, outputs[0]!.shape, permuted(rows, order.data, x.shape.at(-1)!)), counts];
}

function giveBack({ inputs, outputs }: Evaluation<unknown>): Dense[] {
  const [rows, , place] = inputs as [Dense, Dense, Dense];
  return [dense(rows.dtype, outputs[0]!.shape, permuted(rowsOf(rows), place.data, rows.shape[3]!))];
}

/** The group of each of so many rows: undefined behind the last one. */
function groupsOf(counts: readonly number[], rows: number): (number | undefined)[] {
  const groups = counts.flatMap((n, g) => new Array<number>(Math.max(n, 0)).fill(g));
  return Array.from({ length: rows }, (_, r) => groups[r]);
}

function groupedMatmul({ inputs, outputs, params, inputStarts }: Evaluation<OpParams["grouped_matmul"]>): Dense[] {
  const [x, counts, w] = inputs as [Dense, Dense, Dense];
  const [n, c] = [outputs[0]!.shape[3]!, x.shape[3]!];
  const rows = rowsOf(x);
  const groups = groupsOf(counts.data, rows.length);
  const weight = (e: number, i: number, j: number): number =>
    params.turned ? w.data[(e * c + j) * n + i]! : w.data[(e * n + i) * c + j]!;
  const y = rows.flatMap((row, r) => {
    const e = (groups[r] ?? -1) - inputStarts[2]![0]!;
    const inside = groups[r] !== undefined && e >= 0 && e < w.shape[0]!;
    return Array.from({ length: n }, (_, i) => (inside ? row.reduce((sum, v, j) => sum + v * weight(e, i, j), 0) : 0));
  });
  return [dense(outputs[0]!.dtype, outputs[0]!.shape, y)];
}

function groupedMatmulGrad({ inputs, outputs, outputStarts }: Evaluation<unknown>): Dense[] {
  const [a, b, counts] = inputs as [Dense, Dense, Dense];
  const [e, m, n] = outputs[0]!.shape as readonly [number, number, number];
  const d = new Array<number>(e * m * n).fill(0);
  const [left, right] = [rowsOf(a), rowsOf(b)];
  groupsOf(counts.data, left.length).forEach((g, r) => {
    const own = (g ?? -1) - outputStarts[0]![0]!;
    if (g === undefined || own < 0 || own >= e) return;
    for (let i = 0; i < m; i++) {
      for (let j = 0; j < n; j++) d[(own * m + i) * n + j]! += left[r]![i]! * right[r]![j]!;
    }
  });
  return [dense(outputs[0]!.dtype, outputs[0]!.shape, d)];
}

function erf(x: number): number {
  // The Maclaurin series: exact enough for the small arguments of the cases.
  let term = x;
  let sum = x;
  for (let n = 1; n < 60; n++) {
    term *= (-x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
const gauss = (x: number): number => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);
const inner = (x: number): number => 2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3);
const innerSlope = (x: number): number => 2 * Math.sqrt(2 / Math.PI) * (1 + 3 * 0.044715 * x * x);

/** Each activation and its derivative. */
const activations = {
  silu: [(x: number) => x * sigmoid(x), (x: number) => sigmoid(x) * (1 + x * (1 - sigmoid(x)))],
  gelu_new: [
    (x: number) => x * sigmoid(inner(x)),
    (x: number) => sigmoid(inner(x)) * (1 + x * (1 - sigmoid(inner(x))) * innerSlope(x)),
  ],
  gelu: [
    (x: number) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
    (x: number) => 0.5 * (1 + erf(x / Math.SQRT2)) + x * gauss(x),
  ],
  relu: [(x: number) => Math.max(x, 0), (x: number) => (x > 0 ? 1 : 0)],
} as const;

/** Elements of rows that exist, f(i); zeros behind. */
function onRows(x: Dense, counts: Dense, f: (i: number) => number): Dense {
  const width = x.shape[3]!;
  const rows = counts.data.reduce((sum, n) => sum + Math.max(n, 0), 0);
  return dense(
    x.dtype,
    x.shape,
    x.data.map((_, i) => (i < rows * width ? f(i) : 0)),
  );
}

function gate({ inputs, params }: Evaluation<OpParams["expert_gate"]>): Dense[] {
  const [a, b, counts] = inputs as [Dense, Dense, Dense];
  const [value] = activations[params.activation];
  return [onRows(a, counts, (i) => value(a.data[i]!) * b.data[i]!)];
}

function gateGrad({ inputs, params }: Evaluation<OpParams["expert_gate"]>): Dense[] {
  const [a, b, counts, dy] = inputs as [Dense, Dense, Dense, Dense];
  const [value, slope] = activations[params.activation];
  return [
    onRows(a, counts, (i) => dy.data[i]! * b.data[i]! * slope(a.data[i]!)),
    onRows(a, counts, (i) => dy.data[i]! * value(a.data[i]!)),
  ];
}

function combine({ inputs, outputs }: Evaluation<unknown>): Dense[] {
  const [x, weights] = inputs as [Dense, Dense];
  const [, , k, w] = x.shape as readonly [number, number, number, number];
  const y = outputs[0]!.shape.reduce((a, b) => a * b, 1);
  const sums = Array.from({ length: y }, (_, at) => {
    const [token, i] = [Math.floor(at / w), at % w];
    return Array.from({ length: k }, (_, j) => x.data[(token * k + j) * w + i]! * weights.data[token * k + j]!).reduce(
      (a, b) => a + b,
      0,
    );
  });
  return [dense(outputs[0]!.dtype, outputs[0]!.shape, sums)];
}

function combineGrad({ inputs, outputs }: Evaluation<unknown>): Dense[] {
  const [rows, dy] = [rowsOf(inputs[0]!), rowsOf(inputs[1]!)];
  const k = inputs[0]!.shape[2]!;
  const dots = rows.map((row, r) => row.reduce((sum, v, i) => sum + v * dy[Math.floor(r / k)]![i]!, 0));
  return [dense(outputs[0]!.dtype, outputs[0]!.shape, dots)];
}

/** What a single rank exchanges with itself. */
function exchange({ inputs, outputs }: Evaluation<unknown>): Dense[] {
  const [x, counts] = inputs as [Dense, Dense];
  const width = x.shape[3]!;
  const come = counts.data.reduce((sum, n) => sum + Math.max(n, 0), 0) * width;
  const size = outputs[0]!.shape.reduce((a, b) => a * b, 1);
  const data = Array.from({ length: size }, (_, i) => (i < Math.min(come, x.data.length) ? x.data[i]! : 0));
  return [dense(x.dtype, outputs[0]!.shape, data)];
}

function arrivals({ inputs, outputs }: Evaluation<unknown>): Dense[] {
  const rows = rowsOf(inputs[0]!);
  const sums = outputs[0]!.shape.flatMap((n) =>
    Array.from({ length: n }, (_, e) => rows.reduce((s, row) => s + row[e]!, 0)),
  );
  return [dense("i32", outputs[0]!.shape, sums)];
}

export const expertReference = {
  topk,
  expert_capacity: capacity,
  expert_sort: sort,
  expert_dispatch: dispatch,
  expert_return: giveBack,
  expert_counts: ({ inputs, outputs, params: { ranks } }: Evaluation<OpParams["expert_counts"]>): Dense[] => [
    dense("i32", outputs[0]!.shape, new Array<readonly number[]>(ranks).fill(inputs[0]!.data).flat()),
  ],
  expert_arrivals: arrivals,
  expert_exchange: exchange,
  grouped_matmul: groupedMatmul,
  grouped_matmul_grad: groupedMatmulGrad,
  expert_gate: gate,
  expert_gate_grad: gateGrad,
  expert_combine: combine,
  expert_combine_grad: combineGrad,
};
