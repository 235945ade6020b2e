// Routing tokens to experts: the best few of a row, capacity, the order by expert, and the ways there and back.
// Dims: b samples, t tokens, k choices of a token, w width, e experts.
//
// Rows that were dispatched lie in an order of the device's own (spec.routed): all rows of its first expert, then those
// of the next. Over an axis that splits the experts, they lie with their experts, in as many rows as could ever come.
import { ShapeError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { Builder } from "../ir/builder.ts";
import type { TensorType } from "../ir/graph.ts";
import { defineKernel } from "../ir/kernel.ts";
import type { LowerContext, TableEntry, View } from "../ir/lowering.ts";
import { batchAxes } from "../ir/mesh.ts";
import type { LocalBuilder, OpRecord } from "../ir/op.ts";
import { typeText } from "../ir/print.ts";
import { axisName, type ValueSpec } from "../ir/spec.ts";
import { collapseView } from "../ir/view.ts";
import {
  expectDType,
  expectInputs,
  expectLastDim,
  expectRank,
  expectShape,
  flatView,
  floats,
  outputAs,
  perElement,
  rowDims,
  rowsView,
  streamCost,
  unitStride,
  zeroGradient,
} from "./define.ts";

export const topkKernel = defineKernel({
  name: "topk",
  doc: `values[r,k] = the k largest of each row x[r,n], largest first, and their indices (i32); of equal ones the first
comes first; NaN is larger than any number. Unit stride in n and k, k <= n. f32, f64, bf16, f16.`,
  inputs: ["x"],
  outputs: ["values", "indices"],
  attrs: {},
});

export const expertCapacityKernel = defineKernel({
  name: "expert_capacity",
  doc: `kept[b,t,k] = ids[b,t,k], or -1 where \`capacity\` choices of the same expert come before in the sample b: first
choices (k = 0) of all t in order, then second ones, ... Ids outside [0, experts) give -1. i32, contiguous.`,
  inputs: ["ids"],
  outputs: ["kept"],
  attrs: { experts: "int", capacity: "int" },
});

export const expertSortKernel = defineKernel({
  name: "expert_sort",
  doc: `order[n] = the numbers 0 .. n-1 sorted by ids[n], equal ones ascending, those with an id outside [0, e) last;
place[n] is its inverse; counts[e] says how often each id is there. i32, contiguous.`,
  inputs: ["ids"],
  outputs: ["order", "place", "counts"],
  attrs: {},
});

export const permuteRowsKernel = defineKernel({
  name: "permute_rows",
  doc: `y[i,w] = row index[i] of x[m,k,w], counted row-major in m and k (any strides there, 0 too); zeros where index[i]
is no row. index i32 [n]; unit stride in w; f32, f64, bf16, f16.`,
  inputs: ["x", "index"],
  outputs: ["y"],
  attrs: {},
});

export const expertExchangeKernel = defineKernel({
  name: "expert_exchange",
  doc: `Rows of x[m,w] go to the ranks of their experts, and back. counts i32 [ranks, e], alike on all ranks: how
many rows of each expert a rank brings, below 0 counts as 0; rank r has as many experts as table[owners + r] says, in
order. back 0: x holds this rank's rows expert after expert; y those of its own experts, expert after expert, in each
the ranks' in order. back 1: x and y exchanged. Rows that do not fit fall away; rows of y behind the last one are
zeros. At most table[most + r] rows go from rank r to another one (back 1: come back to it): what a bounded exchange
has room for. Contiguous.`,
  inputs: ["x", "counts"],
  outputs: ["y"],
  attrs: { group: "table", owners: "int", back: "int", most: "int" },
});

/** How many of a row. */
export type TopkParams = { readonly count: number };
/** Most rows of a sample for one expert. */
export type CapacityParams = { readonly experts: number; readonly capacity: number };
/** Number of experts. */
export type SortParams = { readonly experts: number };
/** The axis that splits the experts; `capacity`: most rows of a sample for one expert, where that is bounded. */
export type DispatchParams = { readonly axis: string; readonly capacity?: number };
/** `shape`: of the result. */
export type ExchangeParams = {
  readonly axes: readonly string[];
  readonly back: boolean;
  readonly shape: readonly number[];
};
/** How many ranks' counts are joined. */
export type CountsParams = { readonly axes: readonly string[]; readonly ranks: number };

const inserted = { none: "it is inserted after differentiation" } as const;

/** 1 where a chosen index is that of the column: [..., k, n]. */
function chosen<V>(b: Builder<V>, indices: V, n: number): V {
  const rows = b.shape(indices);
  const own = b.reshape(indices, [...rows, 1]);
  const columns = b.one("iota", [], { dim: rows.length, shape: [...rows.map(() => 1), n] });
  return b.binary("eq", own, columns);
}

const topk: OpRecord<TopkParams> = {
  name: "topk",
  infer(inputs, { count }) {
    expectInputs("topk", inputs, 1);
    const x = inputs[0]!;
    expectDType("topk", "its operand", x, floats);
    expectLastDim("topk", "its operand", x);
    if (!Number.isInteger(count) || count < 1 || count > x.shape.at(-1)!) {
      throw new ShapeError(`topk: ${count} of the last dim of ${typeText(x)} cannot be chosen`);
    }
    const shape = [...x.shape.slice(0, -1), count];
    return [
      { dtype: x.dtype, shape },
      { dtype: "i32", shape },
    ];
  },
  sharding: {
    factors([x]) {
      const dims = rowDims(x!.shape.length);
      return { inputs: [dims], outputs: [dims, dims] };
    },
    linear: "none",
  },
  gradient: {
    rule: (b, { inputs, outputs, cotangents }) => {
      const dy = cotangents[0]!;
      const shape = b.shape(dy);
      const mask = chosen(b, outputs[1]!, b.shape(inputs[0]!).at(-1)!);
      const spread = b.select(mask, b.reshape(dy, [...shape, 1]), 0);
      return [b.sum(spread, shape.length - 1)];
    },
  },
  cost: perElement(4),
  lower(ctx) {
    const x = rowsView(ctx, ctx.inputs[0]!);
    const shape = [x.dims[0]!, ctx.params.count];
    ctx.emit("topk", [x], [outputAs(ctx, 0, shape), outputAs(ctx, 1, shape)]);
  },
};

/** ids[b, t, k] -> the same, with -1 for choices beyond the expert's capacity. */
const capacity: OpRecord<CapacityParams> = {
  name: "expert_capacity",
  infer(inputs) {
    expectInputs("expert_capacity", inputs, 1);
    expectRank("expert_capacity", "the id tensor", inputs[0]!, 3);
    expectDType("expert_capacity", "the id tensor", inputs[0]!, ["i32"]);
    return [inputs[0]!];
  },
  sharding: { factors: () => ({ inputs: [["b", null, null]], outputs: [["b", null, null]] }), linear: "none" },
  gradient: zeroGradient,
  cost: perElement(2),
  lower(ctx) {
    const { experts, capacity } = ctx.params;
    ctx.emit("expert_capacity", [ctx.contiguous(ctx.inputs[0]!)], [ctx.output(0)], [experts, capacity]);
  },
};

/** Names of dims that go together when tokens are reordered. */
const pairs = ["b", "t", "k"];

/** The dims of ids that stay split when rows are sorted: samples and tokens, by the axes that split batches. */
function rowAxes(spec: ValueSpec): (readonly string[])[] {
  const allowed = [batchAxes, ["cp"], []];
  return spec.dims.map((axes, d) => axes.filter((axis) => allowed[d]!.includes(axisName(axis))));
}

/** ids[b, t, k] -> order[b, t, k], place[b, t, k], counts[e]: of the rows that a device holds. */
const sort: OpRecord<SortParams> = {
  name: "expert_sort",
  infer(inputs, { experts }) {
    expectInputs("expert_sort", inputs, 1);
    const ids = inputs[0]!;
    expectRank("expert_sort", "the id tensor", ids, 3);
    expectDType("expert_sort", "the id tensor", ids, ["i32"]);
    return [ids, ids, { dtype: "i32", shape: [experts] }];
  },
  sharding: {
    factors: () => {
      const whole = [null, null, null];
      const unsplit = { inputs: [pairs], outputs: [pairs, pairs, [null]] };
      return { inputs: [whole], outputs: [whole, whole, [null]], unsplit };
    },
    linear: "none",
    decompose(_b, [ids], [spec], params, local) {
      const dims = rowAxes(spec!);
      if (dims.every((axes) => axes.length === 0)) return null;
      const own = { dims, partial: {}, routed: [] };
      const counts = { dims: [[]], partial: {}, routed: [] };
      return local.emit("expert_sort", [local.split(ids!, dims)], params, [own, own, counts]);
    },
  },
  gradient: zeroGradient,
  cost: perElement(4),
  lower(ctx) {
    const n = [sizeOf(ctx.inputs[0]!.dims)];
    const results = [outputAs(ctx, 0, n), outputAs(ctx, 1, n), ctx.output(2)];
    ctx.emit("expert_sort", [flatView(ctx, ctx.inputs[0]!)], results);
  },
};

function expectPlan(op: string, inputs: readonly TensorType[]): void {
  const [order, place, counts] = inputs.slice(1) as [TensorType, TensorType, TensorType];
  for (const type of [order, place, counts]) expectDType(op, "an index tensor", type, ["i32"]);
  expectRank(op, "the order", order, 3);
  expectShape(op, "the place", place, order.shape);
  expectRank(op, "the count tensor", counts, 1);
}

/** True where an op's rows travel over the axis: it splits the samples (innermost), and so the rows' owners. */
function travels<V>(local: LocalBuilder<V>, order: ValueSpec, axis: string): boolean {
  if (local.size(axis) === 1) return false;
  return axisName(order.dims[0]!.at(-1) ?? "") === axis;
}

/** The counts of all ranks along the axis, [ranks, e]. */
function allCounts<V>(local: LocalBuilder<V>, counts: V, axis: string): V {
  const spec = { dims: [[], []], partial: {}, routed: [] };
  return local.once("expert_counts", counts, { axes: [axis], ranks: local.size(axis) }, spec);
}

/**
 * The dims of rows that have gone to their experts: a bound for any choice that the router may make, where a token's
 * choices are of different experts.
 */
function arrivedShape(
  rows: readonly number[],
  experts: number,
  ranks: number,
  whole: boolean,
  most?: number,
): number[] {
  const [b, t, k, w] = rows as [number, number, number, number];
  const held = Math.ceil(experts / ranks);
  const choices = Math.min(k, held);
  if (most === undefined || !whole) return [b, t, choices, w];
  return [b, 1, Math.min(t * choices, held * most), w];
}

/** Copies rows in the order of an index operand; a rank 3 operand has one row for all choices of a token. */
function permute<P>(ctx: LowerContext<P>, x: View, index: View): void {
  const pairs = index.dims as readonly [number, number, number];
  const wide = x.dims.length === 3;
  const even = unitStride(ctx, x, x.dims.length - 1);
  const groups = wide ? [[0, 1], [2]] : [[0, 1], [2], [3]];
  const split = collapseView(even, groups) ?? collapseView(ctx.contiguous(x), groups)!;
  const [d, s] = [split.dims, split.strides];
  const rows = wide ? { ...split, dims: [d[0]!, pairs[2], d[1]!], strides: [s[0]!, 0, s[1]!] } : split;
  ctx.emit("permute_rows", [rows, flatView(ctx, index)], [rowsView(ctx, ctx.output(0))]);
}

/**
 * x[b, t, w] or [b, t, k, w], order, place, counts -> rows[b, t, k, w] expert after expert, and how many each expert
 * has: here, or, over an axis that splits experts and samples, where the experts are.
 */
const dispatch: OpRecord<DispatchParams> = {
  name: "expert_dispatch",
  infer(inputs) {
    expectInputs("expert_dispatch", inputs, 4);
    const [x, order] = [inputs[0]!, inputs[1]!];
    expectPlan("expert_dispatch", inputs);
    expectDType("expert_dispatch", "x", x, floats);
    const rows = x.shape.length === 3 ? order.shape.slice(0, 2) : order.shape;
    expectShape("expert_dispatch", "x", x, [...rows, x.shape.at(-1) ?? 0]);
    return [{ dtype: x.dtype, shape: [...order.shape, x.shape.at(-1)!] }, inputs[3]!];
  },
  sharding: {
    factors: ([x]) => {
      const w = [null, null, null, "w"];
      const ids = [null, null, null];
      const token = x!.shape.length === 3;
      return {
        inputs: [token ? w.slice(1) : w, ids, ids, [null]],
        outputs: [w, [null]],
        reduce: { w: ["sum", null] },
        unsplit: {
          inputs: [token ? ["b", "t", null] : [...pairs, null], pairs, pairs, [null]],
          outputs: [[...pairs, null], [null]],
        },
      };
    },
    linear: "none",
    decompose(b, [x, order, place, counts], [, plan], { axis, capacity }, local) {
      if (!plan!.routed) return null;
      const dims = plan!.dims;
      const token = b.shape(x!).length === 3;
      const own = local.split(x!, token ? [...dims.slice(0, 2), []] : [...dims, []]);
      const there = { dims: [...dims, []], partial: {}, routed: [] };
      const none = { dims: [[]], partial: {}, routed: [] };
      const operands = [own, order!, place!, counts!];
      const sorted = local.emit("expert_dispatch", operands, { axis }, [there, none]);
      if (!travels(local, plan!, axis)) return sorted;
      const ranks = local.size(axis);
      const matrix = allCounts(local, counts!, axis);
      const experts = b.shape(counts!)[0]!;
      const shape = arrivedShape(b.shape(sorted[0]!), experts, ranks, dims[1]!.length === 0, capacity);
      const spec = { dims: [dims[0]!.slice(0, -1), dims[1]!, [], []], partial: {}, routed: [axis] };
      const params = { axes: [axis], back: false, shape };
      const rows = local.emit("expert_exchange", [sorted[0]!, matrix], params, [spec])[0]!;
      const arrived = { dims: [[axis]], partial: {}, routed: [axis] };
      return [rows, local.once("expert_arrivals", matrix, { axes: [axis] }, arrived)];
    },
  },
  gradient: {
    rule: (b, { inputs, cotangents, params }) => {
      const [x, ...plan] = inputs;
      const rows = b.one("expert_return", [cotangents[0]!, ...plan], params);
      return [b.shape(x!).length === 3 ? b.sum(rows, 2) : rows, null, null, null];
    },
  },
  cost: (inputs, outputs) => streamCost(inputs, outputs, 0),
  lower(ctx) {
    permute(ctx, ctx.inputs[0]!, ctx.inputs[1]!);
    ctx.alias(1, ctx.inputs[3]!);
  },
};

/** rows (as dispatched), order, place, counts (those of expert_sort) -> rows[b, t, k, w] where their tokens are. */
const giveBack: OpRecord<DispatchParams> = {
  name: "expert_return",
  infer(inputs) {
    expectInputs("expert_return", inputs, 4);
    const [rows, order] = [inputs[0]!, inputs[1]!];
    expectPlan("expert_return", inputs);
    expectDType("expert_return", "the rows", rows, floats);
    expectRank("expert_return", "the rows", rows, 4);
    return [{ dtype: rows.dtype, shape: [...order.shape, rows.shape[3]!] }];
  },
  sharding: {
    factors: () => {
      const [w, ids] = [
        [null, null, null, "w"],
        [null, null, null],
      ];
      const rows = [...pairs, null];
      const unsplit = { inputs: [rows, pairs, pairs, [null]], outputs: [rows] };
      return { inputs: [w, ids, ids, [null]], outputs: [w], unsplit };
    },
    linear: [0],
    shrinks: true,
    decompose(b, [rows, order, place, counts], [from, plan], { axis }, local) {
      if (!from!.routed || !plan!.routed) return null;
      const spec = { dims: [...plan!.dims, from!.dims[3]!], partial: from!.partial };
      let back = rows!;
      if (from!.routed.length > 0) {
        const params = { axes: [axis], back: true, shape: [...b.shape(order!), b.shape(back)[3]!] };
        const operands = [back, allCounts(local, counts!, axis)];
        back = local.emit("expert_exchange", operands, params, [{ ...spec, routed: [] }])[0]!;
      }
      return local.emit("expert_return", [back, order!, place!, counts!], { axis }, [spec]);
    },
  },
  gradient: {
    rule: (b, { inputs, cotangents, params }) => {
      const [, ...plan] = inputs;
      return [b.emit("expert_dispatch", [cotangents[0]!, ...plan], params)[0]!, null, null, null];
    },
  },
  cost: (inputs, outputs) => streamCost(inputs, outputs, 0),
  lower: (ctx) => permute(ctx, ctx.inputs[0]!, ctx.inputs[2]!),
};

/** counts[e] of each rank along the axes -> [ranks, e] on all of them. */
const counts: OpRecord<CountsParams> = {
  name: "expert_counts",
  infer(inputs, { ranks }) {
    expectInputs("expert_counts", inputs, 1);
    expectRank("expert_counts", "its operand", inputs[0]!, 1);
    expectDType("expert_counts", "its operand", inputs[0]!, ["i32"]);
    return [{ dtype: "i32", shape: [ranks, inputs[0]!.shape[0]!] }];
  },
  sharding: { factors: () => ({ inputs: [[null]], outputs: [[null, null]] }), linear: "none" },
  gradient: inserted,
  cost: perElement(0),
  lower(ctx) {
    const { axes, ranks } = ctx.params;
    const own = ctx.contiguous(ctx.inputs[0]!);
    const row = { ...own, dims: [1, own.dims[0]!], strides: [own.dims[0]!, 1] };
    const each = { table: { kind: "counts", size: ranks, axes, outer: [] } } as const;
    ctx.emit("all_gather", [row], [ctx.output(0)], [{ table: { kind: "group", axes } }, 0, each]);
  },
};

/** counts[ranks, e] -> what arrives for each expert [e], where that expert is. */
const arrivals: OpRecord<{ readonly axes: readonly string[] }> = {
  name: "expert_arrivals",
  infer(inputs) {
    expectInputs("expert_arrivals", inputs, 1);
    expectRank("expert_arrivals", "its operand", inputs[0]!, 2);
    expectDType("expert_arrivals", "its operand", inputs[0]!, ["i32"]);
    return [{ dtype: "i32", shape: [inputs[0]!.shape[1]!] }];
  },
  sharding: { factors: () => ({ inputs: [[null, null]], outputs: [[null]] }), linear: "none" },
  gradient: inserted,
  cost: perElement(1),
  lower(ctx) {
    const all = ctx.inputs[0]!;
    const own = ctx.outputTypes[0]!.shape[0]!;
    const start = { table: { kind: "start", size: all.dims[1]!, axes: ctx.params.axes } } as const;
    const part = ctx.temporary("i32", [all.dims[0]!, own]);
    ctx.emit("shard_slice", [all], [part], [1, start]);
    ctx.emit("reduce", [part], [outputAs(ctx, 0, [1, own])], [0]);
  },
};

/** Most rows that each rank may bring another: as many as the samples that it holds have room for there. */
function mostRows(ctx: LowerContext<ExchangeParams>, back: boolean): TableEntry {
  const own = back ? ctx.output(0).dims : ctx.inputs[0]!.dims;
  const types = [ctx.globalInputs[0]!.shape, ctx.globalOutputs[0]!.shape];
  const [brought, there] = back ? types.toReversed() : types;
  const spec = (back ? ctx.outputSpecs : ctx.inputSpecs)[0]!;
  const [, t, k] = there!;
  const each = (t === brought![1] ? own[1]! : 1) * k!;
  const outer = spec.dims[0]!.slice(0, -1);
  return { kind: "counts", size: brought![0]!, axes: spec.dims[0]!.slice(-1), outer, each };
}

/** rows[b, t, k, w], counts[ranks, e] -> the rows of a rank's own experts; `back`: the rows that it brought. */
const exchange: OpRecord<ExchangeParams> = {
  name: "expert_exchange",
  infer(inputs, { shape }) {
    expectInputs("expert_exchange", inputs, 2);
    expectRank("expert_exchange", "the rows", inputs[0]!, 4);
    expectDType("expert_exchange", "the count tensor", inputs[1]!, ["i32"]);
    return [{ dtype: inputs[0]!.dtype, shape }];
  },
  sharding: {
    factors: () => ({
      inputs: [
        [null, null, null, null],
        [null, null],
      ],
      outputs: [[null, null, null, null]],
    }),
    linear: "none",
  },
  gradient: inserted,
  cost: perElement(0),
  lower(ctx) {
    const { axes, back } = ctx.params;
    const [rows, matrix] = [ctx.inputs[0]!, ctx.inputs[1]!];
    const flat = (view: View): View => collapseView(ctx.contiguous(view), [[0, 1, 2], [3]])!;
    const owners = { table: { kind: "counts", size: matrix.dims[1]!, axes, outer: [] } } as const;
    const group = { table: { kind: "group", axes } } as const;
    const operands = [flat(rows), ctx.contiguous(matrix)];
    const most = { table: mostRows(ctx, back) };
    ctx.emit("expert_exchange", operands, [flat(ctx.output(0))], [group, owners, Number(back), most]);
  },
};

export const routingOps = {
  topk,
  expert_capacity: capacity,
  expert_sort: sort,
  expert_dispatch: dispatch,
  expert_return: giveBack,
  expert_counts: counts,
  expert_arrivals: arrivals,
  expert_exchange: exchange,
};
