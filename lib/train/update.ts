// The end of a training step: gradients meet, their norm is taken, and every stage updates its parameters.
import type { Graph } from "../ir/graph.ts";
import { type ValueSpec, sameSpec } from "../ir/spec.ts";
import { updateName } from "../compile/names.ts";
import type { Cell } from "../compile/step.ts";
import type { Optimizer } from "../optim/optimizer.ts";
import type { Parameter } from "../tensor/parameter.ts";
import { type NamedSym, type Sym, SymBuilder, flatten } from "../tensor/trace.ts";
import { cellName } from "./trace.ts";

/** A trainable parameter and the reads whose gradients add up to its own. */
export interface Trained {
  readonly parameter: Parameter;
  /** Numbers of its reads, in use order. */
  readonly reads: readonly number[];
  /** Stages that read it, ascending. */
  readonly stages: readonly number[];
}

/** What the closing graphs are made from. */
export interface UpdateSource {
  readonly trained: readonly Trained[];
  readonly terms: readonly string[];
  readonly optimizer: Optimizer;
  /** Largest norm of the whole gradient; 0: no clipping. */
  readonly clipNorm: number;
  readonly stages: number;
  /** How a parameter lies on the devices. */
  specOf(parameter: Parameter): ValueSpec;
  /** How its optimizer state lies, and so its gradient and what is updated of it. */
  stateSpec(parameter: Parameter): ValueSpec;
}

/** Axes that split what is updated, as one text: norms of alike parameters are summed over ranks together. */
function splitOf(source: UpdateSource, { parameter }: Trained): string {
  return source.stateSpec(parameter).dims.flat().sort().join();
}

/** Parameters in the order of the squared norms that a step returns: alike split ones together, each in canonical order. */
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

/** The closing graph of a stage: outputs `loss <term>` (on the losses' stage), `gradNorm`, `squares`. */
export function updateGraph(source: UpdateSource, stage: number, cells: readonly Cell[]): Graph {
  const b = new SymBuilder();
  b.phase = "update";
  const cell = (name: string): Sym | null => {
    const found = cells.find((c) => c.name === name);
    return found ? b.one("input", [], { name, dtype: found.type.dtype, shape: [...found.type.shape] }) : null;
  };
  const outputs: NamedSym[] = [];
  const gradient = new Map<Trained, Sym>();
  for (const t of source.trained) {
    if (!t.stages.includes(stage)) continue;
    b.path = t.parameter.path;
    const parts = t.reads.map((r) => cell(cellName.grad(r))).filter((v) => v !== null);
    const own = placed(
      b,
      parts.reduce((x, y) => b.add(x, y)),
      source.stateSpec(t.parameter),
    );
    gradient.set(
      t,
      t.stages.length > 1 ? b.one("all_reduce", [own], { axes: ["pp"], stages: t.stages, kind: "sum" }) : own,
    );
  }
  b.path = "";
  const squares = squareVector(b, source, stage, gradient);
  const norm = b.unary("sqrt", b.sum(squares));
  const gate = b.reshape(b.cast(b.unary("is_finite", norm), "i32"), [1]);
  const scale = clipScale(b, source.clipNorm, norm);
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
    if (sum === null) continue;
    const seed = b.one("input", [], { name: cellName.seed(term), dtype: "f32", shape: [] });
    outputs.push({ name: `loss ${term}`, sym: b.mul(sum, seed) });
  }
  return flatten([...outputs, { name: "gradNorm", sym: norm }, { name: "squares", sym: squares }]);
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

/** Squared norms of all gradients: each stage gives those of the parameters it is the first to read, the others' are 0. */
function squareVector(b: SymBuilder, source: UpdateSource, stage: number, gradient: ReadonlyMap<Trained, Sym>): Sym {
  const order = normOrder(source);
  const kinds = new Map<string, Trained[]>();
  for (const t of order) {
    const split = splitOf(source, t);
    kinds.set(split, [...(kinds.get(split) ?? []), t]);
  }
  const parts = [...kinds.values()].map((group) => {
    const padded = ownRuns(group, (t) => t.stages[0] === stage).map(([from, to]) => {
      const run = group.slice(from, to).map((t) => b.one("square_sum", [gradient.get(t)!]));
      return b.pad(b.concat(run, 0), 0, from, group.length - to);
    });
    return padded.length === 0 ? b.constant(0, "f32", [group.length]) : padded.reduce((x, y) => b.add(x, y));
  });
  const own = b.concat(parts, 0);
  return source.stages > 1 ? b.one("all_reduce", [own], { axes: ["pp"], kind: "sum" }) : own;
}

/** Half-open runs of consecutive members that satisfy a condition. */
function ownRuns<T>(list: readonly T[], own: (item: T) => boolean): [number, number][] {
  const runs: [number, number][] = [];
  list.forEach((item, i) => {
    if (!own(item)) return;
    const last = runs.at(-1);
    if (last && last[1] === i) last[1] = i + 1;
    else runs.push([i, i + 1]);
  });
  return runs;
}
