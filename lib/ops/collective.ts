// Collectives, as the shard pass inserts them. Their types are global: only the spec changes from operand to result.
import { ProgramError, ShapeError } from "../core/errors.ts";
import type { TensorType } from "../ir/graph.ts";
import { defineKernel } from "../ir/kernel.ts";
import type { Attribute, LowerContext, TableEntry } from "../ir/lowering.ts";
import type { Gradient, OpRecord } from "../ir/op.ts";
import { axisName, type ReduceKind, sameAxes, shifted, shiftsOf, specText, type ValueSpec } from "../ir/spec.ts";
import { expectDim, expectInputs, identityFactors, noCost, perElement } from "./define.ts";
import { reduceKinds } from "./reduction.ts";

export const allReduceKernel = defineKernel({
  name: "all_reduce",
  doc: `y = x reduced over the ranks of a group, in rank order (same bits on every rank). Contiguous, same dims, y may
be x. kind: 0 sum, 1 max, 2 min. Further tensors, each x with its y (all x first), are exchanged with the first at
once: a bucket.`,
  inputs: ["x", "more*"],
  outputs: ["y", "more*"],
  attrs: { group: "table", kind: "int" },
});

export const allGatherKernel = defineKernel({
  name: "all_gather",
  doc: `y = the ranks' x joined along dim, in group order. counts is the index in table of the first of n per-rank sizes
(n the group's size; the sizes may be 0). All other dims agree. Contiguous. Each further tensor of a bucket has words
dim, counts.`,
  inputs: ["x", "more*"],
  outputs: ["y", "more*"],
  attrs: { group: "table", dim: "int", counts: "int" },
  rest: "int",
});

export const reduceScatterKernel = defineKernel({
  name: "reduce_scatter",
  doc: "x reduced over the group in rank order; y is this rank's part along dim. counts, buckets as all_gather. Contiguous.",
  inputs: ["x", "more*"],
  outputs: ["y", "more*"],
  attrs: { group: "table", kind: "int", dim: "int", counts: "int" },
  rest: "int",
});

export const allToAllKernel = defineKernel({
  name: "all_to_all",
  doc: `x is cut along split_dim into one part per rank (sizes table[split_counts...]); part i goes to rank i; y joins
what arrives along join_dim (sizes table[join_counts...]). Contiguous. split_dim may equal join_dim.`,
  inputs: ["x"],
  outputs: ["y"],
  attrs: { group: "table", split_dim: "int", join_dim: "int", split_counts: "int", join_counts: "int" },
});

export const broadcastKernel = defineKernel({
  name: "broadcast",
  doc: "y on every rank = x of the rank with index root in the group (x is read there only). Contiguous, same dims.",
  inputs: ["x"],
  outputs: ["y"],
  attrs: { group: "table", root: "table" },
});

export const shardSliceKernel = defineKernel({
  name: "shard_slice",
  doc: `y = the part of x along dim that begins at start (moved into [0, x's size - y's size]); the other dims agree.
Any strides on both sides (y without repeats).`,
  inputs: ["x"],
  outputs: ["y"],
  attrs: { dim: "int", start: "table" },
});

/** Mesh axes over whose ranks a collective runs, as they stand in specs, outermost first. */
type OverAxes = { readonly axes: readonly string[] };
/** Reduces a partial value over axes; with `stages`, among these coordinates of pp only. */
export type AllReduceParams = OverAxes & { readonly kind: ReduceKind; readonly stages?: readonly number[] };
/** Joins the parts of a dim whose innermost axes these are; or takes this device's part along new innermost axes. */
export type DimParams = OverAxes & { readonly dim: number; readonly once?: true };
/** Reduces a partial value over axes and leaves it split along a dim by them. */
export type ReduceScatterParams = DimParams & { readonly kind: ReduceKind };
/** Moves the innermost axes of joinDim to splitDim. */
export type AllToAllParams = OverAxes & { readonly splitDim: number; readonly joinDim: number };
/** Every rank gives its part of a dim, split innermost by one axis, to the next rank round the ring. */
export type RingShiftParams = DimParams;
/** Copies the value of the rank with this index in the group. */
export type BroadcastFromParams = OverAxes & { readonly root: number };

const inserted: Gradient<unknown> = { none: "it is inserted after differentiation" };

function expectAxes(op: string, inputs: readonly TensorType[], axes: readonly string[]): TensorType[] {
  expectInputs(op, inputs, 1);
  if (axes.length === 0) throw new ShapeError(`${op}: it runs over no axis`);
  return [inputs[0]!];
}

/** The parts of a collective's record that are all alike. */
function collective<P extends OverAxes>(
  name: string,
  dims: (params: P) => readonly number[],
  lower: (ctx: LowerContext<P>) => void,
  cost: OpRecord<P>["cost"] = perElement(0),
): OpRecord<P> {
  return {
    name,
    infer(inputs, params) {
      const types = expectAxes(name, inputs, params.axes);
      for (const d of dims(params)) expectDim(name, inputs[0]!, d);
      return types;
    },
    sharding: { factors: identityFactors, linear: "none" },
    gradient: inserted,
    cost,
    lower,
  };
}

/** The table word of a group. */
export function group(axes: readonly string[], stages?: readonly number[]): { readonly table: TableEntry } {
  return { table: { kind: "group", axes: axes.map(axisName), ...(stages ? { stages } : {}) } };
}

