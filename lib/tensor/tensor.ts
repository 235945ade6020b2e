// Tensor: sugar over a builder. Operations grow a graph and compute nothing; reading a value compiles and runs it.
import { expectList } from "../core/check.ts";
import { expectDType, expectSizes } from "../core/check.ts";
import { describe } from "../core/describe.ts";
import { type DType, type StorageArray, fromStorage, isFloat } from "../core/dtype.ts";
import { DTypeError, MeshError, ShapeError } from "../core/errors.ts";
import { type Shape, maxRank, normalizeDim, normalizeDims, shapeText, sizeOf } from "../core/shape.ts";
import type { Params } from "../ir/graph.ts";
import type { Sym, SymBuilder } from "./trace.ts";

/** Where a tensor's operations go: the builder of one trace or mesh, and who evaluates them. */
export interface TensorContext {
  readonly builder: SymBuilder;
  /** Name for errors: `mesh pp=2,tp=2` or `a traced function`. */
  readonly name: string;
  /** Computes values; absent while tracing, where nothing has a value yet. */
  evaluate?(tensors: readonly Tensor[]): Promise<StorageArray[]>;
}

/** Something that can be read as a tensor within a context: a parameter. */
export interface Readable {
  read(context: TensorContext): Tensor;
}

/** What binary operations take: a number takes the other operand's dtype. */
export type Operand = Tensor | Readable | number;

/** Nested arrays of numbers. */
export type Nested = number | boolean | readonly Nested[];

/** A lazy n-dimensional array: dtype, shape, and the operation that makes it. Immutable. */
export class Tensor {
  readonly sym: Sym;
  readonly context: TensorContext;

  constructor(sym: Sym, context: TensorContext) {
    this.sym = sym;
    this.context = context;
  }

  get dtype(): DType {
    return this.sym.type.dtype;
  }
  get shape(): Shape {
    return this.sym.type.shape;
  }
  get rank(): number {
    return this.shape.length;
  }
  get size(): number {
    return sizeOf(this.shape);
  }

  toString(): string {
    return `Tensor ${this.dtype}${shapeText(this.shape)} of ${this.context.name}`;
  }

  // Reading ------------------------------------------------------------------------------------------------------

  /**
   * The elements in row-major order, in the dtype's storage (bf16 as Uint16Array). Compiles and runs what is needed.
   */
  async data(): Promise<StorageArray> {
    const { evaluate, name } = this.context;
    if (!evaluate) throw new MeshError(`a tensor of ${name} has no value while it is being traced`);
    return (await evaluate.call(this.context, [this]))[0]!;
  }
  /** The elements as numbers, row-major. */
  async values(): Promise<number[]> {
    return fromStorage(this.dtype, await this.data());
  }
  /** The value of a tensor with one element. Throws ShapeError for others. */
  async item(): Promise<number> {
    if (this.size !== 1)
      throw new ShapeError(`item() reads one element, this tensor has shape ${shapeText(this.shape)}`);
    return (await this.values())[0]!;
  }
  /** The elements as nested arrays. */
  async array(): Promise<Nested> {
    return nest(await this.values(), this.shape);
  }

  // Building -----------------------------------------------------------------------------------------------------

  /** Adds an op to this tensor's graph. The other tensors must belong to the same mesh or trace. */
  emit(op: string, others: readonly Operand[], params: Params = {}): Tensor[] {
    expectList(`${describe(op)}'s other operands`, others);
    const inputs = [this, ...others.map((o) => this.#operand(o))];
    return this.context.builder
      .emit(
        op,
        inputs.map((t) => t.sym),
        params,
      )
      .map((s) => new Tensor(s, this.context));
  }
  #operand(other: Operand): Tensor {
    return typeof other === "number" ? this.wrap(this.context.builder.constant(other, this.dtype)) : this.with(other);
  }
  /** The operand as a tensor of this tensor's context. Throws MeshError when it belongs to another. */
  with(other: Tensor | Readable): Tensor {
    if (!(other instanceof Tensor)) {
      const readable = typeof other === "object" && other !== null && typeof other.read === "function";
      if (!readable) throw new DTypeError(`an operand must be a tensor or a parameter, not ${describe(other)}`);
      return other.read(this.context);
    }
    if (other.context !== this.context) {
      throw new MeshError(`a tensor of ${other.context.name} cannot be used with one of ${this.context.name}`);
    }
    return other;
  }
  wrap(sym: Sym): Tensor {
    return new Tensor(sym, this.context);
  }
  #sym(other: Operand): Sym | number {
    return typeof other === "number" ? other : this.with(other).sym;
  }
  #binary(op: string, other: Operand): Tensor {
    return this.wrap(this.context.builder.binary(op, this.sym, this.#sym(other)));
  }
  #unary(op: string): Tensor {
    return this.wrap(this.context.builder.unary(op, this.sym));
  }

