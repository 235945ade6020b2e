// Arithmetic on views: permuted, sliced, repeated, reshaped and collapsed without touching memory.
import { rowMajorStrides, type Shape, sizeOf } from "../core/shape.ts";
import type { View } from "./lowering.ts";

/** Dim i of the result is dim permutation[i] of the view. */
export function permuteView(view: View, permutation: readonly number[]): View {
  return {
    ...view,
    dims: permutation.map((d) => view.dims[d]!),
    strides: permutation.map((d) => view.strides[d]!),
  };
}

/** The part [start, stop) of one dim. */
export function sliceView(view: View, dim: number, start: number, stop: number): View {
  return {
    ...view,
    offset: view.offset + start * view.strides[dim]!,
    dims: view.dims.map((n, d) => (d === dim ? stop - start : n)),
  };
}

/** Repeats dims of size 1 up to `dims` (same rank) with stride 0. */
export function broadcastView(view: View, dims: Shape): View {
  return { ...view, dims: [...dims], strides: view.strides.map((s, d) => (view.dims[d] === dims[d] ? s : 0)) };
}

interface Run {
  readonly size: number;
  readonly stride: number;
}

/** The listed dims, in that order, as one dim; null when their elements are not evenly spaced. Size 1 gets stride 1. */
function collapse(view: View, dims: readonly number[]): Run | null {
  let run: Run | null = null;
  for (const d of dims.toReversed()) {
    const size = view.dims[d]!;
    if (size === 1) continue;
    if (run !== null && view.strides[d] !== run.size * run.stride) return null;
    run = run === null ? { size, stride: view.strides[d]! } : { size: run.size * size, stride: run.stride };
  }
  return run ?? { size: 1, stride: 1 };
}

/** One dim for each group of dims (every dim in one group); null when the strides do not allow it. */
export function collapseView(view: View, groups: readonly (readonly number[])[]): View | null {
  if (sizeOf(view.dims) === 0) {
    const dims = groups.map((group) => sizeOf(group.map((d) => view.dims[d]!)));
    return { ...view, dims, strides: rowMajorStrides(dims) };
  }
  const runs = groups.map((group) => collapse(view, group));
  if (!runs.every((run) => run !== null)) return null;
  return { ...view, dims: runs.map((run) => run.size), strides: runs.map((run) => run.stride) };
}

/** Dims that correspond in a reshape: consecutive dims of both shapes with the same product. */
export interface ReshapeGroup {
  readonly from: readonly number[];
  readonly to: readonly number[];
}

/**
 * Splits a reshape (of a shape without empty dims) into the smallest groups. A lone dim of size 1 is a group by itself.
 */
export function reshapeGroups(from: Shape, to: Shape): ReshapeGroup[] {
  const groups: ReshapeGroup[] = [];
  let i = 0;
  let j = 0;
  while (i < from.length || j < to.length) {
    if (from[i] === 1 && to[j] === 1) {
      groups.push({ from: [i++], to: [j++] });
    } else if (from[i] === 1) {
      groups.push({ from: [i++], to: [] });
    } else if (to[j] === 1) {
      groups.push({ from: [], to: [j++] });
    } else {
      const group = { from: [i], to: [j] };
      let left = from[i++]!;
      let right = to[j++]!;
      while (left !== right) {
        if (left < right) {
          left *= from[i]!;
          group.from.push(i++);
        } else {
          right *= to[j]!;
          group.to.push(j++);
        }
      }
      groups.push(group);
    }
  }
  return groups;
}

/** The same elements in row-major order under another shape; null when that takes a copy. */
export function reshapeView(view: View, shape: Shape): View | null {
  if (sizeOf(shape) === 0) return { ...view, dims: [...shape], strides: rowMajorStrides(shape) };
  const strides = new Array<number>(shape.length).fill(1);
  for (const { from, to } of reshapeGroups(view.dims, shape)) {
    const run = collapse(view, from);
    if (run === null) return null;
    let step = run.stride;
    for (const d of to.toReversed()) {
      strides[d] = step;
      step *= shape[d]!;
    }
  }
  return { ...view, dims: [...shape], strides };
}
