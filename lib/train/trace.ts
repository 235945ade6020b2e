// Tracing a training step: the user's loss becomes a microbatch graph with gradients, a graph of counts, and seeds.
import type { DType } from "../core/dtype.ts";
import { describe } from "../core/describe.ts";
import { ConfigError, PlanError, ShapeError } from "../core/errors.ts";
import { type Shape, shapeText, sizeOf } from "../core/shape.ts";
import type { StepInput } from "../compile/step.ts";
import type { Graph } from "../ir/graph.ts";
import { gradients } from "../tensor/grad.ts";
import { Tensor, type TensorContext } from "../tensor/tensor.ts";
import { type NamedSym, type Sym, SymBuilder, flatten, reachable } from "../tensor/trace.ts";
import { lossScale } from "./loss-scale.ts";

/** One named part of a loss: its mean is sum / count over the whole batch; counts depend on inputs only. */
export interface LossTerm {
  readonly sum: Tensor;
  readonly count: Tensor;
  /** Factor on the mean; 1 by default. A term of weight 0 is reported, as its mean, and no part of the loss. */
  readonly weight?: number;
}

/** What a loss function may return: named terms, or a scalar, which counts as the mean over the samples. */
export type Loss = Tensor | Readonly<Record<string, LossTerm>>;

/** Dtype and shape of one sample of a batch's array. */
export interface BatchField {
  readonly dtype: DType;
  readonly shape: Shape;
  /** i32 elements must be below this, and not negative: token ids of a vocabulary. Checked in every batch. */
  readonly below?: number;
  /** The one value that is allowed beside those: targets that do not count. */
  readonly ignore?: number;
  /** The dim of a sample that runs along its sequence: the mesh axis cp splits it. */
  readonly sequence?: number;
}

/** A step's inputs for the arrays of a batch. */
export function batchInputs(fields: Readonly<Record<string, BatchField>>): StepInput[] {
  return Object.entries(fields).map(([name, { dtype, shape, sequence }]) => {
    return { name, dtype, shape: [...shape], batch: true, ...(sequence === undefined ? {} : { sequence }) };
  });
}

/** The tensors of a batch by name. */
export type Batch<Name extends string = string> = Readonly<Record<Name, Tensor>>;

/** A loss function of the batch. */
export type LossFunction<Name extends string = string> = (batch: Batch<Name>) => Loss;

/** The loss of one microbatch, traced. */
export interface TracedLoss {
  readonly context: TensorContext;
  readonly terms: readonly { readonly name: string; readonly sum: Sym; readonly count: Sym; readonly weight: number }[];
  /** Parameter reads in order: their ids. */
  readonly reads: readonly Sym[];
}

/** Names that programs use for the results of microbatches. */
export const cellName = {
  sum: (term: string): string => `sum ${term}`,
  count: (term: string): string => `count ${term}`,
  seed: (term: string): string => `seed ${term}`,
  grad: (read: number): string => `grad ${read}`,
} as const;

/** Traces a loss on microbatches of so many samples. */
export function traceLoss(
  loss: LossFunction,
  fields: Readonly<Record<string, BatchField>>,
  samples: number,
): TracedLoss {
  const builder = new SymBuilder();
  const context: TensorContext = { builder, name: "a traced loss" };
  const batch: Record<string, Tensor> = {};
  for (const [name, { dtype, shape }] of Object.entries(fields)) {
    batch[name] = new Tensor(builder.one("input", [], { name, dtype, shape: [samples, ...shape] }), context);
  }
  const result = loss(batch);
  if (typeof result !== "object" || result === null) {
    throw new ConfigError(`the loss must be a tensor or named terms {sum, count}, not ${describe(result)}`);
  }
  const named: Readonly<Record<string, LossTerm>> =
    result instanceof Tensor
      ? { loss: { sum: result.mul(samples), count: new Tensor(builder.constant(samples, "f32"), context) } }
      : result;
  const terms = Object.entries(named).map(([name, { sum, count, weight = 1 }]) => {
    if (!(sum instanceof Tensor && count instanceof Tensor)) {
      throw new ConfigError(`loss term ${name} must have tensors sum and count`);
    }
    expectScalar(`loss term ${name}`, sum);
    expectScalar(`the count of loss term ${name}`, count);
    return { name, sum: sum.cast("f32").sym, count: count.cast("f32").sym, weight };
  });
  if (terms.length === 0) throw new PlanError("the loss has no term");
  const reads = reachable(terms.map((t) => t.sum))
    .filter((n) => n.op === "parameter")
    .map((n) => n.outputs[0]!);
  return { context, terms, reads };
}