  // Elementwise --------------------------------------------------------------------------------------------------

  add(other: Operand): Tensor {
    return this.#binary("add", other);
  }
  sub(other: Operand): Tensor {
    return this.#binary("sub", other);
  }
  mul(other: Operand): Tensor {
    return this.#binary("mul", other);
  }
  div(other: Operand): Tensor {
    return this.#binary("div", other);
  }
  /** Remainder with the sign of the dividend, as JavaScript's %. */
  rem(other: Operand): Tensor {
    return this.#binary("rem", other);
  }
  pow(other: Operand): Tensor {
    return this.#binary("pow", other);
  }
  maximum(other: Operand): Tensor {
    return this.#binary("max", other);
  }
  minimum(other: Operand): Tensor {
    return this.#binary("min", other);
  }
  eq(other: Operand): Tensor {
    return this.#binary("eq", other);
  }
  ne(other: Operand): Tensor {
    return this.#binary("ne", other);
  }
  lt(other: Operand): Tensor {
    return this.#binary("lt", other);
  }
  le(other: Operand): Tensor {
    return this.#binary("le", other);
  }
  gt(other: Operand): Tensor {
    return this.wrap(this.context.builder.binary("lt", this.#sym(other), this.sym));
  }
  ge(other: Operand): Tensor {
    return this.wrap(this.context.builder.binary("le", this.#sym(other), this.sym));
  }
  and(other: Operand): Tensor {
    return this.#binary("and", other);
  }
  or(other: Operand): Tensor {
    return this.#binary("or", other);
  }
  not(): Tensor {
    return this.#unary("not");
  }
  neg(): Tensor {
    return this.#unary("neg");
  }
  abs(): Tensor {
    return this.#unary("abs");
  }
  sign(): Tensor {
    return this.#unary("sign");
  }
  floor(): Tensor {
    return this.#unary("floor");
  }
  ceil(): Tensor {
    return this.#unary("ceil");
  }
  /** Rounds to the nearest integer, ties to even. */
  round(): Tensor {
    return this.#unary("round");
  }
  exp(): Tensor {
    return this.#unary("exp");
  }
  log(): Tensor {
    return this.#unary("log");
  }
  sqrt(): Tensor {
    return this.#unary("sqrt");
  }
  rsqrt(): Tensor {
    return this.#unary("rsqrt");
  }
  reciprocal(): Tensor {
    return this.#unary("reciprocal");
  }
  sin(): Tensor {
    return this.#unary("sin");
  }
  cos(): Tensor {
    return this.#unary("cos");
  }
  tanh(): Tensor {
    return this.#unary("tanh");
  }
  erf(): Tensor {
    return this.#unary("erf");
  }
  sigmoid(): Tensor {
    return this.#unary("sigmoid");
  }
  isFinite(): Tensor {
    return this.#unary("is_finite");
  }
  relu(): Tensor {
    return this.maximum(0);
  }
  silu(): Tensor {
    return this.#unary("silu");
  }
  /** Gaussian error linear unit: "tanh" is GPT-2's approximation (Hendrycks & Gimpel 2016, section 2), "erf" exact. */
  gelu(form: "tanh" | "erf" = "tanh"): Tensor {
    if (form === "tanh") return this.#unary("gelu");
    return this.mul(0.5).mul(this.mul(Math.SQRT1_2).erf().add(1));
  }
  square(): Tensor {
    return this.mul(this);
  }
  cast(dtype: DType): Tensor {
    expectDType("cast's dtype", dtype);
    return this.wrap(this.context.builder.cast(this.sym, dtype));
  }
  /** this (bool) ? a : b, element by element, with broadcasting. */
  where(a: Operand, b: Operand): Tensor {
    return this.wrap(this.context.builder.select(this.sym, this.#sym(a), this.#sym(b)));
  }

  // Shape --------------------------------------------------------------------------------------------------------

  /** The same elements in another shape; one size may be -1. */
  reshape(shape: Shape): Tensor {
    expectSizes("reshape's shape", shape, -1);
    return this.wrap(this.context.builder.reshape(this.sym, resolveShape(shape, this.shape)));
  }
  /** Dims in another order: result dim i is dim permutation[i]. Without one, reverses all dims. */
  transpose(permutation?: readonly number[]): Tensor {
    if (permutation !== undefined) expectSizes("transpose's dims", permutation, -this.rank);
    const order = (permutation ?? this.shape.map((_, d) => this.rank - 1 - d)).map((d) => normalizeDim(d, this.rank));
    if (order.length !== this.rank || new Set(order).size !== this.rank) {
      throw new ShapeError(
        `${shapeText(order)} does not permute the dims of a tensor of shape ${shapeText(this.shape)}`,
      );
    }
    return this.wrap(this.context.builder.transpose(this.sym, order));
  }
  broadcastTo(shape: Shape): Tensor {
    expectSizes("broadcastTo's shape", shape);
    return this.wrap(this.context.builder.broadcastTo(this.sym, shape));
  }
  /** Elements [start, stop) of one dim; negative positions count from the end. */
  slice(dim: number, start: number, stop?: number): Tensor {
    const d = normalizeDim(dim, this.rank);
    const n = this.shape[d]!;
    const from = start < 0 ? start + n : start;
    const to = stop === undefined ? n : stop < 0 ? stop + n : stop;
    return this.wrap(this.context.builder.slice(this.sym, d, from, to));
  }
  /** Element `index` of one dim, which disappears. */
  select(dim: number, index: number): Tensor {
    const d = normalizeDim(dim, this.rank);
    const i = index < 0 ? index + this.shape[d]! : index;
    return this.slice(d, i, i + 1).reshape(this.shape.filter((_, k) => k !== d));
  }
  pad(dim: number, before: number, after: number, value = 0): Tensor {
    return this.wrap(this.context.builder.pad(this.sym, normalizeDim(dim, this.rank), before, after, value));
  }

  // Reductions ---------------------------------------------------------------------------------------------------

  #reduce(kind: "sum" | "max" | "min", dims: number | readonly number[] | undefined, keep: boolean): Tensor {
    return this.wrap(this.context.builder.reduce(kind, this.sym, dims, keep));
  }
  sum(dims?: number | readonly number[], keep = false): Tensor {
    return this.#reduce("sum", dims, keep);
  }
  max(dims?: number | readonly number[], keep = false): Tensor {
    return this.#reduce("max", dims, keep);
  }
  min(dims?: number | readonly number[], keep = false): Tensor {
    return this.#reduce("min", dims, keep);
  }
  mean(dims?: number | readonly number[], keep = false): Tensor {
    if (!isFloat(this.dtype)) throw new DTypeError(`mean of ${this.dtype}: cast to a float dtype first`);
    const count = normalizeDims(dims, this.rank).reduce((n, d) => n * this.shape[d]!, 1);
    return this.sum(dims, keep).mul(1 / count);
  }
  /** Softmax over one dim (the last by default). */
  softmax(dim = -1): Tensor {
    const d = normalizeDim(dim, this.rank);
    if (d === this.rank - 1) return this.emit("softmax", [])[0]!;
    const order = this.shape.map((_, i) => i).filter((i) => i !== d);
    const back = [...this.shape.keys()].map((i) => (i === d ? this.rank - 1 : i < d ? i : i - 1));
    return this.transpose([...order, d])
      .softmax()
      .transpose(back);
  }
  logSoftmax(dim = -1): Tensor {
    const shifted = this.sub(this.stopGradient().max(dim, true));
    return shifted.sub(shifted.exp().sum(dim, true).log());
  }
  /** The same value, whose gradient is zero. */
  stopGradient(): Tensor {
    return this.#unary("stop_gradient");
  }

  // Contraction --------------------------------------------------------------------------------------------------

  /** Contraction with another tensor: `x.einsum("b t w, w f -> b t f", weight)`. */
  einsum(equation: string, other: Tensor | Readable): Tensor {
    if (typeof equation !== "string") throw new ShapeError(`an einsum equation is a text, not ${describe(equation)}`);
    return this.wrap(this.context.builder.einsum(equation, this.sym, this.with(other).sym));
  }
  /** Matrix product over the last two dims; leading dims broadcast (a 2-d right side serves all of them). */
  matmul(other: Tensor | Readable): Tensor {
    const right = this.with(other);
    if (this.rank < 1 || right.rank < 2) {
      throw new ShapeError(
        `matmul of shapes ${shapeText(this.shape)} and ${shapeText(right.shape)}: the right side has 2 or more dims`,
      );
    }
    if (this.shape[this.rank - 1] !== right.shape[right.rank - 2]) {
      throw new ShapeError(
        `matmul of shapes ${shapeText(this.shape)} and ${shapeText(right.shape)}: the left's last dim is ` +
          `${this.shape[this.rank - 1]}, the right's second to last is ${right.shape[right.rank - 2]}`,
      );
    }
    const lead = right.shape.slice(0, -2);
    const names = this.shape.slice(0, -1).map((_, i) => `a${i}`);
    if (lead.length === 0) return this.einsum(`${names.join(" ")} k, k n -> ${names.join(" ")} n`, right);
    if (this.rank < 2 || lead.length !== this.rank - 2 || lead.some((n, i) => n !== this.shape[i])) {
      throw new ShapeError(
        `matmul of shapes ${shapeText(this.shape)} and ${shapeText(right.shape)}: leading dims differ`,
      );
    }
    const batch = names.slice(0, -1).join(" ");
    return this.einsum(`${batch} m k, ${batch} k n -> ${batch} m n`, right);
  }
}

/** A shape with -1 replaced by what fits. */
export function resolveShape(shape: Shape, from: Shape): number[] {
  const open = shape.indexOf(-1);
  if (open < 0) return [...shape];
  const rest = shape.reduce((n, d, i) => (i === open ? n : n * d), 1);
  const size = sizeOf(from);
  if (rest <= 0 || size % rest !== 0)
    throw new ShapeError(`${shapeText(from)} cannot be reshaped to ${shapeText(shape)}`);
  return shape.map((d, i) => (i === open ? size / rest : d));
}

/** Flat row-major values as nested arrays. */
export function nest(values: readonly number[], shape: Shape): Nested {
  if (shape.length === 0) return values[0]!;
  let level: Nested[] = [...values];
  for (let d = shape.length - 1; d > 0; d--) {
    const n = shape[d]!;
    const outer = sizeOf(shape.slice(0, d));
    level = Array.from({ length: outer }, (_, i) => level.slice(i * n, (i + 1) * n));
  }
  return level;
}

/** Shape and flat values of nested arrays. Throws ShapeError when they are ragged. */
export function flattenNested(value: Nested): { shape: number[]; values: (number | boolean)[] } {
  const shape: number[] = [];
  for (let v: Nested = value; Array.isArray(v); v = v[0] as Nested) {
    if (shape.push(v.length) > maxRank) throw new ShapeError(`arrays nested deeper than ${maxRank} make no tensor`);
    if (v.length === 0) break;
  }
  let level: Nested[] = [value];
  shape.forEach((n, d) => {
    const next: Nested[] = [];
    for (const v of level) {
      if (!Array.isArray(v) || v.length !== n)
        throw new ShapeError(`ragged array: dim ${d} has sizes ${n} and ${Array.isArray(v) ? v.length : "none"}`);
      for (const x of v as Nested[]) next.push(x);
    }
    level = next;
  });
  const scalars = level.map((v) => {
    if (typeof v !== "number" && typeof v !== "boolean")
      throw new ShapeError("ragged array: numbers and arrays are mixed");
    return v;
  });
  return { shape, values: scalars };
}
