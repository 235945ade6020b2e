// valueAndGrad and grad: derivatives of scalars as lazy tensors of the same mesh or trace, so that they nest.
import { describe } from "../core/describe.ts";
import { expectList } from "../core/check.ts";
import { isFloat } from "../core/dtype.ts";
import { DTypeError, MeshError, ShapeError } from "../core/errors.ts";
import { shapeText } from "../core/shape.ts";
import { gradients } from "./grad.ts";
import { Parameter } from "./parameter.ts";
import { Tensor } from "./tensor.ts";
import { reachable, type Sym } from "./trace.ts";

/** What can be differentiated with respect to: a tensor, or a parameter, wherever it is read. */
export type Variable = Tensor | Parameter;

/**
 * A scalar and its gradients: `target` is a tensor of one element, or a function of `variables` that returns one. The
 * gradients have the variables' shapes; they are zero where the target does not depend on a variable. Nothing runs: all
 * are lazy, and can be differentiated again. Throws ShapeError when the target is not one number, DTypeError when it or
 * a variable is not of a float dtype, MeshError for tensors of another mesh, PlanError for ops that have no gradient.
 */
export function valueAndGrad<V extends Variable[]>(
  target: Tensor | ((...variables: NoInfer<V>) => Tensor),
  variables: readonly [...V],
): [value: Tensor, gradients: { [K in keyof V]: Tensor }] {
  expectList("the variables to differentiate with respect to", variables);
  const value = typeof target === "function" ? target(...variables) : target;
  if (!(value instanceof Tensor)) throw new ShapeError("the function to differentiate must return one tensor");
  expectScalar(value);
  for (const variable of variables) expectVariable(value, variable);
  const reads = variables.map((variable) => readsOf(value, variable));
  const { builder } = value.context;
  const seed = builder.constant(1, value.dtype, value.shape);
  const found = gradients(builder, value.sym, seed, reads.flat());
  let next = 0;
  const results = variables.map((variable, i) => {
    const parts = reads[i]!.map(() => found[next++]!).filter((sym) => sym !== null);
    const sum = parts.length === 0 ? null : parts.reduce((a, b) => builder.add(a, b));
    return new Tensor(sum ?? builder.constant(0, variable.dtype, variable.shape), value.context);
  });
  return [value, results as { [K in keyof V]: Tensor }];
}

/** The gradients alone. */
export function grad<V extends Variable[]>(
  target: Tensor | ((...variables: NoInfer<V>) => Tensor),
  variables: readonly [...V],
): { [K in keyof V]: Tensor } {
  return valueAndGrad(target, variables)[1];
}

function expectScalar(value: Tensor): void {
  if (value.size !== 1) {
    throw new ShapeError(`only a scalar has a gradient; this tensor has shape ${shapeText(value.shape)}: sum it first`);
  }
  if (!isFloat(value.dtype))
    throw new DTypeError(`a scalar of dtype ${value.dtype} has no gradient: use a float dtype`);
}

function expectVariable(value: Tensor, variable: Variable): void {
  if (!(variable instanceof Tensor || variable instanceof Parameter)) {
    throw new DTypeError(`a variable must be a tensor or a parameter, not ${describe(variable)}`);
  }
  if (!isFloat(variable.dtype)) {
    throw new DTypeError(`a tensor of dtype ${variable.dtype} has no gradient: use a float dtype`);
  }
  if (variable instanceof Tensor && variable.context !== value.context) {
    throw new MeshError(
      `a value of ${value.context.name} cannot be differentiated by a tensor of ${variable.context.name}`,
    );
  }
}

/** The values that stand for a variable: itself, or every read of a parameter that the target depends on. */
function readsOf(value: Tensor, variable: Variable): Sym[] {
  if (variable instanceof Tensor) return [variable.sym];
  return reachable([value.sym])
    .filter(({ op, params }) => op === "parameter" && params.id === variable.id)
    .map((node) => node.outputs[0]!);
}