/** The axes left of `axes` in the spec of a dim that these split innermost. */
function outerAxes(op: string, spec: ValueSpec, dim: number, axes: readonly string[]): readonly string[] {
  const all = spec.dims[dim]!;
  const outer = all.slice(0, all.length - axes.length);
  if (!sameAxes(all, [...outer, ...axes])) {
    throw new ProgramError(
      `${op} over ${axes.join(", ")}: dim ${dim} of ${specText(spec)} is not split by them innermost`,
    );
  }
  return outer;
}

/** Sizes of the ranks' parts of a dim that `axes` split innermost in `spec`. */
export function counts(
  { shape }: TensorType,
  spec: ValueSpec,
  dim: number,
  axes: readonly string[],
  op: string,
): Attribute {
  const outer = outerAxes(op, spec, dim, axes);
  // Parts are joined in the order of ranks: after a shift that is not the order of the parts.
  if (axes.some((a) => shiftsOf(a) > 0))
    throw new ProgramError(`${op} of parts shifted round a ring: ${specText(spec)}`);
  return { table: { kind: "counts", size: shape[dim]!, axes, outer } };
}

/** Emits a collective on the operand made contiguous. */
function exchange<P extends OverAxes & { readonly stages?: readonly number[] }>(
  ctx: LowerContext<P>,
  kernel: string,
  words: readonly Attribute[],
): void {
  const { axes, stages } = ctx.params;
  ctx.emit(kernel, [ctx.contiguous(ctx.inputs[0]!)], [ctx.output(0)], [group(axes, stages), ...words]);
}

export const collectiveOps = {
  all_reduce: collective<AllReduceParams>(
    "all_reduce",
    () => [],
    (ctx) => exchange(ctx, "all_reduce", [reduceKinds.indexOf(ctx.params.kind)]),
    perElement(1),
  ),
  all_gather: collective<DimParams>(
    "all_gather",
    ({ dim }) => [dim],
    (ctx) => {
      const { dim, axes } = ctx.params;
      exchange(ctx, "all_gather", [dim, counts(ctx.globalOutputs[0]!, ctx.inputSpecs[0]!, dim, axes, "all_gather")]);
    },
  ),
  reduce_scatter: collective<ReduceScatterParams>(
    "reduce_scatter",
    ({ dim }) => [dim],
    (ctx) => {
      const { dim, axes, kind } = ctx.params;
      const parts = counts(ctx.globalOutputs[0]!, ctx.outputSpecs[0]!, dim, axes, "reduce_scatter");
      exchange(ctx, "reduce_scatter", [reduceKinds.indexOf(kind), dim, parts]);
    },
    perElement(1),
  ),
  all_to_all: collective<AllToAllParams>(
    "all_to_all",
    ({ splitDim, joinDim }) => [splitDim, joinDim],
    (ctx) => {
      const { splitDim, joinDim, axes } = ctx.params;
      const [whole, from, to] = [ctx.globalOutputs[0]!, ctx.inputSpecs[0]!, ctx.outputSpecs[0]!];
      const split = counts(whole, to, splitDim, axes, "all_to_all");
      const join = counts(whole, from, joinDim, axes, "all_to_all");
      exchange(ctx, "all_to_all", [splitDim, joinDim, split, join]);
    },
  ),
  /** An all_to_all in which each rank has one peer to give to, and another to get from. */
  ring_shift: collective<RingShiftParams>(
    "ring_shift",
    ({ dim }) => [dim],
    (ctx) => {
      const { dim, axes } = ctx.params;
      const axis = axes[0]!;
      const outer = outerAxes("ring_shift", ctx.inputSpecs[0]!, dim, [axis]);
      const after = ctx.outputSpecs[0]!.dims[dim]!.at(-1);
      // The last shift of a ring brings parts home.
      if (axes.length > 1 || (after !== shifted(axis, shiftsOf(axis) + 1) && after !== axisName(axis))) {
        throw new ProgramError(`ring_shift of ${specText(ctx.inputSpecs[0]!)} gives ${specText(ctx.outputSpecs[0]!)}`);
      }
      const counts = (side: "send" | "receive"): Attribute => {
        return { table: { kind: "ring", size: ctx.globalOutputs[0]!.shape[dim]!, axis, outer, side } };
      };
      const operands = [ctx.contiguous(ctx.inputs[0]!)];
      ctx.emit("all_to_all", operands, [ctx.output(0)], [group(axes), dim, dim, counts("send"), counts("receive")]);
    },
  ),
  /** This device's part of a dim that was whole over these axes: nothing crosses between ranks. */
  shard_slice: collective<DimParams>(
    "shard_slice",
    ({ dim }) => [dim],
    (ctx) => {
      const { dim, axes } = ctx.params;
      const x = ctx.inputs[0]!;
      // Along a dim that repeats one element every part is alike, wherever it begins.
      if (x.strides[dim] === 0) {
        ctx.alias(0, { ...x, dims: [...ctx.outputTypes[0]!.shape] });
        return;
      }
      const outer = outerAxes("shard_slice", ctx.outputSpecs[0]!, dim, axes);
      const size = ctx.globalOutputs[0]!.shape[dim]!;
      const start: TableEntry = { kind: "start", size, axes: [...outer, ...axes], outer };
      ctx.emit("shard_slice", [x], [ctx.output(0)], [dim, { table: start }]);
    },
  ),
  broadcast_from: collective<BroadcastFromParams>(
    "broadcast_from",
    () => [],
    (ctx) => exchange(ctx, "broadcast", [{ table: { kind: "literal", value: ctx.params.root } }]),
    noCost,
  ),
};
