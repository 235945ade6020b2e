// Reverse-mode differentiation over the object graph. The result is an object graph again: it nests for higher orders.
import { isFloat } from "../core/dtype.ts";
import { PlanError, ProgramError, ShapeError } from "../core/errors.ts";
import { sameShape } from "../core/shape.ts";
import { typeText } from "../ir/print.ts";
import { getOp } from "../ops/index.ts";
import { nextSeq, reachable, type Sym, type SymBuilder, type SymNode } from "./trace.ts";

/** The nodes among `nodes` (in creation order) whose results depend on one of `wrt` through floats. */
function dependents(nodes: readonly SymNode[], wrt: ReadonlySet<Sym>): Set<SymNode> {
  const found = new Set<SymNode>();
  for (const node of nodes) {
    if (node.inputs.some((sym) => isFloat(sym.type.dtype) && (wrt.has(sym) || found.has(sym.node)))) found.add(node);
  }
  return found;
}

/** The nodes among `nodes` (in creation order) that depend on anything but parameters and constants. */
function dataDependents(nodes: readonly SymNode[]): Set<SymNode> {
  const found = new Set<SymNode>();
  for (const node of nodes) {
    if (node.op === "input" || node.inputs.some((sym) => found.has(sym.node))) found.add(node);
  }
  return found;
}

/**
 * Gives phase "weights" to the new nodes (from creation number `since` on) that no activation's cotangent depends on.
 */
function markWeights(made: readonly Sym[], activations: readonly Sym[], since: number): void {
  const ofActivations = new Set(reachable(activations));
  for (const node of reachable(made)) {
    if (node.seq >= since && node.phase === "backward" && !ofActivations.has(node)) node.phase = "weights";
  }
}

/** Cotangents collected while walking backwards: the uses of a value arrive last use first. */
class Cotangents {
  private readonly parts = new Map<Sym, Sym[]>();
  private readonly b: SymBuilder;

  constructor(b: SymBuilder) {
    this.b = b;
  }

  add(of: Sym, part: Sym): void {
    if (part.type.dtype !== of.type.dtype || !sameShape(part.type.shape, of.type.shape)) {
      throw new ProgramError(
        `the gradient of ${typeText(of.type)} (from ${of.node.op}) came out as ${typeText(part.type)}`,
      );
    }
    const list = this.parts.get(of);
    if (list === undefined) this.parts.set(of, [part]);
    else list.push(part);
  }

  /** The sum of a value's cotangents in use order, or null when it has none. */
  total(of: Sym): Sym | null {
    const list = this.parts.get(of);
    if (list === undefined) return null;
    const sum = joinSlices(this.b, list) ?? list.reduceRight((a, c) => this.b.add(a, c));
    this.parts.set(of, [sum]);
    return sum;
  }
}

/** The sum of cotangents of slices that tile a value along one dim, side by side. Null when they are not such. */
function joinSlices(b: SymBuilder, parts: readonly Sym[]): Sym | null {
  const dim = parts[0]!.node.params.dim as number;
  const pads = parts.map(({ node: { op, params, inputs } }) => {
    const { before, value } = params as { before: number; value: number };
    return op === "pad" && params.dim === dim && value === 0 ? { from: before, sym: inputs[0]! } : null;
  });
  if (parts.length < 2 || !pads.every((pad) => pad !== null)) return null;
  pads.sort((x, y) => x.from - y.from);
  let stop = 0;
  for (const { from, sym } of pads) {
    if (from !== stop) return null;
    stop += sym.type.shape[dim]!;
  }
  if (stop !== parts[0]!.type.shape[dim]) return null;
  return b.concat(
    pads.map(({ sym }) => sym),
    dim,
  );
}

/** Adds what a node gives the cotangents of its inputs. Returns the cotangents of its outputs. */
function differentiate(b: SymBuilder, node: SymNode, cotangents: Cotangents, wanted: readonly boolean[]): Sym[] {
  const { gradient } = getOp(node.op);
  const of = node.outputs.map((sym) => cotangents.total(sym));
  if (of.every((sym) => sym === null)) return [];
  if ("none" in gradient) {
    const where = node.path === "" ? "" : ` in ${node.path}`;
    throw new PlanError(`${node.op}${where} cannot be differentiated: ${gradient.none}`, {
      details: { op: node.op, path: node.path },
    });
  }
  const parts = gradient.rule(b, {
    inputs: node.inputs,
    outputs: node.outputs,
    cotangents: of,
    params: node.params,
    wanted,
  });
  // Last operand first: cotangents of one value are summed from the last one collected to the first.
  for (let i = node.inputs.length - 1; i >= 0; i--) {
    const part = parts[i];
    if (wanted[i] && part != null) cotangents.add(node.inputs[i]!, part);
  }
  return of.filter((sym) => sym !== null);
}

/**
 * Vector-Jacobian product: for each of `wrt`, the cotangent that `seed` (the cotangent of `output`, of its type) gives
 * it, or null when output does not depend on it. New nodes have phase "backward", or "weights" where they lead to
 * gradients of parameters only, and the path of the node they differentiate. Throws PlanError when an op on the way has
 * no gradient.
 */
export function gradients(b: SymBuilder, output: Sym, seed: Sym, wrt: readonly Sym[]): (Sym | null)[] {
  if (!sameShape(output.type.shape, seed.type.shape) || output.type.dtype !== seed.type.dtype) {
    throw new ShapeError(`a seed of type ${typeText(seed.type)} for an output of type ${typeText(output.type)}`);
  }
  const targets = new Set(wrt);
  const nodes = reachable([output]);
  const active = dependents(nodes, targets);
  const flows = (sym: Sym): boolean => isFloat(sym.type.dtype) && (targets.has(sym) || active.has(sym.node));
  const cotangents = new Cotangents(b);
  if (isFloat(output.type.dtype)) cotangents.add(output, seed);
  const { path, phase } = b;
  const since = nextSeq();
  const ofData = dataDependents(nodes);
  const activations: Sym[] = [];
  b.phase = "backward";
  try {
    for (const node of nodes.toReversed()) {
      if (!active.has(node)) continue;
      b.path = node.path;
      const own = differentiate(b, node, cotangents, node.inputs.map(flows));
      if (ofData.has(node)) activations.push(...own);
    }
    const totals = wrt.map((sym) => {
      b.path = sym.node.path;
      const total = cotangents.total(sym);
      if (total !== null && sym.node.op !== "parameter") activations.push(total);
      return total;
    });
    const made = totals.filter((sym) => sym !== null);
    markWeights(made, activations, since);
    return totals;
  } finally {
    b.path = path;
    b.phase = phase;
  }
}
