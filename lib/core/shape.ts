// Shapes: sizes, broadcasting, normalised dims.
import { describe } from "./describe.ts";
import { ShapeError } from "./errors.ts";

/** Sizes of a tensor's dims, outermost first. A scalar has the empty shape. */
export type Shape = readonly number[];

/** Most dims of a tensor (kMaxRank in native/core/view.h). */
export const maxRank = 8;

/** Number of elements. */
export function sizeOf(shape: Shape): number {
  let n = 1;
  for (const d of shape) n *= d;
  return n;
}

/** True when both shapes have the same rank and sizes. */
export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((d, i) => d === b[i]);
}

/** Text of a shape: `[2, 3]`. */
export function shapeText(shape: Shape): string {
  return `[${shape.join(", ")}]`;
}

/** A dim counted from the end when negative. Throws ShapeError when it is not a dim of a tensor of this rank. */
export function normalizeDim(dim: number, rank: number, what = "dim"): number {
  const d = typeof dim === "number" && dim < 0 ? dim + rank : dim;
  if (!Number.isInteger(d) || d < 0 || d >= rank) {
    throw new ShapeError(`${what} ${describe(dim)} is outside a tensor of rank ${rank}`);
  }
  return d;
}

/** Normalised dims, ascending, without repeats; all dims when undefined. */
export function normalizeDims(dims: number | readonly number[] | undefined, rank: number): number[] {
  if (dims === undefined) return Array.from({ length: rank }, (_, i) => i);
  if (typeof dims !== "number" && !Array.isArray(dims)) throw new ShapeError(`${describe(dims)} is no list of dims`);
  const list = (typeof dims === "number" ? [dims] : [...dims]).map((d) => normalizeDim(d, rank));
  const unique = [...new Set(list)].sort((a, b) => a - b);
  if (unique.length !== list.length) throw new ShapeError(`dims ${shapeText(list)} name a dim twice`);
  return unique;
}

/** The shape both broadcast to, NumPy's rule. Throws ShapeError naming the dim that does not fit. */
export function broadcastShapes(a: Shape, b: Shape, what = "operands"): number[] {
  const rank = Math.max(a.length, b.length);
  const out: number[] = [];
  for (let i = 0; i < rank; i++) {
    const da = a[a.length - rank + i] ?? 1;
    const db = b[b.length - rank + i] ?? 1;
    if (da !== db && da !== 1 && db !== 1) {
      throw new ShapeError(
        `${what} of shapes ${shapeText(a)} and ${shapeText(b)} do not broadcast: dim ${i - rank} is ${da} and ${db}`,
      );
    }
    out.push(da === 1 ? db : da);
  }
  return out;
}

/** Row-major strides in elements. */
export function rowMajorStrides(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let d = shape.length - 1; d >= 0; d--) {
    strides[d] = step;
    step *= shape[d]!;
  }
  return strides;
}
