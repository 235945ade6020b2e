// Builds a recipe's graph on any builder, and draws its leaves.
import { sizeOf } from "../../lib/core/shape.ts";
import { gradients } from "../../lib/tensor/grad.ts";
import { type NamedSym, type Sym, type SymBuilder, reachable } from "../../lib/tensor/trace.ts";
import { type Dense, dense } from "../conformance/dense.ts";
import { Draw } from "../conformance/draw.ts";
import type { Recipe } from "./recipe.ts";
import { addStep } from "./steps.ts";

/** The leaves' elements; those of the i-th come from its seed alone. */
export function drawLeaves({ leaves, dtype }: Recipe): Dense[] {
  return leaves.map(({ shape, seed }, i) =>
    sizeOf(shape) === 0 ? dense(dtype, shape, []) : new Draw(`leaf ${i} ${seed}`).uniform(dtype, shape),
  );
}

/** Sum of the values with fixed weights: a loss of all of them. */
export function weighted(b: SymBuilder, values: readonly Sym[]): Sym {
  const terms = values.map((y, i) => b.mul(b.sum(y), 1 + 0.3 * i));
  return terms.reduce((a, c) => b.add(a, c));
}

/**
 * What the program gives: values that nothing reads, and the gradients of their weighted sum with respect to the
 * leaves.
 */
export function buildProgram(recipe: Recipe, b: SymBuilder, leaves: readonly Sym[]): NamedSym[] {
  const values = [...leaves];
  for (const { op, picks } of recipe.steps) values.push(addStep(op, { b, dtype: recipe.dtype, values, picks }));
  const read = new Set(reachable(values).flatMap((node) => node.inputs));
  const results = [...new Set([...values.slice(leaves.length).filter((sym) => !read.has(sym)), values.at(-1)!])];
  const outputs = results.map((sym, i) => ({ name: `y${i}`, sym }));
  if (!recipe.differentiate) return outputs;
  const seed = b.constant(1, recipe.dtype);
  const grads = gradients(b, weighted(b, results), seed, leaves);
  return [...outputs, ...grads.flatMap((sym, i) => (sym === null ? [] : [{ name: `d${i}`, sym }]))];
}
