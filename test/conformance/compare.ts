// Comparison of tensors within a tolerance, with the first difference in the message.
import assert from "node:assert/strict";
import { type DType, isFloat } from "../../lib/core/dtype.ts";
import { shapeText } from "../../lib/core/shape.ts";
import type { Dense } from "./dense.ts";

/** |a - b| <= absolute + relative |b|. */
export interface Tolerance {
  readonly relative: number;
  readonly absolute: number;
}

/** float64 arithmetic in another order. */
export const float64: Tolerance = { relative: 1e-9, absolute: 1e-11 };

/** PyTorch's tolerances; integers and booleans are exact. */
const tolerances: Readonly<Record<DType, Tolerance>> = {
  f64: { relative: 1e-7, absolute: 1e-7 },
  f32: { relative: 1.3e-6, absolute: 1e-5 },
  bf16: { relative: 1.6e-2, absolute: 1e-5 },
  f16: { relative: 1e-3, absolute: 1e-5 },
  i32: { relative: 0, absolute: 0 },
  bool: { relative: 0, absolute: 0 },
};

/** The tolerance of the last tensor, a result: that of the coarsest float among it and those it is computed from. */
export function toleranceOf(types: readonly Pick<Dense, "dtype">[]): Tolerance {
  const result = types.at(-1)!.dtype;
  const order: readonly DType[] = isFloat(result) ? ["bf16", "f16", "f32", "f64"] : [result];
  return tolerances[order.find((dtype) => types.some((x) => x.dtype === dtype))!];
}

export function isClose(a: number, b: number, { relative, absolute }: Tolerance): boolean {
  if (Object.is(a, b) || a === b) return true;
  return Math.abs(a - b) <= absolute + relative * Math.abs(b);
}

/** Throws unless dtypes and shapes agree and every element is close. */
export function assertClose(actual: Dense, expected: Dense, tolerance: Tolerance, what: string): void {
  const type = (x: Dense): string => `${x.dtype}${shapeText(x.shape)}`;
  assert.equal(type(actual), type(expected), what);
  expected.data.forEach((value, i) => {
    if (!isClose(actual.data[i]!, value, tolerance)) {
      assert.fail(`${what}: element ${i} of ${type(expected)} is ${actual.data[i]}, expected ${value}`);
    }
  });
}
