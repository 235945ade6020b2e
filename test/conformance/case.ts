// What a conformance case is.
import { shapeText } from "../../lib/core/shape.ts";
import type { OpName, OpParams } from "../../lib/ops/index.ts";
import type { Dense } from "./dense.ts";

/** One op on given operands. */
export interface Case<Name extends OpName = OpName> {
  readonly name: string;
  readonly op: Name;
  readonly inputs: readonly Dense[];
  readonly params: OpParams[Name];
  /** Operands whose gradients are compared with finite differences (default: all floats). */
  readonly differentiate?: readonly number[];
  /** Results that are given cotangents (default: all floats). */
  readonly cotangents?: readonly number[];
}

type Extra = Pick<Case, "differentiate" | "cotangents">;

/** A case; its name is made of its parts. */
export function makeCase<Name extends OpName>(
  op: Name,
  params: OpParams[Name],
  inputs: readonly Dense[],
  extra: Extra = {},
): Case {
  const types = inputs.map((x) => `${x.dtype}${shapeText(x.shape)}`).join(" ");
  // A union of cases by op: Name ties op and params together here, which the checker cannot see through the union.
  return { name: `${op} ${types} ${JSON.stringify(params)}`, op, inputs, params, ...extra } as Case;
}
