// Ops that say where a value lies: another split of it, and another value in its memory.
import { ProgramError, ShapeError } from "../core/errors.ts";
import type { OpRecord } from "../ir/op.ts";
import { typeText } from "../ir/print.ts";
import { expectInputs, expectSameDType, expectShape, identityFactors, noCost, perElement } from "./define.ts";

/**
 * The axes that are to split each dim, outermost first. `once`: the value is the same in every microbatch; what a
 * gather gives is made before the first of them and kept to the end of the step.
 */
export type ReshardParams = { readonly dims: readonly (readonly string[])[]; readonly once?: true };

/** x -> x, split as `dims` say and whole otherwise. The shard pass puts collectives and slices in its place. */
const reshard: OpRecord<ReshardParams> = {
  name: "reshard",
  infer(inputs, { dims }) {
    expectInputs("reshard", inputs, 1);
    if (dims.length !== inputs[0]!.shape.length) {
      throw new ShapeError(`reshard: ${typeText(inputs[0]!)} has no ${dims.length} dims to split`);
    }
    return [inputs[0]!];
  },
  sharding: { factors: identityFactors, linear: "none" },
  gradient: { rule: (_, { cotangents }) => [cotangents[0]!] },
  cost: noCost,
  lower() {
    throw new ProgramError("reshard nodes are replaced by the shard pass");
  },
};

/** target, value -> target, which holds the value from then on: in place. */
const assign: OpRecord = {
  name: "assign",
  infer(inputs) {
    expectInputs("assign", inputs, 2);
    expectSameDType("assign", inputs[0]!, inputs[1]!);
    expectShape("assign", "the value", inputs[1]!, inputs[0]!.shape);
    return [inputs[0]!];
  },
  sharding: { factors: identityFactors, linear: "none" },
  gradient: { none: "updates in place are not differentiable" },
  cost: perElement(0),
  lower(ctx) {
    ctx.emit("copy", [ctx.inputs[1]!], [ctx.inPlace(0, 0)]);
  },
};

export const placementOps = { reshard, assign };
