// einsum of two operands: every matrix product, lowered to one batched matmul.
import type { DType } from "../core/dtype.ts";
import { DTypeError, ShapeError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { TensorType } from "../ir/graph.ts";
import { defineKernel } from "../ir/kernel.ts";
import type { LowerContext, View } from "../ir/lowering.ts";
import type { FactorMap, OpRecord } from "../ir/op.ts";
import { typeText } from "../ir/print.ts";
import { collapseView, permuteView } from "../ir/view.ts";
import { expectDType, expectInputs, expectSameDType, floats, streamCost } from "./define.ts";

export const matmulKernel = defineKernel({
  name: "matmul",
  doc: `d[b,m,n] = act(alpha * sum_k a[b,m,k] * b[b,k,n] + bias[n]) + residual[b,m,n] (+ d when flags has 1). Rank 3 each, bias
rank 1; a and b have unit stride in one of their two last dims (any other strides, batch stride 0 allowed), d and residual
unit stride in n. k = 0 gives zero products. flags: 1 accumulate into d, 2 bias is given, 4 residual is given, 8 act is
gelu (tanh form), 16 act is silu. dtypes: all f32, all f64, or a and b bf16 with d, bias and residual each bf16 or f32.`,
  inputs: ["a", "b", "bias?", "residual?"],
  outputs: ["d"],
  attrs: { flags: "int", alpha: "float" },
});

/** `equation`: labels separated by spaces, "b m k, b k n -> b m n". `dtype`: f32 results of bf16 operands. */
export type EinsumParams = { readonly equation: string; readonly dtype?: DType };

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

/** Runs d = a b for [batch, m, n] views of d with unit stride in n. */
function emitMatmul<P>(ctx: LowerContext<P>, a: Operand, b: Operand, roles: Roles, d: View): void {
  const k = contractedOrder(a, b, roles);
  const left = operandCopied(ctx, a, [roles.batch, roles.m, k]);
  const right = operandCopied(ctx, b, [roles.batch, k, roles.n]);
  ctx.emit("matmul", [left, right], [d], [0, { float: 1 }]);
}

function lowerEinsum(ctx: LowerContext<EinsumParams>): void {
  const equation = parseEquation(ctx.params.equation);
  const roles = rolesOf(equation);
  const a = { view: ctx.inputs[0]!, labels: equation.a };
  const b = { view: ctx.inputs[1]!, labels: equation.b };
  const y = ctx.output(0);
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

function einsumFactors(equation: string): FactorMap {
  const { a, b, out } = parseEquation(equation);
  return { inputs: [a, b], outputs: [out] };
}

const text = (labels: readonly string[]): string => labels.join(" ");

const einsum: OpRecord<EinsumParams> = {
  name: "einsum",
  infer(inputs, { equation, dtype }) {
    expectInputs("einsum", inputs, 2);
    const [a, b] = [inputs[0]!, inputs[1]!];
    expectDType("einsum", "operand 0", a, floats);
    expectSameDType("einsum", a, b);
    if (dtype !== undefined && dtype !== a.dtype && !(a.dtype === "bf16" && dtype === "f32")) {
      throw new DTypeError(`einsum of ${typeText(a)} and ${typeText(b)} cannot give ${dtype}`);
    }
    const parsed = parseEquation(equation);
    const sizes = labelSizes(equation, parsed, inputs);
    return [{ dtype: dtype ?? a.dtype, shape: parsed.out.map((label) => sizes.get(label)!) }];
  },
  sharding: { factors: (_inputs, _outputs, { equation }) => einsumFactors(equation), linear: [0, 1] },
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
