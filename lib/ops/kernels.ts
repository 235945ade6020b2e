// The native kernels that op records lower to. `npm run tables` writes native/core/opcodes.h from this list.
import { defineKernel } from "../ir/kernel.ts";
import { matmulKernel } from "./contraction.ts";
import { elementwiseKernel } from "./expression.ts";
import { randomKernel } from "./leaf.ts";
import { copyKernel } from "./movement.ts";
import { reduceKernel, softmaxGradKernel, softmaxKernel } from "./reduction.ts";

export { type ElementOp, elementOps } from "./expression.ts";

export const kernels = [
  elementwiseKernel,
  reduceKernel,
  copyKernel,
  matmulKernel,
  softmaxKernel,
  softmaxGradKernel,
  defineKernel({
    name: "layer_norm",
    doc: `y[r,n] = (x - mean) * rstd * w[n] + b[n]; mean[r], rstd[r] = 1/sqrt(var + eps). Unit stride in n. Statistics are f32 (f64
for f64 x); w and b have the statistics' dtype or x's; y has x's dtype.`,
    inputs: ["x", "w", "b"],
    outputs: ["y", "mean", "rstd"],
    attrs: { eps: "float" },
  }),
  defineKernel({
    name: "layer_norm_grad",
    doc: `From dy[r,n]: dx[r,n] (x's dtype), dw[n] and db[n] (the statistics' dtype, summed over rows in a fixed order).`,
    inputs: ["dy", "x", "w", "mean", "rstd"],
    outputs: ["dx", "dw", "db"],
    attrs: {},
  }),
  defineKernel({
    name: "rms_norm",
    doc: "y[r,n] = x * rstd * w[n]; rstd[r] = 1/sqrt(mean(x^2) + eps). dtypes as layer_norm.",
    inputs: ["x", "w"],
    outputs: ["y", "rstd"],
    attrs: { eps: "float" },
  }),
  defineKernel({
    name: "rms_norm_grad",
    doc: "From dy[r,n]: dx[r,n], dw[n]. dtypes as layer_norm_grad.",
    inputs: ["dy", "x", "w", "rstd"],
    outputs: ["dx", "dw"],
    attrs: {},
  }),
  defineKernel({
    name: "embedding",
    doc: `y[i,w] = table[ids[i] - start, w]; a zero row where ids[i] - start is not a row of this table (shards of a vocabulary).
ids i32 rank 1; table and y the same dtype (f32, f64, bf16), unit stride in w.`,
    inputs: ["table", "ids"],
    outputs: ["y"],
    attrs: { start: "table" },
  }),
  defineKernel({
    name: "embedding_grad",
    doc: `dtable[v,w] = sum of dy[i,w] over i, ascending, with ids[i] - start == v. dy f32, f64 or bf16; dtable f32 (f64 for f64).`,
    inputs: ["dy", "ids"],
    outputs: ["dtable"],
    attrs: { start: "table" },
  }),
  defineKernel({
    name: "cross_entropy",
    doc: `Per row r of logits[r,v] (f32, f64, bf16): lse = log(sum(exp(logits))), nll = lse - logits[target]; nll = 0 where target
equals ignore or is outside [0, v). targets i32 [r]; nll and lse f32 (f64 for f64 logits).`,
    inputs: ["logits", "targets"],
    outputs: ["nll", "lse"],
    attrs: { ignore: "int" },
  }),
  defineKernel({
    name: "cross_entropy_partial",
    doc: `For a shard of the vocabulary starting at start: sumexp[r] = sum(exp(logits - max[r])) and target_logit[r] = the target's
logit if it is in this shard and not ignored, else 0. An empty shard gives zeros.`,
    inputs: ["logits", "targets", "max"],
    outputs: ["sumexp", "target_logit"],
    attrs: { ignore: "int", start: "table" },
  }),
  defineKernel({
    name: "cross_entropy_grad",
    doc: `dlogits[r,v] = (exp(logits - lse[r]) - [v == targets[r] - start]) * dnll[r]; zero rows where the target is ignored.
dlogits has logits' dtype; lse and dnll f32 (f64 for f64). dnll may have stride 0.`,
    inputs: ["logits", "targets", "lse", "dnll"],
    outputs: ["dlogits"],
    attrs: { ignore: "int", start: "table" },
  }),
  defineKernel({
    name: "rope",
    doc: `Rotary positions, "rotate half" form: x[b,t,h,d] and y the same dims, unit stride in d; positions i32 [b,t] (stride 0
allowed). Angle of pair i: position * inv_freq[i], inv_freq f32 or f64 [d/2], computed in the statistics' type.
inverse 1 rotates back (the gradient). f32, f64, bf16.`,
    inputs: ["x", "positions", "inv_freq"],
    outputs: ["y"],
    attrs: { inverse: "int" },
  }),
  defineKernel({
    name: "attention",
    doc: `out[b,t,h,d] = softmax(scale * q k^T + mask) v per head; q[b,t,h,d], k[b,s,g,d], v[b,s,g,e] (out [b,t,h,e]); h = g*r, query
head j uses key head j / r. lse[b,h,t] = log-sum-exp of the scaled scores (f32; f64 for f64). flags: 1 causal (key position
<= query position), 2 positions_q[b,t] and positions_k[b,s] i32 are given (else the indices), 4 segments_q and segments_k
i32 are given (only equal segments attend). Inputs that are not given are absent, the others keep their order. A row with
no visible key gives out = 0 and lse = -inf. Unit stride in d and e, any other strides. Never stores t x s.`,
    inputs: ["q", "k", "v", "positions_q?", "positions_k?", "segments_q?", "segments_k?"],
    outputs: ["out", "lse"],
    attrs: { flags: "int", scale: "float" },
  }),
  defineKernel({
    name: "attention_grad",
    doc: `dq, dk, dv (dims of q, k, v) of attention. Recomputes the probabilities from lse. Sums in a fixed order. Optional inputs as
attention's.`,
    inputs: ["q", "k", "v", "out", "lse", "dout", "positions_q?", "positions_k?", "segments_q?", "segments_k?"],
    outputs: ["dq", "dk", "dv"],
    attrs: { flags: "int", scale: "float" },
  }),
  randomKernel,
  defineKernel({
    name: "square_sum",
    doc: "y[1] = sum of x^2 in a fixed order, accumulated in blocks. x contiguous f32, f64 or bf16; y f32 (f64 for f64).",
    inputs: ["x"],
    outputs: ["y"],
    attrs: {},
  }),
  defineKernel({
    name: "adamw",
    doc: `Decoupled AdamW, in place (outputs are the same memory as p, m, v) on contiguous f32 or f64. Nothing is written unless
gate (i32 [1]) is 1. g = grad * scale; p *= 1 - lr * weight_decay; m += (1 - beta1)(g - m); v = beta2 v + (1 - beta2) g^2;
p -= lr / correction1 * m / (sqrt(v / correction2) + eps). lr, correction1, correction2, scale are scalars of p's dtype
(correctionN = 1 - betaN^step).`,
    inputs: ["p", "grad", "m", "v", "lr", "correction1", "correction2", "scale", "gate"],
    outputs: ["p", "m", "v"],
    attrs: { beta1: "float", beta2: "float", eps: "float", weight_decay: "float" },
  }),
  defineKernel({
    name: "sgd",
    doc: `In place as adamw. g = grad * scale + weight_decay * p; buf = momentum * buf + g; p -= lr * (nesterov ? g + momentum * buf :
buf). PyTorch's rule with dampening 0; buf starts at zero.`,
    inputs: ["p", "grad", "buf", "lr", "scale", "gate"],
    outputs: ["p", "buf"],
    attrs: { momentum: "float", weight_decay: "float", nesterov: "int" },
  }),
  defineKernel({
    name: "all_reduce",
    doc: `y = x reduced over the ranks of a group, in rank order (same bits on every rank). Contiguous, same dims, y may be x. kind:
0 sum, 1 max, 2 min.`,
    inputs: ["x"],
    outputs: ["y"],
    attrs: { group: "table", kind: "int" },
  }),
  defineKernel({
    name: "all_gather",
    doc: `y = the ranks' x joined along dim, in group order. counts is the index in table of the first of n per-rank sizes (n the
group's size; the sizes may be 0). All other dims agree. Contiguous.`,
    inputs: ["x"],
    outputs: ["y"],
    attrs: { group: "table", dim: "int", counts: "int" },
  }),
  defineKernel({
    name: "reduce_scatter",
    doc: "x reduced over the group in rank order; y is this rank's part along dim. counts as all_gather. Contiguous.",
    inputs: ["x"],
    outputs: ["y"],
    attrs: { group: "table", kind: "int", dim: "int", counts: "int" },
  }),
  defineKernel({
    name: "all_to_all",
    doc: `x is cut along split_dim into one part per rank (sizes table[split_counts...]); part i goes to rank i; y joins what arrives
along join_dim (sizes table[join_counts...]). Contiguous. split_dim may equal join_dim.`,
    inputs: ["x"],
    outputs: ["y"],
    attrs: { group: "table", split_dim: "int", join_dim: "int", split_counts: "int", join_counts: "int" },
  }),
  defineKernel({
    name: "broadcast",
    doc: "y on every rank = x of the rank with index root in the group (x is read there only). Contiguous, same dims.",
    inputs: ["x"],
    outputs: ["y"],
    attrs: { group: "table", root: "table" },
  }),
] as const;

/** Name of a native kernel. */
export type KernelName = (typeof kernels)[number]["name"];
