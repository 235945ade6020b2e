// The closed registry of ops: every op's record by name, and typed ways to add ops by name.
import { ProgramError } from "../core/errors.ts";
import type { Builder } from "../ir/builder.ts";
import type { OpRecord } from "../ir/op.ts";
import { attentionOps } from "./attention.ts";
import { bucketOps } from "./bucket.ts";
import { collectiveOps } from "./collective.ts";
import { contractionOps } from "./contraction.ts";
import { elementwiseOps } from "./elementwise.ts";
import { embeddingOps } from "./embedding.ts";
import { expertOps } from "./experts.ts";
import { leafOps } from "./leaf.ts";
import { lossOps } from "./loss.ts";
import { movementOps } from "./movement.ts";
import { normalizationOps } from "./normalization.ts";
import { optimizerOps } from "./optimizer.ts";
import { placementOps } from "./placement.ts";
import { reductionOps } from "./reduction.ts";
import { routingOps } from "./routing.ts";

/** Every op's record by name. */
export const ops = {
  ...leafOps,
  ...elementwiseOps,
  ...movementOps,
  ...reductionOps,
  ...contractionOps,
  ...normalizationOps,
  ...embeddingOps,
  ...lossOps,
  ...attentionOps,
  ...optimizerOps,
  ...placementOps,
  ...collectiveOps,
  ...bucketOps,
  ...routingOps,
  ...expertOps,
};

/** Name of an op. */
export type OpName = keyof typeof ops;

/** Params of each op: `OpParams["slice"]`. */
export type OpParams = {
  readonly [Name in OpName]: (typeof ops)[Name] extends OpRecord<infer P> ? P : never;
};

const byName: ReadonlyMap<string, OpRecord> = new Map(
  // A record does not promise to take any params: nodes carry those that their record inferred from.
  Object.entries(ops) as readonly unknown[] as readonly (readonly [string, OpRecord])[],
);

/** The record of an op. Throws ProgramError when there is none of this name. */
export function getOp(name: string): OpRecord {
  const record = byName.get(name);
  if (record === undefined) throw new ProgramError(`there is no op named ${name}`, { details: { op: name } });
  return record;
}

/** Builder.emit with the params that the op takes. */
export function emitOp<V, Name extends OpName>(
  b: Builder<V>,
  name: Name,
  inputs: readonly V[],
  params: OpParams[Name],
): V[] {
  return b.emit(name, inputs, params);
}
