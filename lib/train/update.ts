// The end of a training step: gradients are added up, their norm is taken, and every parameter is updated.
import type { Graph, TensorType } from "../ir/graph.ts";
import { type ValueSpec, replicated, sameSpec } from "../ir/spec.ts";
import { updateName } from "../compile/names.ts";
import type { Optimizer } from "../optim/optimizer.ts";
import type { Parameter } from "../tensor/parameter.ts";
import { type NamedSym, type Sym, SymBuilder, flatten } from "../tensor/trace.ts";
import { lossScale, nextLossScale } from "./loss-scale.ts";
import { cellName } from "./trace.ts";

/** A trainable parameter and the reads whose gradients add up to its own. */
export interface Trained {
  readonly parameter: Parameter;
  /** Numbers of its reads, in use order. */
  readonly reads: readonly number[];
}

/** What the closing graph is made from. */
export interface UpdateSource {
  readonly trained: readonly Trained[];
  readonly terms: readonly string[];
  /** Those among the terms that are only reported. */
  readonly reported: readonly string[];
  readonly optimizer: Optimizer;
  /** Largest norm of the whole gradient; 0: no clipping. */
  readonly clipNorm: number;
  /** Types of the microbatches' results, by their cells' names. */
  readonly cells: ReadonlyMap<string, TensorType>;
  /** Size of the mesh's pp axis. */
  readonly columns: number;
  /** Id of the factor that the loss was multiplied by, and with it all gradients. */
  readonly scaleId?: string;
  /** How a parameter lies on the devices. */
  specOf(parameter: Parameter): ValueSpec;
  /** How its optimizer state lies, and so its gradient and what is updated of it. */
  stateSpec(parameter: Parameter): ValueSpec;
}

/** Axes that split what is updated, as one text: norms of alike parameters are summed over ranks together. */
function splitOf(source: UpdateSource, { parameter }: Trained): string {
  return source.stateSpec(parameter).dims.flat().sort().join();
}

/**
 * Parameters in the order of the squared norms that a step returns: alike split ones together, each in canonical order.
 */
export function normOrder(source: UpdateSource): Trained[] {
  const kinds = [...new Set(source.trained.map((t) => splitOf(source, t)))];
  return kinds.flatMap((kind) => source.trained.filter((t) => splitOf(source, t) === kind));
}

/** Id of an optimizer state tensor. */
export function stateId(parameter: Parameter, name: string): string {
  return `${parameter.id}:${name}`;
}

/** True for ids of optimizer state tensors. */
export function isState(id: string): boolean {
  return id.includes(":");
}

