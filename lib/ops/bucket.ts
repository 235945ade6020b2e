// Buckets: collectives of one kind over the same ranks, on several tensors, as one exchange. The bucket pass makes
// them.
import { ShapeError } from "../core/errors.ts";
import type { Attribute } from "../ir/lowering.ts";
import type { OpRecord } from "../ir/op.ts";
import type { ReduceKind } from "../ir/spec.ts";
import { counts, group } from "./collective.ts";
import { expectDim, expectSameDType, identityFactors, perElement } from "./define.ts";
import { reduceKinds } from "./reduction.ts";

/** A bucket's collective, and what all of its members have in common. */
export type BucketParams = {
  readonly op: "all_reduce" | "all_gather" | "reduce_scatter";
  /** Axes over whose ranks it runs. */
  readonly axes: readonly string[];
  /** With all_reduce: among these coordinates of pp only. */
  readonly stages?: readonly number[];
  /** Of reductions. */
  readonly kind?: ReduceKind;
  /** With all_gather: made before the first microbatch, kept to the end of the step. */
  readonly once?: true;
  /** Of each tensor the dim that is joined or scattered; empty for all_reduce. */
  readonly dims: readonly number[];
};

/** Operands of one dtype -> each reduced, joined or scattered, as the collective alone would do it. */
const bucket: OpRecord<BucketParams> = {
  name: "bucket",
  infer(inputs, { op, axes, dims }) {
    if (inputs.length === 0) throw new ShapeError("bucket: it has no tensor");
    if (axes.length === 0) throw new ShapeError("bucket: it runs over no axis");
    if (dims.length !== (op === "all_reduce" ? 0 : inputs.length)) {
      throw new ShapeError(`bucket: ${dims.length} dims for ${inputs.length} tensors of ${op}`);
    }
    for (const type of inputs) expectSameDType("bucket", inputs[0]!, type);
    for (const [i, dim] of dims.entries()) expectDim("bucket", inputs[i]!, dim);
    return [...inputs];
  },
  sharding: { factors: identityFactors, linear: "none" },
  gradient: { none: "it is inserted after differentiation" },
  cost: perElement(1),
  lower(ctx) {
    const { op, axes, stages, kind, dims } = ctx.params;
    const words: Attribute[] = kind === undefined ? [] : [reduceKinds.indexOf(kind)];
    const specs = op === "all_gather" ? ctx.inputSpecs : ctx.outputSpecs;
    for (const [i, dim] of dims.entries()) {
      words.push(dim, counts(ctx.globalOutputs[i]!, specs[i]!, dim, axes, op));
    }
    const inputs = ctx.inputs.map(ctx.contiguous);
    const outputs = inputs.map((_, i) => ctx.output(i));
    ctx.emit(op, inputs, outputs, [group(axes, stages), ...words]);
  },
};

export const bucketOps = { bucket };
