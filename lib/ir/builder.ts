// The builder interface: how gradients, decompositions and tensors add operations, whatever values are to the caller.
import type { DType } from "../core/dtype.ts";
import { type Shape, broadcastShapes, normalizeDims, sameShape } from "../core/shape.ts";
import type { Params, TensorType } from "./graph.ts";

/** Adds operations to a computation. `V` is a tensor's value while tracing and a value id in a pass. */
export abstract class Builder<V> {
  /** Adds one op and returns its results. Throws ShapeError or DTypeError when the op's record refuses the operands. */
  abstract emit(op: string, inputs: readonly V[], params?: Params): V[];
  /** Dtype and shape of a value. */
  abstract type(value: V): TensorType;

  shape(value: V): Shape {
    return this.type(value).shape;
  }
  dtype(value: V): DType {
    return this.type(value).dtype;
  }
  /** emit() for ops with one result. */
  one(op: string, inputs: readonly V[], params: Params = {}): V {
    return this.emit(op, inputs, params)[0]!;
  }

  /** A tensor of one repeated number. */
  constant(value: number, dtype: DType, shape: Shape = []): V {
    return this.one("constant", [], { value, dtype, shape: [...shape] });
  }
  /** A constant with the dtype and shape of another value. */
  like(value: V, number: number): V {
    return this.constant(number, this.dtype(value), this.shape(value));
  }

  /** Binary elementwise op with broadcasting; a JavaScript number takes the other operand's dtype. */
  binary(op: string, a: V | number, b: V | number): V {
    if (typeof a === "number" && typeof b === "number") throw new TypeError(`${op} of two numbers`);
    const va = typeof a === "number" ? this.constant(a, this.dtype(b as V)) : a;
    const vb = typeof b === "number" ? this.constant(b, this.dtype(a as V)) : b;
    const shape = broadcastShapes(this.shape(va), this.shape(vb), `${op} operands`);
    return this.one(op, [this.broadcastTo(va, shape), this.broadcastTo(vb, shape)]);
  }
  add(a: V | number, b: V | number): V {
    return this.binary("add", a, b);
  }
  sub(a: V | number, b: V | number): V {
    return this.binary("sub", a, b);
  }
  mul(a: V | number, b: V | number): V {
    return this.binary("mul", a, b);
  }
  div(a: V | number, b: V | number): V {
    return this.binary("div", a, b);
  }
  unary(op: string, x: V): V {
    return this.one(op, [x]);
  }
  neg(x: V): V {
    return this.unary("neg", x);
  }
  /** condition (bool) ? a : b, with broadcasting. */
  select(condition: V, a: V | number, b: V | number): V {
    const dtype = typeof a !== "number" ? this.dtype(a) : typeof b !== "number" ? this.dtype(b) : "f32";
    const va = typeof a === "number" ? this.constant(a, dtype) : a;
    const vb = typeof b === "number" ? this.constant(b, dtype) : b;
    const shape = [va, vb].reduce<number[]>(
      (s, v) => broadcastShapes(s, this.shape(v), "select operands"),
      [...this.shape(condition)],
    );
    return this.one(
      "select",
      [condition, va, vb].map((v) => this.broadcastTo(v, shape)),
    );
  }
  cast(x: V, dtype: DType): V {
    return this.dtype(x) === dtype ? x : this.one("cast", [x], { dtype });
  }

  /** Repeats dims of size 1 and adds leading dims. */
  broadcastTo(x: V, shape: Shape): V {
    const own = this.shape(x);
    if (sameShape(own, shape)) return x;
    const lead = shape.length - own.length;
    const wide = lead > 0 ? this.reshape(x, [...new Array<number>(lead).fill(1), ...own]) : x;
    return sameShape(this.shape(wide), shape) ? wide : this.one("broadcast", [wide], { shape: [...shape] });
  }
  reshape(x: V, shape: Shape): V {
    return sameShape(this.shape(x), shape) ? x : this.one("reshape", [x], { shape: [...shape] });
  }
  /** Result dim i is dim permutation[i] of x. */
  transpose(x: V, permutation: readonly number[]): V {
    return permutation.every((d, i) => d === i) ? x : this.one("transpose", [x], { permutation: [...permutation] });
  }
  /** The part [start, stop) of one dim. */
  slice(x: V, dim: number, start: number, stop: number): V {
    return start === 0 && stop === this.shape(x)[dim] ? x : this.one("slice", [x], { dim, start, stop });
  }
  concat(parts: readonly V[], dim: number): V {
    return parts.length === 1 ? parts[0]! : this.one("concat", parts, { dim });
  }
  /** Adds `before` and `after` elements of `value` to one dim. */
  pad(x: V, dim: number, before: number, after: number, value = 0): V {
    return before === 0 && after === 0 ? x : this.one("pad", [x], { dim, before, after, value });
  }

  /** sum, max or min over dims, which disappear unless keep is set. */
  reduce(kind: "sum" | "max" | "min", x: V, dims?: number | readonly number[], keep = false): V {
    const shape = this.shape(x);
    const over = normalizeDims(dims, shape.length);
    const kept = over.length === 0 ? x : this.one(`reduce_${kind}`, [x], { dims: over });
    return keep
      ? kept
      : this.reshape(
          kept,
          shape.filter((_, d) => !over.includes(d)),
        );
  }
  sum(x: V, dims?: number | readonly number[], keep = false): V {
    return this.reduce("sum", x, dims, keep);
  }
  /** Sums x down to a shape it was broadcast from: the gradient of broadcastTo. */
  sumTo(x: V, shape: Shape): V {
    const own = this.shape(x);
    const lead = own.length - shape.length;
    const dims = own.flatMap((n, d) => (d < lead || (shape[d - lead] === 1 && n !== 1) ? [d] : []));
    return this.reshape(this.sum(x, dims, true), shape);
  }
  /** Contraction in einsum notation over one-letter or space-separated labels: "b m k, b k n -> b m n". */
  einsum(equation: string, a: V, b: V): V {
    return this.one("einsum", [a, b], { equation });
  }
}