/** The closing graph: outputs `loss <term>`, `gradNorm`, `squares`, with a loss scale `lossScale`, and the updates. */
export function updateGraph(source: UpdateSource): Graph {
  const b = new SymBuilder();
  b.phase = "update";
  const cell = (name: string): Sym => {
    const { dtype, shape } = source.cells.get(name)!;
    return b.one("input", [], { name, dtype, shape: [...shape] });
  };
  const outputs: NamedSym[] = [];
  const gradient = new Map<Trained, Sym>();
  for (const t of source.trained) {
    b.path = t.parameter.path;
    const parts = t.reads.map((r) => cell(cellName.grad(r)));
    gradient.set(t, placed(b, sumOfReads(b, parts, source, t), source.stateSpec(t.parameter)));
  }
  b.path = "";
  const loss = source.scaleId === undefined ? undefined : lossScale(b, source.scaleId);
  const inverse = loss && b.div(1, loss); // of a power of two: exact
  const scaled = squareVector(b, source, gradient);
  const squares = inverse ? b.mul(b.mul(scaled, inverse), inverse) : scaled;
  const norm = b.unary("sqrt", b.sum(squares));
  const gate = b.reshape(b.cast(b.unary("is_finite", norm), "i32"), [1]);
  const clip = clipScale(b, source.clipNorm, norm);
  const scale = inverse ? b.mul(clip, inverse) : clip;
  const scalars = source.optimizer.scalarNames.map((name) => scalarInput(b, name));
  const lr = scalarInput(b, "learningRate");
  for (const [t, grad] of gradient) {
    const { parameter } = t;
    b.path = parameter.path;
    const read = (id: string): Sym =>
      b.one("parameter", [], { id, dtype: parameter.dtype, shape: [...parameter.shape] });
    const whole = read(parameter.id);
    const [stored, updated] = [source.specOf(parameter), source.stateSpec(parameter)];
    const split = !sameSpec(stored, updated);
    const made = source.optimizer.update(b, {
      parameter: split ? placed(b, whole, updated) : whole,
      gradient: grad,
      state: source.optimizer.state.map((name) => read(stateId(parameter, name))),
      learningRate: lr,
      scalars,
      scale,
      gate,
      decays: parameter.decays,
    });
    const kept = split ? b.one("assign", [whole, placed(b, made, stored)]) : made;
    outputs.push({ name: `${updateName}${parameter.path}`, sym: kept });
  }
  b.path = "";
  for (const term of source.terms) {
    const sum = cell(cellName.sum(term));
    const seed = b.one("input", [], { name: cellName.seed(term), dtype: "f32", shape: [] });
    const weighted = b.mul(sum, seed);
    outputs.push({ name: `loss ${term}`, sym: inverse ? b.mul(weighted, inverse) : weighted });
  }
  if (loss && source.scaleId !== undefined) {
    outputs.push({ name: "lossScale", sym: b.mul(loss, 1) });
    outputs.push({ name: `${updateName}the loss scale`, sym: nextLossScale(b, source.scaleId, gate) });
  }
  return flatten([...outputs, { name: "gradNorm", sym: norm }, { name: "squares", sym: squares }]);
}

/**
 * The sum over a parameter's reads, in use order. Where stages may hold them apart, each is summed over the other axes
 * by itself, and more than two are brought together side by side: a sum over stages would follow their order on the
 * devices.
 */
function sumOfReads(b: SymBuilder, reads: readonly Sym[], source: UpdateSource, { parameter }: Trained): Sym {
  const sum = (parts: readonly Sym[]): Sym => parts.reduce((x, y) => b.add(x, y));
  if (source.columns === 1 || reads.length === 1) return sum(reads);
  const own = reads.map((read) => placed(b, read, source.stateSpec(parameter)));
  if (own.length === 2) return sum(own);
  const { shape } = parameter;
  const stacked = b.concat(
    own.map((part) => b.reshape(part, [1, ...shape])),
    0,
  );
  return sum(own.map((_, i) => b.reshape(b.slice(stacked, 0, i, i + 1), shape)));
}

function placed(b: SymBuilder, value: Sym, { dims }: ValueSpec): Sym {
  return b.one("reshard", [value], { dims });
}

function scalarInput(b: SymBuilder, name: string): Sym {
  return b.one("input", [], { name, dtype: "f32", shape: [1] });
}

/** min(1, clip / (norm + 1e-6)), PyTorch's clip_grad_norm_. */
function clipScale(b: SymBuilder, clip: number, norm: Sym): Sym {
  if (clip <= 0) return b.constant(1, "f32", [1]);
  return b.reshape(b.binary("min", b.div(clip, b.add(norm, 1e-6)), 1), [1]);
}

/**
 * Squared norms of all gradients. Those of alike split parameters are joined first, so that ranks sum them together.
 */
function squareVector(b: SymBuilder, source: UpdateSource, gradient: ReadonlyMap<Trained, Sym>): Sym {
  const kinds = new Map<string, Sym[]>();
  for (const t of normOrder(source)) {
    const split = splitOf(source, t);
    kinds.set(split, [...(kinds.get(split) ?? []), b.one("square_sum", [gradient.get(t)!])]);
  }
  const all = b.concat(
    [...kinds.values()].map((squares) => b.concat(squares, 0)),
    0,
  );
  return placed(b, all, replicated(1));
}
