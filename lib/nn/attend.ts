// Causal self-attention of heads, with dropout of the probabilities where a model asks for it.
import { attention, iota } from "../tensor/functions.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Dropout } from "./layers.ts";

/**
 * Causal attention of q [b, t, g, r, d] to k [b, t, g, d] and v [b, t, g, e]: [b, t, g, r, e]. Dropout that acts needs
 * the probabilities, t x t for each head, which are then stored; otherwise they never are.
 */
export function attendCausally(q: Tensor, k: Tensor, v: Tensor, dropout: Dropout): Tensor {
  if (dropout.probability === 0 || !dropout.training) return attention(q, k, v);
  const scores = q.mul(1 / Math.sqrt(q.shape[4]!)).einsum("b t g r d, b s g d -> b g r t s", k);
  const square = scores.shape.slice(3);
  const visible = iota(q.context, square, 1).le(iota(q.context, square, 0));
  // Finite, so that rows keep their gradients free of 0 * infinity.
  const weights = visible.where(scores, -1e30).softmax();
  return dropout.call(weights).einsum("b g r t s, b s g e -> b t g r e", v);
}
