// What experts do with their rows: grouped products, the gated activation, and the weighted sum of a token's results.
// Dims: b samples, t tokens, k choices of a token, e experts. Rows [b, t, k, ...] of an expert lie together, expert
// after expert, as many as `counts` says (ops/routing.ts); behind the last one come rows of zeros.
import { ShapeError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { Builder } from "../ir/builder.ts";
import type { TensorType } from "../ir/graph.ts";
import { defineKernel } from "../ir/kernel.ts";
import type { Attribute, LowerContext, View } from "../ir/lowering.ts";
import type { Cost, FactorMap, OpRecord } from "../ir/op.ts";
import { typeText } from "../ir/print.ts";
import type { ValueSpec } from "../ir/spec.ts";
import { collapseView, permuteView } from "../ir/view.ts";
import {
  expectDType,
  expectInputs,
  expectRank,
  expectSameDType,
  expectShape,
  flatView,
  floats,
  type NoParams,
  onceOnly,
  outputAs,
  perElement,
  rowsView,
  startWord,
  streamCost,
} from "./define.ts";

export const groupedMatmulKernel = defineKernel({
  name: "grouped_matmul",
  doc: `Rows of x[m,k] lie group after group, counts[g] (i32; below 0 counts as 0) of each. y[m,n] = x w[g - start] for
rows of the groups [start, start + e) that w[e,k,n] has; all other rows of y are zeros. Unit stride in x's k, y's n,
and one of w's last two dims. All f32, f64, bf16 or f16.`,
  inputs: ["x", "counts", "w"],
  outputs: ["y"],
  attrs: { start: "table" },
});

export const groupedMatmulGradKernel = defineKernel({
  name: "grouped_matmul_grad",
  doc: `d[e,m,n] = sum over the rows r of group start + e, ascending, of a[r,m] * b[r,n]; rows and counts as
grouped_matmul; zeros for a group without rows. Unit stride in m and n. All f32, f64, bf16 or f16.`,
  inputs: ["a", "b", "counts"],
  outputs: ["d"],
  attrs: { start: "table" },
});

export const expertGateKernel = defineKernel({
  name: "expert_gate",
  doc: `y[r,n] = act(a) * b for the first sum(counts) rows, zeros behind. act: 0 silu, 1 gelu (tanh form), 2 gelu (erf),
3 relu. counts as grouped_matmul. Unit stride in n. f32, f64, bf16, f16.`,
  inputs: ["a", "b", "counts"],
  outputs: ["y"],
  attrs: { act: "int" },
});

export const expertGateGradKernel = defineKernel({
  name: "expert_gate_grad",
  doc: "da = dy * b * act'(a), db = dy * act(a); rows, act and types as expert_gate.",
  inputs: ["a", "b", "counts", "dy"],
  outputs: ["da", "db"],
  attrs: { act: "int" },
});

export const expertCombineKernel = defineKernel({
  name: "expert_combine",
  doc: `y[r,n] = sum over k, ascending, of x[r,k,n] * weights[r,k]. Unit stride in n; any other strides of x; weights
contiguous. All f32, f64, bf16 or f16 (sums in f32).`,
  inputs: ["x", "weights"],
  outputs: ["y"],
  attrs: {},
});

export const expertCombineGradKernel = defineKernel({
  name: "expert_combine_grad",
  doc: "dweights[r,k] = sum over n of x[r,k,n] * dy[r,n]. Strides and types as expert_combine, dweights contiguous.",
  inputs: ["x", "dy"],
  outputs: ["dweights"],
  attrs: {},
});

/** Gating activations, in the order of their codes. */
export const gateActivations = ["silu", "gelu_new", "gelu", "relu"] as const;

/** `turned`: the weights are [e, k, n], else [e, n, k]. */
export type GroupedMatmulParams = { readonly turned: boolean };
/** Number of experts. */
export type GroupedMatmulGradParams = { readonly experts: number };
/** What is applied to the first operand. */
export type ExpertGateParams = { readonly activation: (typeof gateActivations)[number] };

const routed = { rows: ["b", "t", "k"], groups: "e" } as const;

function expectRows(op: string, what: string, type: TensorType): void {
  expectDType(op, what, type, floats);
  expectRank(op, what, type, 4);
}

function expectCounts(op: string, counts: TensorType): void {
  expectDType(op, "the count tensor", counts, ["i32"]);
  expectRank(op, "the count tensor", counts, 1);
}

/** Where a device's experts begin among those that its counts are of. */
function startOf(counts: ValueSpec, experts: number, split: readonly string[]): Attribute {
  return counts.dims[0]!.length > 0 ? startWord(experts, []) : startWord(experts, split);
}

/** Products of rows with one matrix each. */
function groupedCost(inputs: readonly TensorType[], outputs: readonly TensorType[], other: number): Cost {
  return streamCost(inputs, outputs, 2 * sizeOf(inputs[0]!.shape) * other);
}

/** A batch of matrices of which one of the last two dims has unit stride. */
function matrices<P>(ctx: LowerContext<P>, w: View): View {
  const fits = [1, 2].some((d) => w.dims[d] === 1 || w.strides[d] === 1) || sizeOf(w.dims) === 0;
  return fits ? w : ctx.contiguous(w);
}

/** rows[b, t, k, c], counts[e], w[e, n, c] -> [b, t, k, n]: each row times the matrix of its expert. */
const groupedMatmul: OpRecord<GroupedMatmulParams> = {
  name: "grouped_matmul",
  infer(inputs, { turned }) {
    expectInputs("grouped_matmul", inputs, 3);
    const [rows, counts, w] = [inputs[0]!, inputs[1]!, inputs[2]!];
    expectRows("grouped_matmul", "the rows", rows);
    expectCounts("grouped_matmul", counts);
    expectRank("grouped_matmul", "the weight", w, 3);
    expectSameDType("grouped_matmul", rows, w);
    const [e, n, c] = turned ? [w.shape[0]!, w.shape[2]!, w.shape[1]!] : [w.shape[0]!, w.shape[1]!, w.shape[2]!];
    if (e !== counts.shape[0] || c !== rows.shape[3]) {
      throw new ShapeError(
        `grouped_matmul of ${typeText(rows)} and ${typeText(w)} for ${counts.shape[0]} experts: sizes do not fit`,
      );
    }
    return [{ dtype: rows.dtype, shape: [...rows.shape.slice(0, 3), n] }];
  },
  sharding: {
    factors: (_inputs, _outputs, { turned }): FactorMap => ({
      inputs: [["b", "t", "k", "c"], [null], turned ? ["e", "c", "n"] : ["e", "n", "c"]],
      outputs: [["b", "t", "k", "n"]],
      routed,
    }),
    linear: [0, 2],
  },
  gradient: {
    rule: (b, { inputs, cotangents, params: { turned }, wanted }) => {
      const [rows, counts, w] = [inputs[0]!, inputs[1]!, inputs[2]!];
      const d = cotangents[0]!;
      const pair = turned ? [rows, d] : [d, rows];
      const experts = b.shape(w)[0]!;
      return [
        wanted[0] ? b.one("grouped_matmul", [d, counts, w], { turned: !turned }) : null,
        null,
        wanted[2] ? b.one("grouped_matmul_grad", [...pair, counts], { experts }) : null,
      ];
    },
  },
  cost: (inputs, outputs) => groupedCost(inputs, outputs, outputs[0]!.shape[3]!),
  lower(ctx) {
    const [rows, counts, w] = [ctx.inputs[0]!, ctx.inputs[1]!, ctx.inputs[2]!];
    const weights = matrices(ctx, ctx.params.turned ? w : permuteView(w, [0, 2, 1]));
    const start = startOf(ctx.inputSpecs[1]!, ctx.globalInputs[2]!.shape[0]!, ctx.inputSpecs[2]!.dims[0]!);
    const operands = [rowsView(ctx, rows), flatView(ctx, counts), weights];
    ctx.emit("grouped_matmul", operands, [rowsView(ctx, ctx.output(0))], [start]);
  },
};

/** a[b, t, k, m], b[b, t, k, n], counts[e] -> [e, m, n]: sums of outer products of each expert's rows. */
const groupedMatmulGrad: OpRecord<GroupedMatmulGradParams> = {
  name: "grouped_matmul_grad",
  infer(inputs, { experts }) {
    expectInputs("grouped_matmul_grad", inputs, 3);
    const [a, b, counts] = [inputs[0]!, inputs[1]!, inputs[2]!];
    expectRows("grouped_matmul_grad", "a", a);
    expectCounts("grouped_matmul_grad", counts);
    expectSameDType("grouped_matmul_grad", a, b);
    expectShape("grouped_matmul_grad", "b", b, [...a.shape.slice(0, 3), b.shape[3]!]);
    expectShape("grouped_matmul_grad", "the count tensor", counts, [experts]);
    return [{ dtype: a.dtype, shape: [experts, a.shape[3]!, b.shape[3]!] }];
  },
  sharding: {
    factors: (): FactorMap => ({
      inputs: [["b", "t", "k", "m"], ["b", "t", "k", "n"], [null]],
      outputs: [["e", "m", "n"]],
      routed,
    }),
    linear: [0, 1],
  },
  gradient: {
    rule: (g, { inputs, cotangents, wanted }) => {
      const [a, b, counts, d] = [inputs[0]!, inputs[1]!, inputs[2]!, cotangents[0]!];
      return [
        wanted[0] ? g.one("grouped_matmul", [b, counts, d], { turned: false }) : null,
        wanted[1] ? g.one("grouped_matmul", [a, counts, d], { turned: true }) : null,
        null,
      ];
    },
  },
  cost: (inputs, outputs) => groupedCost(inputs, outputs, inputs[1]!.shape[3]!),
  lower(ctx) {
    const [a, b, counts] = [ctx.inputs[0]!, ctx.inputs[1]!, ctx.inputs[2]!];
    const start = startOf(ctx.inputSpecs[2]!, ctx.params.experts, ctx.outputSpecs[0]!.dims[0]!);
    const operands = [rowsView(ctx, a), rowsView(ctx, b), flatView(ctx, counts)];
    ctx.emit("grouped_matmul_grad", operands, [ctx.output(0)], [start]);
  },
};

function gateFactors(inputs: readonly TensorType[], outputs: readonly TensorType[]): FactorMap {
  const of = ({ shape }: TensorType): (string | null)[] => (shape.length === 1 ? [null] : ["b", "t", "k", "f"]);
  return { inputs: inputs.map(of), outputs: outputs.map(of), routed };
}

function expectGate(op: string, inputs: readonly TensorType[]): void {
  const [a, b, counts, ...more] = inputs as [TensorType, TensorType, TensorType, ...TensorType[]];
  expectRows(op, "a", a);
  expectCounts(op, counts);
  for (const type of [b, ...more]) {
    expectSameDType(op, a, type);
    expectShape(op, "an operand", type, a.shape);
  }
}

/** a, b [b, t, k, f], counts[e] -> act(a) b. */
const expertGate: OpRecord<ExpertGateParams> = {
  name: "expert_gate",
  infer(inputs) {
    expectInputs("expert_gate", inputs, 3);
    expectGate("expert_gate", inputs);
    return [inputs[0]!];
  },
  sharding: { factors: gateFactors, linear: [1] },
  gradient: {
    rule: (b, { inputs, cotangents, params }) => {
      const [da, db] = b.emit("expert_gate_grad", [...inputs, cotangents[0]!], params);
      return [da!, db!, null];
    },
  },
  cost: perElement(16),
  lower: (ctx) => lowerGate(ctx, "expert_gate"),
};

function lowerGate(ctx: LowerContext<ExpertGateParams>, kernel: string): void {
  const operands = ctx.inputs.map((view) => (view.dims.length === 1 ? flatView(ctx, view) : rowsView(ctx, view)));
  const results = ctx.outputTypes.map((_, i) => rowsView(ctx, ctx.output(i)));
  ctx.emit(kernel, operands, results, [gateActivations.indexOf(ctx.params.activation)]);
}

/** a, b, counts, dy -> da, db. */
const expertGateGrad: OpRecord<ExpertGateParams> = {
  name: "expert_gate_grad",
  infer(inputs) {
    expectInputs("expert_gate_grad", inputs, 4);
    expectGate("expert_gate_grad", inputs);
    return [inputs[0]!, inputs[0]!];
  },
  sharding: { factors: gateFactors, linear: [3] },
  gradient: onceOnly("expert_gate"),
  cost: perElement(30),
  lower: (ctx) => lowerGate(ctx, "expert_gate_grad"),
};

/** A token's rows as [tokens, k, w] with unit stride in w. */
function choices<P>(ctx: LowerContext<P>, view: View): View {
  const groups = [[0, 1], [2], [3]];
  const free = collapseView(view, groups);
  if (free !== null && (free.dims[2] === 1 || free.strides[2] === 1)) return free;
  return collapseView(ctx.contiguous(view), groups)!;
}

function asChoices<P>(ctx: LowerContext<P>, view: View): View {
  return collapseView(ctx.contiguous(view), [[0, 1], [2]])!;
}

/** x[b, t, k, w], weights[b, t, k] -> [b, t, w]: the weighted sum of a token's results. */
const expertCombine: OpRecord<NoParams> = {
  name: "expert_combine",
  infer(inputs) {
    expectInputs("expert_combine", inputs, 2);
    const [x, weights] = [inputs[0]!, inputs[1]!];
    expectRows("expert_combine", "x", x);
    expectSameDType("expert_combine", x, weights);
    expectShape("expert_combine", "the weight tensor", weights, x.shape.slice(0, 3));
    return [{ dtype: x.dtype, shape: [x.shape[0]!, x.shape[1]!, x.shape[3]!] }];
  },
  sharding: {
    factors: () => ({
      inputs: [
        ["b", "t", "k", "w"],
        ["b", "t", "k"],
      ],
      outputs: [["b", "t", "w"]],
    }),
    linear: [0, 1],
    shrinks: true,
  },
  gradient: {
    rule: (b, { inputs, cotangents, wanted }) => {
      const [x, weights, dy] = [inputs[0]!, inputs[1]!, cotangents[0]!];
      return [wanted[0] ? weigh(b, dy, weights) : null, wanted[1] ? b.one("expert_combine_grad", [x, dy]) : null];
    },
  },
  cost: perElement(2),
  lower(ctx) {
    const x = choices(ctx, ctx.inputs[0]!);
    const y = outputAs(ctx, 0, [x.dims[0]!, x.dims[2]!]);
    ctx.emit("expert_combine", [x, asChoices(ctx, ctx.inputs[1]!)], [y]);
  },
};

/** y[b, t, w], weights[b, t, k] -> [b, t, k, w]. */
function weigh<V>(b: Builder<V>, y: V, weights: V): V {
  const [n, t, w] = b.shape(y) as readonly [number, number, number];
  const k = b.shape(weights)[2]!;
  return b.mul(b.reshape(y, [n, t, 1, w]), b.reshape(weights, [n, t, k, 1]));
}

/** x[b, t, k, w], dy[b, t, w] -> dweights[b, t, k]. */
const expertCombineGrad: OpRecord<NoParams> = {
  name: "expert_combine_grad",
  infer(inputs) {
    expectInputs("expert_combine_grad", inputs, 2);
    const [x, dy] = [inputs[0]!, inputs[1]!];
    expectRows("expert_combine_grad", "x", x);
    expectSameDType("expert_combine_grad", x, dy);
    expectShape("expert_combine_grad", "dy", dy, [x.shape[0]!, x.shape[1]!, x.shape[3]!]);
    return [{ dtype: x.dtype, shape: x.shape.slice(0, 3) }];
  },
  sharding: {
    factors: () => ({
      inputs: [
        ["b", "t", "k", "w"],
        ["b", "t", "w"],
      ],
      outputs: [["b", "t", "k"]],
    }),
    linear: [0, 1],
    shrinks: true,
  },
  gradient: {
    rule: (b, { inputs, cotangents, wanted }) => {
      const [x, dy, d] = [inputs[0]!, inputs[1]!, cotangents[0]!];
      return [wanted[0] ? weigh(b, dy, d) : null, wanted[1] ? b.one("expert_combine", [x, d]) : null];
    },
  },
  cost: perElement(2),
  lower(ctx) {
    const x = choices(ctx, ctx.inputs[0]!);
    const dy = rowsView(ctx, ctx.inputs[1]!);
    ctx.emit("expert_combine_grad", [x, dy], [outputAs(ctx, 0, [x.dims[0]!, x.dims[1]!])]);
  },
};

export const expertOps = {
  grouped_matmul: groupedMatmul,
  grouped_matmul_grad: groupedMatmulGrad,
  expert_gate: expertGate,
  expert_gate_grad: expertGateGrad,
  expert_combine: expertCombine,
  expert_combine_grad: expertCombineGrad,
};