function expectScalar(what: string, tensor: Tensor): void {
  if (sizeOf(tensor.shape) !== 1)
    throw new ShapeError(`${what} must be one number, not of shape ${shapeText(tensor.shape)}`);
}

/** Sums and gradients of a microbatch: outputs `sum <term>` and `grad <read>`, seeds as inputs. */
export function trainGraph(traced: TracedLoss, trainable: (id: string) => boolean): Graph {
  const { builder } = traced.context;
  const outputs: NamedSym[] = traced.terms.map((t) => ({
    name: cellName.sum(t.name),
    sym: builder.reshape(t.sum, []),
  }));
  const parts = traced.terms.flatMap((t, i) => {
    if (t.weight === 0) return [];
    const seed = builder.one("input", [], { name: cellName.seed(t.name), dtype: "f32", shape: [] });
    return [builder.mul(outputs[i]!.sym, seed)];
  });
  if (parts.length === 0) throw new PlanError("no term of the loss has a weight");
  const total = parts.reduce((a, b) => builder.add(a, b));
  const wrt = traced.reads
    .map((sym, index) => ({ sym, index }))
    .filter(({ sym }) => trainable(sym.node.params.id as string));
  const seed = builder.constant(1, "f32");
  const grads = gradients(
    builder,
    total,
    seed,
    wrt.map(({ sym }) => sym),
  );
  grads.forEach((sym, i) => {
    if (sym) outputs.push({ name: cellName.grad(wrt[i]!.index), sym });
  });
  return flatten(outputs);
}

/** Sums and counts without gradients: evaluation. */
export function evaluationGraph(traced: TracedLoss): Graph {
  const { builder } = traced.context;
  return flatten(
    traced.terms.flatMap((t) => [
      { name: cellName.sum(t.name), sym: builder.reshape(t.sum, []) },
      { name: cellName.count(t.name), sym: builder.reshape(t.count, []) },
    ]),
  );
}

/** The counts alone. Throws PlanError when a count depends on a parameter. */
export function countGraph(traced: TracedLoss): Graph {
  const { builder } = traced.context;
  for (const t of traced.terms) {
    if (reachable([t.count]).some((n) => n.op === "parameter")) {
      throw new PlanError(`the count of loss term ${t.name} depends on a parameter; it may depend on inputs only`);
    }
  }
  return flatten(traced.terms.map((t) => ({ name: cellName.count(t.name), sym: builder.reshape(t.count, []) })));
}

/**
 * Turns summed counts into seeds: weight / count (1 / count for a term that is only reported), 0 for a count of 0; with
 * the id of a loss scale, times that.
 */
export function seedGraph(traced: TracedLoss, scaleId?: string): Graph {
  const builder = new SymBuilder();
  const scale = scaleId === undefined ? undefined : lossScale(builder, scaleId);
  return flatten(
    traced.terms.map((t) => {
      const count = builder.one("input", [], { name: cellName.count(t.name), dtype: "f32", shape: [] });
      const none = builder.binary("le", count, 0);
      const seed = builder.select(none, 0, builder.div(t.weight || 1, builder.select(none, 1, count)));
      return { name: cellName.seed(t.name), sym: scale ? builder.mul(seed, scale) : seed };
    }),
  );
}

/** Ids of the parameters read, in order of reads. */
export function readIds(traced: TracedLoss): string[] {
  return traced.reads.map((sym) => sym.node.params.id as string);
}
