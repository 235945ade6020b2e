// What the families share: checks in the user's terms, factor maps, costs, gradients, and common lowerings.
import { type DType, dtypeSize } from "../core/dtype.ts";
import { DTypeError, PlanError, ShapeError } from "../core/errors.ts";
import { type Shape, sameShape, shapeText, sizeOf } from "../core/shape.ts";
import type { TensorType } from "../ir/graph.ts";
import type { LowerContext, TableEntry, View } from "../ir/lowering.ts";
import type { Cost, FactorMap, Gradient } from "../ir/op.ts";
import { typeText } from "../ir/print.ts";
import { collapseView, reshapeView } from "../ir/view.ts";

/** Params of an op that has none. */
export type NoParams = Readonly<Record<string, never>>;

/** dtypes most kernels compute in. */
export const floats: readonly DType[] = ["f32", "f64", "bf16", "f16"];
/** dtypes elementwise arithmetic takes. */
export const numeric: readonly DType[] = ["f32", "f64", "bf16", "f16", "i32"];

/** Throws DTypeError unless the dtype is one of those allowed. */
export function expectDType(op: string, what: string, type: TensorType, allowed: readonly DType[]): void {
  if (!allowed.includes(type.dtype)) {
    throw new DTypeError(`${op}: ${what} is ${typeText(type)}, but must be ${allowed.join(" or ")}; cast it first`);
  }
}

/** Throws DTypeError unless both have one dtype. */
export function expectSameDType(op: string, a: TensorType, b: TensorType): void {
  if (a.dtype !== b.dtype) {
    throw new DTypeError(`${op} of ${typeText(a)} and ${typeText(b)}: dtypes differ and nothing is promoted; cast one`);
  }
}

/** Throws ShapeError unless the shape is the one wanted. */
export function expectShape(op: string, what: string, type: TensorType, shape: Shape): void {
  if (!sameShape(type.shape, shape)) {
    throw new ShapeError(`${op}: ${what} is ${typeText(type)}, but its shape must be ${shapeText(shape)}`);
  }
}

/** Throws ShapeError unless the type has this many dims. */
export function expectRank(op: string, what: string, type: TensorType, rank: number): void {
  if (type.shape.length !== rank) {
    throw new ShapeError(`${op}: ${what} is ${typeText(type)}, but must have ${rank} dims`);
  }
}

/** Throws ShapeError unless there are exactly (or at least) this many inputs. */
export function expectInputs(op: string, inputs: readonly TensorType[], count: number, most = count): void {
  if (inputs.length < count || inputs.length > most) {
    const wanted = count === most ? `${count}` : `${count} to ${most}`;
    throw new ShapeError(`${op} takes ${wanted} operands, found ${inputs.length}`);
  }
}

/** Throws ShapeError unless the type has at least one dim. */
export function expectLastDim(op: string, what: string, type: TensorType): void {
  if (type.shape.length === 0)
    throw new ShapeError(`${op}: ${what} is a scalar, ${typeText(type)}; it has no last dim`);
}

/** Throws ShapeError unless every size is a whole number, not negative. */
export function expectSizes(op: string, shape: Shape): void {
  if (!shape.every((n) => Number.isSafeInteger(n) && n >= 0)) {
    throw new ShapeError(`${op}: ${shapeText(shape)} is not a shape: sizes are whole numbers, not negative`);
  }
}

/** Throws ShapeError unless dim is one of the type's. */
export function expectDim(op: string, type: TensorType, dim: number): void {
  if (!Number.isInteger(dim) || dim < 0 || dim >= type.shape.length) {
    throw new ShapeError(`${op}: dim ${dim} is outside ${typeText(type)}`);
  }
}

/** Factor names d0, d1, ... of a tensor's dims. */
export function dimFactors(rank: number, prefix = "d"): string[] {
  return Array.from({ length: rank }, (_, d) => `${prefix}${d}`);
}

