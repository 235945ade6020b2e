// Comparison of tensors within a tolerance, with the first difference in the message.
import assert from "node:assert/strict";
import { shapeText } from "../../lib/core/shape.ts";
import type { Dense } from "./dense.ts";

/** |a - b| <= absolute + relative |b|. */
export interface Tolerance {
  readonly relative: number;
  readonly absolute: number;
}

/** float64 arithmetic in another order. */
export const float64: Tolerance = { relative: 1e-9, absolute: 1e-11 };

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
