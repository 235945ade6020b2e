// What sharding must mind of rows that were dispatched to experts: only ops that know of them take them, and nothing
// moves them but their way back.
import { PlanError } from "../core/errors.ts";
import type { FactorMap } from "../ir/op.ts";
import { sameAxes, specText, type ValueSpec } from "../ir/spec.ts";
import { elementOps } from "../ops/kernels.ts";

/** Dims of rows; behind them comes what a row holds. */
const rowDims = 3;

/** The axes over which an op's operands have travelled; undefined when they are no dispatched rows. */
export function resultRouting(specs: readonly ValueSpec[]): readonly string[] | undefined {
  return specs.find((spec) => spec.routed)?.routed;
}

/**
 * An op's factors for operands with these specs: rows in the order of tokens are never split. Throws PlanError for an
 * op that does not know of dispatched rows, or gets some that were dispatched otherwise.
 */
export function routedFactors(op: string, factors: FactorMap, specs: readonly ValueSpec[]): FactorMap {
  const routing = resultRouting(specs);
  if (routing === undefined) return factors.routed ? withoutRows(factors, factors.routed.rows) : factors;
  const differs = specs.find((spec) => (spec.routed ? !sameAxes(spec.routed, routing) : rowsExpected(op, factors)));
  if (differs || (!factors.routed && !isElementwise(op))) {
    throw new PlanError(
      `${op} of rows that were dispatched to experts (${specs.map(specText).join(", ")}): bring them back first`,
      { details: { op } },
    );
  }
  return factors;
}

function isElementwise(op: string): boolean {
  return op in elementOps || op === "cast";
}

/** Elementwise ops take dispatched rows only together with others. */
function rowsExpected(op: string, factors: FactorMap): boolean {
  return isElementwise(op) && !factors.routed;
}

function withoutRows(factors: FactorMap, rows: readonly string[]): FactorMap {
  const whole = (names: readonly (string | null)[]) => names.map((f) => (f !== null && rows.includes(f) ? null : f));
  return { ...factors, inputs: factors.inputs.map(whole), outputs: factors.outputs.map(whole) };
}

/** Throws PlanError where dispatched rows would have to move along their rows. */
export function expectUnmoved(spec: ValueSpec, wanted: readonly (readonly string[])[]): void {
  if (!spec.routed) return;
  const moved = spec.dims.slice(0, rowDims).some((axes, d) => !sameAxes(axes, wanted[d]!));
  if (!moved) return;
  const asked = specText({ dims: wanted, partial: {} });
  throw new PlanError(`rows that were dispatched to experts (${specText(spec)}) cannot be made ${asked}`);
}

/** Throws PlanError for a result that is dispatched rows: nobody else knows in which order they lie. */
export function expectArrived(name: string, spec: ValueSpec): void {
  if (!spec.routed) return;
  throw new PlanError(
    `rows that were dispatched to experts (${specText(spec)}) cannot be a result, ${name}: bring them back`,
  );
}
