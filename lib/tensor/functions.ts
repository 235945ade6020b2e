// Operations with several tensors or results: embedding, norms, attention, losses, dropout, concatenation.
import { expectDType, expectInteger, expectObject, expectSizes } from "../core/check.ts";
import { describe } from "../core/describe.ts";
import { DTypeError, MeshError, ShapeError } from "../core/errors.ts";
import { type Shape, normalizeDim, shapeText } from "../core/shape.ts";
import type { Readable, Tensor, TensorContext } from "./tensor.ts";
import { Tensor as TensorClass } from "./tensor.ts";
import { SymBuilder } from "./trace.ts";

/** A tensor, or a parameter to be read. */
export type Weight = Tensor | Readable;

/** Throws DTypeError for operands that are no tensors. */
function expectTensors(what: string, values: readonly unknown[]): void {
  for (const value of values) {
    if (!(value instanceof TensorClass)) throw new DTypeError(`${what} takes tensors, not ${describe(value)}`);
  }
}

function expectContext(value: unknown): void {
  if (typeof value === "object" && value !== null && "builder" in value && value.builder instanceof SymBuilder) return;
  throw new MeshError(`a tensor belongs to a mesh or a trace, not to ${describe(value)}`);
}

/** Rows of `table` [v, w] at `ids` (i32, any shape): [...ids, w]. */
export function embedding(table: Weight, ids: Tensor): Tensor {
  expectTensors("embedding", [ids]);
  return ids.with(table).emit("embedding", [ids])[0]!;
}

/** Layer normalisation over the last dim (Ba et al. 2016). `weight` and `bias` are [w]. */
export function layerNorm(x: Tensor, weight: Weight, bias: Weight, eps = 1e-5): Tensor {
  expectTensors("layerNorm", [x]);
  return x.emit("layer_norm", [weight, bias], { eps })[0]!;
}

/** Root-mean-square normalisation over the last dim (Zhang & Sennrich 2019). */
export function rmsNorm(x: Tensor, weight: Weight, eps = 1e-6): Tensor {
  expectTensors("rmsNorm", [x]);
  return x.emit("rms_norm", [weight], { eps })[0]!;
}

/** Settings of attention(). */
export interface AttentionOptions {
  readonly causal?: boolean;
  /** Factor on the scores; 1 / sqrt(d) by default. */
  readonly scale?: number;
  /** Positions of queries [b, t] and keys [b, s], i32, for the causal mask; the indices by default. */
  readonly positions?: { readonly queries: Tensor; readonly keys: Tensor };
  /** Segment numbers of queries and keys, i32: only equal ones attend (packed sequences). */
  readonly segments?: { readonly queries: Tensor; readonly keys: Tensor };
}

/**
 * Scaled dot-product attention. q [b, t, g, r, d] has r query heads for each of the g key-value heads of k [b, s, g, d]
 * and v [b, s, g, e]; the result is [b, t, g, r, e]. Never stores the t x s matrix (Dao et al. 2022).
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor {
  expectTensors("attention", [q, k, v]);
  expectObject("attention's options", options);
  if (q.rank !== 5) throw new ShapeError(`attention: q is [b, t, g, r, d], got ${shapeText(q.shape)}`);
  const { positions, segments } = options;
  for (const pair of [positions, segments]) {
    if (pair === undefined) continue;
    expectObject("attention's positions and segments", pair);
    expectTensors("attention", [pair.queries, pair.keys]);
  }
  const extra = [positions, segments].flatMap((p) => (p ? [p.queries, p.keys] : []));
  return q.emit("attention", [k, v, ...extra], {
    causal: options.causal ?? true,
    scale: options.scale ?? 1 / Math.sqrt(q.shape[4]!),
    positions: positions !== undefined,
    segments: segments !== undefined,
  })[0]!;
}

/**
 * Rotary positions, "rotate half" form (Su et al. 2021): x [b, t, ...heads, d], positions i32 [b, t], invFreq [d/2].
 */
export function rope(x: Tensor, positions: Tensor, invFreq: Tensor): Tensor {
  expectTensors("rope", [x, positions, invFreq]);
  return x.emit("rope", [positions, invFreq], { inverse: false })[0]!;
}

/** Per-row negative log-likelihood of `targets` (i32 [...]) under softmax(logits [..., v]); 0 where target = ignore. */
export function crossEntropy(logits: Tensor, targets: Tensor, ignore = -100): Tensor {
  expectTensors("crossEntropy", [logits, targets]);
  return logits.emit("cross_entropy", [targets], { ignore })[0]!;
}

/**
 * The `count` largest elements of each row of the last dim, largest first, and their indices (i32); of equal ones the
 * first comes first.
 */
export function topk(x: Tensor, count: number): { readonly values: Tensor; readonly indices: Tensor } {
  expectTensors("topk", [x]);
  expectInteger("topk: count", count, 1);
  const [values, indices] = x.emit("topk", [], { count }) as [Tensor, Tensor];
  return { values, indices };
}

/** Joins tensors along a dim; all other dims agree. */
export function concat(parts: readonly Tensor[], dim = 0): Tensor {
  const list = Array.isArray(parts) && parts.every((part) => part instanceof TensorClass);
  if (!list) throw new DTypeError(`concat takes a list of tensors, not ${describe(parts)}`);
  const [first, ...rest] = parts;
  if (!first) throw new ShapeError("concat needs at least one tensor");
  if (rest.length === 0) return first;
  return first.emit("concat", rest, { dim: normalizeDim(dim, first.rank) })[0]!;
}

/** A constant tensor of a context. */
export function full(
  context: TensorContext,
  shape: Shape,
  value: number,
  dtype: "f32" | "f64" | "i32" | "bool" | "bf16" = "f32",
): Tensor {
  expectContext(context);
  expectSizes("the shape of a tensor", shape);
  expectDType("the dtype of a tensor", dtype);
  if (typeof value !== "number") throw new DTypeError(`a tensor is filled with a number, not ${describe(value)}`);
  return new TensorClass(context.builder.constant(value, dtype, shape), context);
}

/** Indices 0, 1, 2, ... along `dim` of a shape, i32. */
export function iota(context: TensorContext, shape: Shape, dim = 0): Tensor {
  expectContext(context);
  expectSizes("the shape of a tensor", shape);
  return new TensorClass(
    context.builder.one("iota", [], { dim: normalizeDim(dim, shape.length), shape: [...shape] }),
    context,
  );
}
