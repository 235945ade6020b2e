// Random programs as plain data: leaves with shapes and splits, and steps that name an op and pick operands by number.
// A recipe always builds: where a pick does not fit, the step takes what does. So fast-check shrinks to short programs.
import fc from "fast-check";
import type { PartitionSpec } from "../../lib/ir/spec.ts";
import { stepNames } from "./steps.ts";

/** A tensor that is fed: its elements are drawn from a seed, its splits are derived from numbers for any mesh. */
export interface LeafRecipe {
  readonly shape: readonly number[];
  readonly seed: number;
  /** For the i-th mesh axis, the dim that it splits (modulo rank + 1; the last: none). */
  readonly places: readonly number[];
  /** Axes that split one dim nest in reverse order. */
  readonly reversed: boolean;
}

export interface StepRecipe {
  readonly op: string;
  /** Which operands, dims and sizes: each is taken modulo what is possible. */
  readonly picks: readonly number[];
}

export interface Recipe {
  readonly dtype: "f64" | "f32";
  readonly axes: Readonly<Record<string, number>>;
  readonly leaves: readonly LeafRecipe[];
  readonly steps: readonly StepRecipe[];
  readonly differentiate: boolean;
}

/** The meshes that programs run on; their axes mean nothing to these programs, but their order does. */
export const meshes: readonly Readonly<Record<string, number>>[] = [
  { a: 2 },
  { a: 3 },
  { dp: 2, tp: 2 },
  { b: 2, a: 2 },
  { tp: 4 },
  { dp: 1, tp: 3 },
];

const small = fc.integer({ min: 0, max: 11 });

const leaf: fc.Arbitrary<LeafRecipe> = fc.record({
  shape: fc.array(
    fc.oneof({ weight: 30, arbitrary: fc.integer({ min: 1, max: 6 }) }, { weight: 1, arbitrary: fc.constant(0) }),
    { maxLength: 3 },
  ),
  seed: fc.nat(1000),
  places: fc.array(small, { minLength: 2, maxLength: 2 }),
  reversed: fc.boolean(),
});

const step: fc.Arbitrary<StepRecipe> = fc.record({
  op: fc.constantFrom(...stepNames),
  picks: fc.array(small, { minLength: 5, maxLength: 5 }),
});

export const recipes: fc.Arbitrary<Recipe> = fc.record({
  dtype: fc.oneof(
    { weight: 3, arbitrary: fc.constant("f64" as const) },
    { weight: 1, arbitrary: fc.constant("f32" as const) },
  ),
  axes: fc.constantFrom(...meshes),
  leaves: fc.array(leaf, { minLength: 1, maxLength: 4 }),
  steps: fc.array(step, { minLength: 3, maxLength: 12 }),
  differentiate: fc.boolean(),
});

/** The leaf's spec on a mesh with these axes. */
export function specOf({ shape, places, reversed }: LeafRecipe, axes: readonly string[]): PartitionSpec {
  const dims: string[][] = shape.map(() => []);
  axes.forEach((axis, i) => {
    dims[places[i]! % (shape.length + 1)]?.push(axis);
  });
  return reversed ? dims.map((list) => list.toReversed()) : dims;
}
