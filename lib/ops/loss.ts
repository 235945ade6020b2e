// Cross-entropy of logits over the last dim, whole or split over a mesh axis.
import { statisticsDType } from "../core/dtype.ts";
import type { Builder } from "../ir/builder.ts";
import type { TensorType } from "../ir/graph.ts";
import { defineKernel } from "../ir/kernel.ts";
import type { GradientContext, OpRecord } from "../ir/op.ts";
import {
  dimFactors,
  expectDType,
  expectInputs,
  expectLastDim,
  expectShape,
  flatView,
  floats,
  onceOnly,
  outputAs,
  perElement,
  rowDims,
  rowsView,
  startWord,
} from "./define.ts";

export const crossEntropyKernel = defineKernel({
  name: "cross_entropy",
  doc: `Per row r of logits[r,v] (f32, f64, bf16, f16): lse = log(sum(exp(logits))), nll = lse - logits[target]; nll = 0
where target equals ignore or is outside [0, v). targets i32 [r]; nll and lse f32 (f64 for f64 logits).`,
  inputs: ["logits", "targets"],
  outputs: ["nll", "lse"],
  attrs: { ignore: "int" },
});

export const crossEntropyPartialKernel = defineKernel({
  name: "cross_entropy_partial",
  doc: `For a shard of the vocabulary starting at start: sumexp[r] = sum(exp(logits - max[r])) and target_logit[r] = the
target's logit if it is in this shard and not ignored, else 0. An empty shard gives zeros.`,
  inputs: ["logits", "targets", "max"],
  outputs: ["sumexp", "target_logit"],
  attrs: { ignore: "int", start: "table" },
});

export const crossEntropyGradKernel = defineKernel({
  name: "cross_entropy_grad",
  doc: `dlogits[r,v] = (exp(logits - lse[r]) - [v == targets[r] - start]) * dnll[r]; zero rows where the target is
ignored. dlogits has logits' dtype; lse and dnll f32 (f64 for f64). dnll may have stride 0.`,
  inputs: ["logits", "targets", "lse", "dnll"],
  outputs: ["dlogits"],
  attrs: { ignore: "int", start: "table" },
});

/** Rows with this target count for nothing. */
export type CrossEntropyParams = { readonly ignore: number };

function expectLogits(op: string, logits: TensorType, targets: TensorType): TensorType {
  expectDType(op, "the logits", logits, floats);
  expectLastDim(op, "the logits", logits);
  expectDType(op, "the target tensor", targets, ["i32"]);
  expectShape(op, "the target tensor", targets, logits.shape.slice(0, -1));
  return { dtype: statisticsDType(logits.dtype), shape: targets.shape };
}

/** dlogits from the cotangents of nll and of lse, of which one may be missing. */
function logitsGradient<V>(
  b: Builder<V>,
  { inputs, outputs, cotangents, params }: GradientContext<V, CrossEntropyParams>,
): V {
  const [logits, targets] = [inputs[0]!, inputs[1]!];
  const lse = outputs[1]!;
  const [dnll, dlse] = [cotangents[0] ?? null, cotangents[1] ?? null];
  const fromNll =
    dnll === null ? null : b.one("cross_entropy_grad", [logits, targets, lse, dnll], { ignore: params.ignore });
  if (dlse === null) return fromNll!;
  // The derivative of lse is the softmax.
  const column = [...b.shape(lse), 1];
  const wide = b.cast(logits, b.dtype(lse));
  const softmax = b.unary("exp", b.sub(wide, b.reshape(lse, column)));
  const fromLse = b.cast(b.mul(softmax, b.reshape(dlse, column)), b.dtype(logits));
  return fromNll === null ? fromLse : b.add(fromNll, fromLse);
}

/** Over a split vocabulary: only the rows' maxima, sums and target logits cross between ranks, never the logits. */
function splitVocabulary<V>(b: Builder<V>, logits: V, targets: V, ignore: number): V[] {
  const shape = b.shape(logits);
  const max = b.cast(b.reduce("max", logits, shape.length - 1), statisticsDType(b.dtype(logits)));
  const parts = b.emit("cross_entropy_partial", [logits, targets, max], { ignore });
  const lse = b.add(max, b.unary("log", parts[0]!));
  const inside = b.one("and", [b.binary("le", 0, targets), b.binary("lt", targets, shape.at(-1)!)]);
  const counts = b.one("and", [b.binary("ne", targets, ignore), inside]);
  return [b.select(counts, b.sub(lse, parts[1]!), 0), lse];
}

