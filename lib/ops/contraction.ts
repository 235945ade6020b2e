// einsum of two operands: every matrix product, lowered to one batched matmul.
import { type DType, statisticsDType } from "../core/dtype.ts";
import { DTypeError, ShapeError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { TensorType } from "../ir/graph.ts";
import { defineKernel } from "../ir/kernel.ts";
import type { LowerContext, View } from "../ir/lowering.ts";
import type { FactorMap, OpRecord } from "../ir/op.ts";
import { typeText } from "../ir/print.ts";
import { collapseView, permuteView } from "../ir/view.ts";
import { expectDType, expectInputs, expectSameDType, expectShape, floats, streamCost } from "./define.ts";
import { type ElementStep, elementwiseAttributes } from "./expression.ts";

export const matmulKernel = defineKernel({
  name: "matmul",
  doc: `d[b,m,n] = act(alpha * sum_k a[b,m,k] * b[b,k,n] + bias[n]) + residual[b,m,n] (+ d when flags has 1). Rank 3
each, bias rank 1; a and b have unit stride in one of their two last dims (any other strides, batch stride 0
allowed), d and residual unit stride in n. k = 0 gives zero products. flags: 1 accumulate into d, 2 bias is given, 4
residual is given, 8 act is gelu (tanh form), 16 act is silu. dtypes: all f32, all f64, or a and b bf16 or f16 with
d, bias and residual each of a's or f32.`,
  inputs: ["a", "b", "bias?", "residual?"],
  outputs: ["d"],
  attrs: { flags: "int", alpha: "float" },
});

/** What is done with a product before it is the result: act(product + bias) + residual, rounded once. */
export type Finish = {
  readonly bias: boolean;
  readonly activation: "gelu" | "silu" | null;
  readonly residual: boolean;
};

/**
 * `equation`: labels separated by spaces, "b m k, b k n -> b m n". `dtype`: f32 results of bf16 and f16 operands.
 * `finish`: made by the compiler; the bias (the same for all rows) and the residual follow the operands, in the
 * result's shape.
 */
export type EinsumParams = { readonly equation: string; readonly dtype?: DType; readonly finish?: Finish };

/** Labels of the operands and the result. */
export interface Equation {
  readonly a: readonly string[];
  readonly b: readonly string[];
  readonly out: readonly string[];
}

/** Reads an equation. Throws ShapeError when it is malformed or is not a contraction of two operands. */
export function parseEquation(equation: string): Equation {
  const words = (text: string): string[] => text.split(" ").filter((word) => word !== "");
  const sides = equation.split("->");
  const operands = sides[0]!.split(",");
  if (sides.length !== 2 || operands.length !== 2) {
    throw new ShapeError(`einsum: "${equation}" must have two operands and a result: "m k, k n -> m n"`);
  }
  const parsed = { a: words(operands[0]!), b: words(operands[1]!), out: words(sides[1]!) };
  for (const labels of [parsed.a, parsed.b, parsed.out]) {
    const twice = labels.find((label, i) => labels.indexOf(label) !== i);
    if (twice !== undefined) throw new ShapeError(`einsum: "${equation}" has label ${twice} twice in one tensor`);
  }
  const { a, b, out } = parsed;
  const lost = out.find((label) => !a.includes(label) && !b.includes(label));
  if (lost !== undefined) throw new ShapeError(`einsum: result label ${lost} of "${equation}" is in no operand`);
  const lone = [...a, ...b].find((label) => !out.includes(label) && !(a.includes(label) && b.includes(label)));
  if (lone !== undefined) {
    throw new ShapeError(`einsum: label ${lone} of "${equation}" is in one operand only; sum over it first`);
  }
  return parsed;
}

/** Size of each label; throws ShapeError where operands disagree. */
function labelSizes(equation: string, parsed: Equation, inputs: readonly TensorType[]): Map<string, number> {
  const sizes = new Map<string, number>();
  [parsed.a, parsed.b].forEach((labels, i) => {
    const type = inputs[i]!;
    if (labels.length !== type.shape.length) {
      throw new ShapeError(`einsum "${equation}": operand ${i} is ${typeText(type)}, but has ${labels.length} labels`);
    }
    labels.forEach((label, d) => {
      const known = sizes.get(label);
      if (known !== undefined && known !== type.shape[d]) {
        const operands = `${typeText(inputs[0]!)} and ${typeText(type)}`;
        throw new ShapeError(`einsum "${equation}" of ${operands}: label ${label} is ${known} and ${type.shape[d]}`);
      }
      sizes.set(label, type.shape[d]!);
    });
  });
  return sizes;
}

/** Labels by role: in both operands and the result, in one operand and the result, in both operands only. */
interface Roles {
  readonly batch: readonly string[];
  readonly m: readonly string[];
  readonly n: readonly string[];
  readonly k: readonly string[];
}

function rolesOf({ a, b, out }: Equation): Roles {
  return {
    batch: out.filter((label) => a.includes(label) && b.includes(label)),
    m: out.filter((label) => !b.includes(label)),
    n: out.filter((label) => !a.includes(label)),
    k: a.filter((label) => !out.includes(label)),
  };
}

/** The view as one dim for each group of labels, or null. */
function grouped(view: View, labels: readonly string[], groups: readonly (readonly string[])[]): View | null {
  return collapseView(
    view,
    groups.map((group) => group.map((label) => labels.indexOf(label))),
  );
}

/** Whether a row-major result is [batch, m, n] as it lies, and which of its dims number the rows. */
export function resultGroups(equation: Equation): { readonly fits: boolean; readonly rows: readonly number[] } {
  const { batch, m, n } = rolesOf(equation);
  const fits = [...batch, ...m, ...n].every((label, d) => equation.out[d] === label);
  return { fits, rows: equation.out.flatMap((label, d) => (n.includes(label) ? [] : [d])) };
}

function hasUnitStride(view: View, dims: readonly number[]): boolean {
  return sizeOf(view.dims) === 0 || dims.some((d) => view.dims[d] === 1 || view.strides[d] === 1);
}

type Operand = { readonly view: View; readonly labels: readonly string[] };

/** An operand as [batch, rows, columns] of the given labels without a copy, or null. */
function operandView({ view, labels }: Operand, groups: readonly (readonly string[])[]): View | null {
  const found = grouped(view, labels, groups);
  return found !== null && hasUnitStride(found, [1, 2]) ? found : null;
}

/** The same, copied into that order where its strides do not allow it. */
function operandCopied<P>(ctx: LowerContext<P>, operand: Operand, groups: readonly (readonly string[])[]): View {
  const free = operandView(operand, groups);
  if (free !== null) return free;
  const order = groups.flat();
  const moved = ctx.contiguous(
    permuteView(
      operand.view,
      order.map((label) => operand.labels.indexOf(label)),
    ),
  );
  return grouped(moved, order, groups)!;
}

/** An order of the contracted labels in which as many operands as possible need no copy. */
function contractedOrder(a: Operand, b: Operand, { batch, m, n, k }: Roles): readonly string[] {
  const orders = [k, b.labels.filter((label) => k.includes(label))];
  const copies = (order: readonly string[]): number =>
    Number(operandView(a, [batch, m, order]) === null) + Number(operandView(b, [batch, order, n]) === null);
  return copies(orders[1]!) < copies(orders[0]!) ? orders[1]! : orders[0]!;
}

/** The optional operands of the matmul kernel, and its flags. */
interface Epilogue {
  readonly views: readonly View[];
  readonly flags: number;
}

const noEpilogue: Epilogue = { views: [], flags: 0 };

/** Flags of the matmul kernel. */
const flag = { bias: 2, residual: 4, gelu: 8, silu: 16 } as const;

/** Runs d = a b for [batch, m, n] views of d with unit stride in n. */
function emitMatmul<P>(
  ctx: LowerContext<P>,
  a: Operand,
  b: Operand,
  roles: Roles,
  d: View,
  { views, flags }: Epilogue = noEpilogue,
): void {
  const k = contractedOrder(a, b, roles);
  const left = operandCopied(ctx, a, [roles.batch, roles.m, k]);
  const right = operandCopied(ctx, b, [roles.batch, k, roles.n]);
  ctx.emit("matmul", [left, right, ...views], [d], [flags, { float: 1 }]);
}

/** The views of bias and residual as the kernel takes them; null when the bias differs between rows after all. */
function epilogueOf(ctx: LowerContext<EinsumParams>, { out }: Equation, roles: Roles, finish: Finish): Epilogue | null {
  const [first, second] = [ctx.inputs[2], ctx.inputs[3]];
  const views: View[] = [];
  let flags = finish.activation === null ? 0 : flag[finish.activation];
  if (finish.bias) {
    const bias = collapseView(
      first!,
      [roles.batch, roles.m, roles.n].map((group) => group.map((label) => out.indexOf(label))),
    );
    const same = bias !== null && [0, 1].every((d) => bias.dims[d]! <= 1 || bias.strides[d] === 0);
    if (!same) return null;
    views.push({ ...bias, dims: bias.dims.slice(2), strides: bias.strides.slice(2) });
    flags |= flag.bias;
  }
  if (finish.residual) {
    const residual = { view: finish.bias ? second! : first!, labels: out };
    const groups = [roles.batch, roles.m, roles.n];
    const free = grouped(residual.view, out, groups);
    views.push(free !== null && hasUnitStride(free, [2]) ? free : grouped(ctx.contiguous(residual.view), out, groups)!);
    flags |= flag.residual;
  }
  return { views, flags };
}

/** A finished product whose operands do not fit the kernel's epilogue: the product, then an expression. */
function lowerApart(
  ctx: LowerContext<EinsumParams>,
  a: Operand,
  b: Operand,
  roles: Roles,
  out: readonly string[],
): void {
  const y = ctx.output(0);
  const { bias, activation, residual } = ctx.params.finish!;
  const dtype = statisticsDType(a.view.dtype);
  const t = ctx.temporary(dtype, y.dims);
  emitMatmul(ctx, a, b, roles, grouped(t, out, [roles.batch, roles.m, roles.n])!);
  const operands = [t, ...ctx.inputs.slice(2)];
  const steps: ElementStep[] = [];
  const push = (op: string, inputs: readonly number[]): number => {
    steps.push({ op, dtype, inputs, attrs: {} });
    return operands.length + steps.length - 1;
  };
  const wide = (i: number): number => (operands[i]!.dtype === dtype ? i : push("cast", [i]));
  let value = 0;
  if (bias) value = push("add", [value, wide(1)]);
  if (activation !== null) value = push(activation, [value]);
  if (residual) value = push("add", [value, wide(operands.length - 1)]);
  if (y.dtype !== dtype || steps.length === 0) {
    steps.push({ op: "cast", dtype: y.dtype, inputs: [value], attrs: {} });
    value = operands.length + steps.length - 1;
  }
  const dtypes = operands.map((view) => view.dtype);
  ctx.emit(
    "elementwise",
    operands,
    [y],
    elementwiseAttributes(dtypes, steps, [value], () => -1),
  );
}

function lowerEinsum(ctx: LowerContext<EinsumParams>): void {
  const equation = parseEquation(ctx.params.equation);
  const roles = rolesOf(equation);
  const a = { view: ctx.inputs[0]!, labels: equation.a };
  const b = { view: ctx.inputs[1]!, labels: equation.b };
  const y = ctx.output(0);
  if (ctx.params.finish) {
    const epilogue = epilogueOf(ctx, equation, roles, ctx.params.finish);
    const d = grouped(y, equation.out, [roles.batch, roles.m, roles.n])!;
    if (epilogue) emitMatmul(ctx, a, b, roles, d, epilogue);
    else lowerApart(ctx, a, b, roles, equation.out);
    return;
  }
  const direct = grouped(y, equation.out, [roles.batch, roles.m, roles.n]);
  if (direct !== null && hasUnitStride(direct, [2])) {
    emitMatmul(ctx, a, b, roles, direct);
    return;
  }
  // Transposed result: d^T = b^T a^T, with the operands' roles exchanged.
  const turned = { ...roles, m: roles.n, n: roles.m };
  const swapped = grouped(y, equation.out, [turned.batch, turned.m, turned.n]);
  if (swapped !== null && hasUnitStride(swapped, [2])) {
    emitMatmul(ctx, b, a, turned, swapped);
    return;
  }
  const order = [...roles.batch, ...roles.m, ...roles.n];
  const from = order.map((label) => equation.out.indexOf(label));
  const t = ctx.temporary(
    y.dtype,
    from.map((d) => y.dims[d]!),
  );
  emitMatmul(ctx, a, b, roles, grouped(t, order, [roles.batch, roles.m, roles.n])!);
  ctx.emit("copy", [t], [permuteView(y, from)]);
}

/** `more`: operands in the result's shape. */
function einsumFactors(equation: string, more: number): FactorMap {
  const { a, b, out } = parseEquation(equation);
  return { inputs: [a, b, ...new Array<typeof out>(more).fill(out)], outputs: [out] };
}

const text = (labels: readonly string[]): string => labels.join(" ");

const einsum: OpRecord<EinsumParams> = {
  name: "einsum",
  infer(inputs, { equation, dtype, finish }) {
    expectInputs("einsum", inputs, 2 + Number(finish?.bias ?? false) + Number(finish?.residual ?? false));
    const [a, b] = [inputs[0]!, inputs[1]!];
    expectDType("einsum", "operand 0", a, floats);
    expectSameDType("einsum", a, b);
    if (dtype !== undefined && dtype !== a.dtype && dtype !== statisticsDType(a.dtype)) {
      throw new DTypeError(`einsum of ${typeText(a)} and ${typeText(b)} cannot give ${dtype}`);
    }
    const parsed = parseEquation(equation);
    const sizes = labelSizes(equation, parsed, inputs);
    const result = { dtype: dtype ?? a.dtype, shape: parsed.out.map((label) => sizes.get(label)!) };
    if (finish && !resultGroups(parsed).fits) throw new ShapeError(`einsum: "${equation}" cannot be finished`);
    inputs.slice(2).forEach((type, i) => {
      expectShape("einsum", `operand ${i + 2}`, type, result.shape);
      expectDType("einsum", `operand ${i + 2}`, type, [a.dtype, statisticsDType(a.dtype)]);
    });
    return [result];
  },
  sharding: {
    factors: (inputs, _outputs, { equation }) => einsumFactors(equation, inputs.length - 2),
    linear: [0, 1],
  },
  gradient: {
    rule: (g, { inputs, cotangents, params, wanted }) => {
      const { a, b, out } = parseEquation(params.equation);
      const d = g.cast(cotangents[0]!, g.dtype(inputs[0]!));
      return [
        wanted[0] ? g.einsum(`${text(out)}, ${text(b)} -> ${text(a)}`, d, inputs[1]!) : null,
        wanted[1] ? g.einsum(`${text(a)}, ${text(out)} -> ${text(b)}`, inputs[0]!, d) : null,
      ];
    },
  },
  cost(inputs, outputs, { equation }) {
    const parsed = parseEquation(equation);
    const sizes = labelSizes(equation, parsed, inputs);
    const products = sizeOf([...sizes.values()]);
    return streamCost(inputs, outputs, 2 * products);
  },
  lower: lowerEinsum,
};

export const contractionOps = { einsum };
