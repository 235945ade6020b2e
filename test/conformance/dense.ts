// Dense tensors of plain numbers: what the reference evaluator computes on.
import type { DType } from "../../lib/core/dtype.ts";
import { fromBf16, fromF16, toBf16, toF16 } from "../../lib/core/dtype.ts";
import { type Shape, sizeOf } from "../../lib/core/shape.ts";
import type { TensorType } from "../../lib/ir/graph.ts";

/** A tensor in row-major order; numbers are float64 whatever the dtype, bool is 0 or 1. */
export interface Dense extends TensorType {
  readonly data: readonly number[];
}

/** The nearest number that the dtype can hold. */
export function roundTo(dtype: DType, value: number): number {
  switch (dtype) {
    case "f64":
      return value;
    case "f32":
      return Math.fround(value);
    case "bf16":
      return fromBf16(toBf16(value));
    case "i32":
      return Math.trunc(value) | 0;
    case "bool":
      return value !== 0 ? 1 : 0;
    case "f16":
      return fromF16(toF16(value));
  }
}

export function dense(dtype: DType, shape: Shape, data: readonly number[]): Dense {
  if (data.length !== sizeOf(shape)) throw new Error(`${data.length} numbers for shape [${shape.join(", ")}]`);
  return { dtype, shape: [...shape], data };
}

export function full(dtype: DType, shape: Shape, value: number): Dense {
  return dense(dtype, shape, new Array<number>(sizeOf(shape)).fill(value));
}

/** Every index of a shape in row-major order: one array, moved on at each step. */
export function* indices(shape: Shape): Generator<readonly number[]> {
  const size = sizeOf(shape);
  const index = new Array<number>(shape.length).fill(0);
  for (let n = 0; n < size; n++) {
    yield index;
    for (let d = shape.length - 1; d >= 0; d--) {
      index[d]!++;
      if (index[d]! < shape[d]!) break;
      index[d] = 0;
    }
  }
}

/** Position of an index in row-major data. */
export function offsetOf(shape: Shape, index: readonly number[]): number {
  let offset = 0;
  for (let d = 0; d < shape.length; d++) offset = offset * shape[d]! + index[d]!;
  return offset;
}

export function at(x: Dense, index: readonly number[]): number {
  return x.data[offsetOf(x.shape, index)]!;
}

/** A tensor whose element at each index is `value(index)`. */
export function build(dtype: DType, shape: Shape, value: (index: readonly number[]) => number): Dense {
  const data: number[] = [];
  for (const index of indices(shape)) data.push(value(index));
  return dense(dtype, shape, data);
}

/** The part [start, stop) of one dim. */
export function narrow(x: Dense, dim: number, start: number, stop: number): Dense {
  const shape = x.shape.map((n, d) => (d === dim ? stop - start : n));
  return build(x.dtype, shape, (index) =>
    at(
      x,
      index.map((i, d) => (d === dim ? i + start : i)),
    ),
  );
}

/** Parts joined along a dim. */
export function join(parts: readonly Dense[], dim: number): Dense {
  const first = parts[0]!;
  const owner: [Dense, number][] = parts.flatMap((part) =>
    Array.from({ length: part.shape[dim]! }, (_, i): [Dense, number] => [part, i]),
  );
  const shape = first.shape.map((n, d) => (d === dim ? owner.length : n));
  return build(first.dtype, shape, (index) => {
    const [part, i] = owner[index[dim]!]!;
    return at(
      part,
      index.map((k, d) => (d === dim ? i : k)),
    );
  });
}

/** Elementwise combination of two tensors of one shape. */
export function combine(a: Dense, b: Dense, f: (x: number, y: number) => number): Dense {
  return dense(
    a.dtype,
    a.shape,
    a.data.map((x, i) => f(x, b.data[i]!)),
  );
}
