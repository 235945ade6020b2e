// The native kernels that op records lower to. `npm run tables` writes native/core/opcodes.h from this list.
import { defineKernel } from "../ir/kernel.ts";

export const kernels = [
  defineKernel({
    name: "elementwise",
    doc: `Runs a straight-line expression for every element. All operands have the output's rank and dims; inputs may repeat
(stride 0). Words after count: count instructions of 5 words [eop, type, a, b, c], then the number of outputs, then one
value number per output. Values 0..inputs-1 are the inputs; instruction k makes value inputs+k. type: 0 f32, 1 f64, 2 i32,
the type of the operands a, b, c (for select: of b and c); for cast the type of the result, converted from a's own type.
bf16 and f16 load as f32, bool as i32 0/1, and stores round to nearest even (f32 to bool: not zero). Comparisons, and, or,
not and is_finite give i32 0/1. const: a is an index into floats. iota: a is a dim, the value is the index in that dim
plus table[b] (b = -1: plus nothing). round_to: rounds an f32 to dtype b and back. No contraction to fused multiply-add.
i32 add, sub and mul wrap around, div truncates, division by zero gives 0. rem has the sign of a (fmod); round is half to even;
max, min and sign give NaN for NaN; cast to i32 truncates and saturates, NaN gives 0. gelu is the tanh form; gelu_grad and
silu_grad take a = x, b = dy and give dy times the derivative at x. At most 256 values in all and 64 outputs.`,
    inputs: ["x*"],
    outputs: ["y*"],
    attrs: { count: "int" },
    rest: "int",
  }),
  defineKernel({
    name: "reduce",
    doc: `y = x reduced over the dims where y has size 1 and x has not. Same rank. kind: 0 sum, 1 max, 2 min. x is f32, f64, bf16
or i32; y has x's dtype, or f32 for bf16 x. An empty reduction gives 0, -inf, +inf (i32: lowest, highest). x may have any
strides, y too.`,
    inputs: ["x"],
    outputs: ["y"],
    attrs: { kind: "int" },
  }),
  defineKernel({
    name: "copy",
    doc: "y = x. Same rank, dims and dtype; any strides on both sides (y without repeats).",
    inputs: ["x"],
    outputs: ["y"],
    attrs: {},
  }),
  defineKernel({
    name: "matmul",
    doc: `d[b,m,n] = act(alpha * sum_k a[b,m,k] * b[b,k,n] + bias[n]) + residual[b,m,n] (+ d when flags has 1). Rank 3 each, bias
rank 1; a and b have unit stride in one of their two last dims (any other strides, batch stride 0 allowed), d and residual
unit stride in n. k = 0 gives zero products. flags: 1 accumulate into d, 2 bias is given, 4 residual is given, 8 act is
gelu (tanh form), 16 act is silu. dtypes: all f32, all f64, or a and b bf16 with d, bias and residual each bf16 or f32.`,
    inputs: ["a", "b", "bias?", "residual?"],
    outputs: ["d"],
    attrs: { flags: "int", alpha: "float" },
  }),
  defineKernel({
    name: "softmax",
    doc: "y[r,n] = softmax of each row. Unit stride in n, any row stride. f32, f64, bf16.",
    inputs: ["x"],
    outputs: ["y"],
    attrs: {},
  }),
  defineKernel({
    name: "softmax_grad",
    doc: "dx[r,n] = y * (dy - sum_n(y * dy)). Unit stride in n.",
    inputs: ["y", "dy"],
    outputs: ["dx"],
    attrs: {},
  }),
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
  defineKernel({
    name: "random",
    doc: `Counter-based random numbers, Philox4x32-10. key i32 [3] = seed low, seed high, step. Words after kind, site, has_rows: for
each dim of y, two words: start (index into table, -1 for 0) and the global size of that dim. The global linear index of an
element is row-major over global sizes with index start + local index; when has_rows is 1, rows i32 [dims[0]] gives the
index in dim 0 instead. counter = [lo(q), hi(q), site, step], q = index / 4, key = [seed low, seed high]; lane = index % 4.
kind 0: bits (i32). 1: uniform f32 (bits >> 8) * 2^-24, in [0, 1). 2: normal, Box-Muller on the lane pairs (0,1) and (2,3),
r = sqrt(-2 log(1 - u1)), (r cos 2 pi u2, r sin 2 pi u2), in f32 by own polynomials (no contraction: same bits on every
path). f64 and bf16 y take the f32 number, converted.`,
    inputs: ["key", "rows?"],
    outputs: ["y"],
    attrs: { kind: "int", site: "int", has_rows: "int" },
    rest: "int",
  }),
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