/** All operands have the same dims: they are split together. */
export function identityFactors(inputs: readonly TensorType[], outputs: readonly TensorType[]): FactorMap {
  const of = (type: TensorType): string[] => dimFactors(type.shape.length);
  return { inputs: inputs.map(of), outputs: outputs.map(of) };
}

/** Factors of a tensor whose last dim is never split. */
export function rowDims(rank: number): (string | null)[] {
  return dimFactors(rank).map((name, d) => (d === rank - 1 ? null : name));
}

/** Bytes of a value. */
export function bytesOf(type: TensorType): number {
  return sizeOf(type.shape) * dtypeSize(type.dtype);
}

/** Cost of an op that reads its inputs once, writes its outputs once and does `flops`. */
export function streamCost(inputs: readonly TensorType[], outputs: readonly TensorType[], flops: number): Cost {
  return { flops, bytes: [...inputs, ...outputs].reduce((sum, type) => sum + bytesOf(type), 0) };
}

/** Cost function of an op with so many operations for each element of its first input. */
export function perElement(flops: number) {
  return (inputs: readonly TensorType[], outputs: readonly TensorType[]): Cost =>
    streamCost(inputs, outputs, flops * sizeOf((inputs[0] ?? outputs[0]!).shape));
}

/** Cost of an op that only renames memory. */
export function noCost(): Cost {
  return { flops: 0, bytes: 0 };
}

/** The gradient of a function that is flat wherever it has a derivative, or of one without differentiable inputs. */
export const zeroGradient: Gradient<unknown> = { rule: (_, { inputs }) => inputs.map(() => null) };

/** Reason of ops that are themselves first derivatives of fused kernels. */
export function onceOnly(op: string): { readonly none: string } {
  return { none: `it is the derivative of ${op}, which has no second one; compose ${op} of simpler ops to get it` };
}

/** A table entry for where this device's part of a dim begins; null when the dim is whole. */
export function startEntry(size: number, axes: readonly string[]): TableEntry | null {
  return axes.length === 0 ? null : { kind: "start", size, axes };
}

/** The same, for kernels that always read it. */
export function startWord(size: number, axes: readonly string[]): { readonly table: TableEntry } {
  return { table: startEntry(size, axes) ?? { kind: "literal", value: 0 } };
}

/** A view as [rows, n] with unit stride in n, copied when its strides do not allow it. */
export function rowsView<P>(ctx: LowerContext<P>, view: View): View {
  const rank = view.dims.length;
  const groups = [Array.from({ length: rank - 1 }, (_, d) => d), [rank - 1]];
  const rows = collapseView(view, groups);
  if (rows !== null && (rows.dims[1] === 1 || rows.strides[1] === 1)) return rows;
  return collapseView(ctx.contiguous(view), groups)!;
}

/** A view as one dim of unit stride (or, where allowed, stride 0), copied when its strides do not allow it. */
export function flatView<P>(ctx: LowerContext<P>, view: View, repeats = false): View {
  const shape = [sizeOf(view.dims)];
  const flat = reshapeView(view, shape);
  const fits = flat !== null && (shape[0]! <= 1 || flat.strides[0] === 1 || (repeats && flat.strides[0] === 0));
  return fits ? flat : reshapeView(ctx.contiguous(view), shape)!;
}

/** A view of which this dim has unit stride: itself, or a copy. */
export function unitStride<P>(ctx: LowerContext<P>, view: View, dim: number): View {
  return view.dims[dim] === 1 || view.strides[dim] === 1 ? view : ctx.contiguous(view);
}

/** Throws PlanError when a result that is only kept for the derivative is differentiated itself. */
export function expectNoCotangent(op: string, what: string, cotangent: unknown): void {
  if (cotangent !== null) throw new PlanError(`${op}: its result ${what} is not differentiable`, { details: { op } });
}

/** Output i (contiguous) under another shape of the same size. */
export function outputAs<P>(ctx: LowerContext<P>, i: number, shape: Shape): View {
  return reshapeView(ctx.output(i), shape)!;
}