/** logits[..., v], targets[...] -> nll[...], lse[...] (f32; f64 for f64 logits). */
const crossEntropy: OpRecord<CrossEntropyParams> = {
  name: "cross_entropy",
  infer(inputs) {
    expectInputs("cross_entropy", inputs, 2);
    const row = expectLogits("cross_entropy", inputs[0]!, inputs[1]!);
    return [row, row];
  },
  sharding: {
    factors([logits]) {
      const dims = rowDims(logits!.shape.length);
      const rows = dims.slice(0, -1);
      return { inputs: [dims, rows], outputs: [rows, rows] };
    },
    linear: "none",
    decompose(b, inputs, specs, { ignore }) {
      const split = specs[0]!.dims.at(-1)!.length > 0;
      return split ? splitVocabulary(b, inputs[0]!, inputs[1]!, ignore) : null;
    },
  },
  gradient: { rule: (b, context) => [logitsGradient(b, context), null] },
  cost: perElement(12),
  lower(ctx) {
    const operands = [rowsView(ctx, ctx.inputs[0]!), flatView(ctx, ctx.inputs[1]!)];
    const rows = operands[0]!.dims.slice(0, 1);
    ctx.emit("cross_entropy", operands, [outputAs(ctx, 0, rows), outputAs(ctx, 1, rows)], [ctx.params.ignore]);
  },
};

/** logits[..., v], targets[...], max[...] -> sumexp[...], target_logit[...]: sums over the vocabulary. */
const crossEntropyPartial: OpRecord<CrossEntropyParams> = {
  name: "cross_entropy_partial",
  infer(inputs) {
    expectInputs("cross_entropy_partial", inputs, 3);
    const row = expectLogits("cross_entropy_partial", inputs[0]!, inputs[1]!);
    expectShape("cross_entropy_partial", "max", inputs[2]!, row.shape);
    expectDType("cross_entropy_partial", "max", inputs[2]!, [row.dtype]);
    return [row, row];
  },
  sharding: {
    factors([logits]) {
      const rows = dimFactors(logits!.shape.length - 1);
      return { inputs: [[...rows, "v"], rows, rows], outputs: [rows, rows], ordered: ["v"] };
    },
    linear: "none",
  },
  gradient: { none: "it is made after differentiation, for a split vocabulary" },
  cost: perElement(12),
  lower(ctx) {
    const [logits, targets, max] = [ctx.inputs[0]!, ctx.inputs[1]!, ctx.inputs[2]!];
    const operands = [rowsView(ctx, logits), flatView(ctx, targets), flatView(ctx, max)];
    const rows = operands[0]!.dims.slice(0, 1);
    const start = startWord(ctx.globalInputs[0]!.shape.at(-1)!, ctx.inputSpecs[0]!.dims.at(-1)!);
    const results = [outputAs(ctx, 0, rows), outputAs(ctx, 1, rows)];
    ctx.emit("cross_entropy_partial", operands, results, [ctx.params.ignore, start]);
  },
};

/** logits[..., v], targets[...], lse[...], dnll[...] -> dlogits[..., v]. */
const crossEntropyGrad: OpRecord<CrossEntropyParams> = {
  name: "cross_entropy_grad",
  infer(inputs) {
    expectInputs("cross_entropy_grad", inputs, 4);
    const row = expectLogits("cross_entropy_grad", inputs[0]!, inputs[1]!);
    for (const [what, i] of [
      ["lse", 2],
      ["dnll", 3],
    ] as const) {
      expectShape("cross_entropy_grad", what, inputs[i]!, row.shape);
      expectDType("cross_entropy_grad", what, inputs[i]!, [row.dtype]);
    }
    return [inputs[0]!];
  },
  sharding: {
    factors([logits]) {
      const rows = dimFactors(logits!.shape.length - 1);
      const all = [...rows, "v"];
      return { inputs: [all, rows, rows, rows], outputs: [all], ordered: ["v"] };
    },
    linear: [3],
  },
  gradient: onceOnly("cross_entropy"),
  cost: perElement(12),
  lower(ctx) {
    const [logits, targets, lse, dnll] = [ctx.inputs[0]!, ctx.inputs[1]!, ctx.inputs[2]!, ctx.inputs[3]!];
    const operands = [rowsView(ctx, logits), flatView(ctx, targets), flatView(ctx, lse), flatView(ctx, dnll, true)];
    const start = startWord(ctx.globalInputs[0]!.shape.at(-1)!, ctx.inputSpecs[0]!.dims.at(-1)!);
    ctx.emit("cross_entropy_grad", operands, [rowsView(ctx, ctx.output(0))], [ctx.params.ignore, start]);
  },
};

export const lossOps = {
  cross_entropy: crossEntropy,
  cross_entropy_partial: crossEntropyPartial,
  cross_entropy_grad: crossEntropyGrad,
};
