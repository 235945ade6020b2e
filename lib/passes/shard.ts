// Sharding: gives every value a spec by factor propagation and inserts the collectives that this needs. The method is
// Shardy's factor propagation (openxla.org/shardy), run forward once, with wanted specs of results as hints.
import { dtypeSize, isFloat } from "../core/dtype.ts";
import { sizeOf } from "../core/shape.ts";
import type { Graph, Node, Params, TensorType } from "../ir/graph.ts";
import { batchAxes } from "../ir/mesh.ts";
import type { FactorMap, LocalBuilder, OpRecord } from "../ir/op.ts";
import { type ReduceKind, type ValueSpec, axisName, sameAxes, specText } from "../ir/spec.ts";
import { getOp } from "../ops/index.ts";
import { elementOps } from "../ops/kernels.ts";
import type { ReshardParams } from "../ops/placement.ts";
import { GraphBuilder, type GraphValue, GraphValueBuilder } from "./graph-builder.ts";
import { expectArrived, expectUnmoved, resultRouting, routedFactors } from "./routed.ts";
import { sequenceDims } from "./sequence.ts";
import { castsIntoSums, wantedSpecs } from "./shard-hints.ts";

/** What the shard pass needs to know beyond the graph. */
export interface ShardOptions {
  /** Size of every mesh axis. */
  readonly sizes: Readonly<Record<string, number>>;
  /** Spec of an `input` or `parameter` node. */
  sourceSpec(node: Node): ValueSpec;
  /** Spec a result must have; null: any, partial included. */
  outputSpec(name: string): ValueSpec | null;
  /** True for results that stay partial over the axes that do not split them. */
  staysPartial?(name: string): boolean;
  /** Spec a result would best have, where that costs nothing; null: no wish. */
  wantedSpec?(name: string): ValueSpec | null;
  /** Sequence parallelism; absent: off. */
  readonly scatter?: SequenceScatter;
}

/**
 * Sequence parallelism (Korthikanti et al. 2022): activations that are partial over the axis are scattered along their
 * sequence rather than reduced whole, stay so through norms, residuals and dropout, and are gathered where the axis is
 * needed for something else.
 */
export interface SequenceScatter {
  readonly axis: string;
  /** Dim of each input (by name) that runs along the sequence. */
  readonly inputs: ReadonlyMap<string, number>;
  /** Segment and stage of a node: each gathers for itself, and forgets after use. */
  room(node: Pick<Node, "path" | "phase">): string;
}

type Dims = readonly (readonly string[])[];

/**
 * Returns the graph with every value's spec set, and with reductions, gathers and slices inserted. Shapes stay
 * global.
 */
export function shard(graph: Graph, options: ShardOptions): Graph {
  const b = new ShardBuilder(options.sizes, options.scatter);
  const wanted = wantedSpecs(graph, options);
  const summed = castsIntoSums(graph);
  const along = options.scatter ? sequenceDims(graph, options.scatter.inputs) : null;
  const map = new Array<number>(graph.values.length);
  for (const node of graph.nodes) {
    b.path = node.path;
    b.phase = node.phase;
    b.wanted = node.outputs.map((v) => wanted[v] ?? null);
    b.intoSum = summed.has(node);
    const results =
      node.op === "input" || node.op === "parameter"
        ? b.source(node, options.sourceSpec(node))
        : b.emit(
            node.op,
            node.inputs.map((v) => map[v]!),
            node.params,
          );
    node.outputs.forEach((v, i) => {
      map[v] = results[i]!;
      if (along) b.runsAlong(results[i]!, along[v]!);
    });
  }
  for (const { name, value } of graph.outputs) {
    const spec = options.outputSpec(name);
    const node = graph.nodes[graph.values[value]!.node]!;
    b.path = node.path;
    b.phase = node.phase;
    expectArrived(name, b.spec(map[value]!));
    const whole = spec === null ? map[value]! : b.toSpec(map[value]!, spec, options.staysPartial?.(name));
    b.graph.outputs.push({ name, value: whole });
  }
  return b.graph;
}

class ShardBuilder extends GraphBuilder {
  wanted: (ValueSpec | null)[] = [];
  /** Set for a cast whose result is added to others that may be partial alike. */
  intoSum = false;
  readonly #sizes: Readonly<Record<string, number>>;
  /** Reshards already made: value and wanted spec -> value. */
  readonly #made = new Map<string, number>();
  /** Set while an explicit reshard is made: it stays where it stands, and is nobody else's. */
  #explicit: Pick<ReshardParams, "once"> | null = null;

  readonly #local: LocalBuilder<GraphValue> = {
    size: (axis) => this.#sizes[axisName(axis)] ?? 1,
    split: ({ id }, dims) => ({ id: this.#reshard(this.#reduced(id), dims) }),
    emit: (op, inputs, params, specs) => {
      const ids = inputs.map((v) => v.id);
      const types = getOp(op).infer(
        ids.map((v) => this.type(v)),
        params,
      );
      return this.append(op, ids, params, types).map((id, i) => {
        this.graph.values[id]!.spec = specs[i]!;
        return { id };
      });
    },
    once: (op, { id }, params, spec) => ({ id: this.#step(id, op, op, params, spec) }),
  };

  readonly #scatter: SequenceScatter | undefined;
  /** Dim of a value that runs along the sequence. */
  readonly #along = new Map<number, number>();

  constructor(sizes: Readonly<Record<string, number>>, scatter?: SequenceScatter) {
    super();
    this.#sizes = sizes;
    this.#scatter = scatter;
  }

  /** Tells which of a value's dims run along the sequence: with exactly one, the value may be scattered along it. */
  runsAlong(value: number, dims: readonly boolean[]): void {
    if (dims.filter((is) => is).length === 1) this.#along.set(value, dims.indexOf(true));
  }

  spec(value: number): ValueSpec {
    return this.graph.values[value]!.spec!;
  }

  source(node: Node, spec: ValueSpec): number[] {
    const outputs = this.append(node.op, [], node.params, getOp(node.op).infer([], node.params));
    for (const v of outputs) this.graph.values[v]!.spec = this.#normal(spec);
    return outputs;
  }

  override emit(op: string, inputs: readonly number[], params: Params = {}): number[] {
    if (op === "reshard") return [this.#placed(inputs[0]!, params as ReshardParams)];
    const record = getOp(op);
    const parts = this.#decomposed(record, inputs, params);
    if (parts) return parts;
    const inputTypes = inputs.map((v) => this.type(v));
    const outputTypes = record.infer(inputTypes, params);
    const specs = inputs.map((v) => this.spec(v));
    const factors = routedFactors(record.name, record.sharding.factors(inputTypes, outputTypes, params), specs);
    const kept = this.#flowingPartial(record, inputs, outputTypes);
    const whole = inputs.map((v) => (kept ? v : this.#reduced(v)));
    const routing = resultRouting(specs);
    const assigned = this.#assign(factors, whole, Object.keys(kept ?? {}), routing);
    const ready = whole.map((v, i) =>
      this.#reshard(
        v,
        factors.inputs[i]!.map((f, d) => (f === null ? this.#fixed(v, d) : (assigned.get(f) ?? []))),
      ),
    );
    const outputs = this.append(op, ready, params, outputTypes);
    outputs.forEach((v, o) => {
      this.graph.values[v]!.spec = outputSpec(factors, o, assigned, kept ?? {}, routing);
    });
    return outputs;
  }

  /**
   * The axes of a dim that is never split: none, but for what lies in a device's own order, where they are as they are.
   */
  #fixed(value: number, dim: number): readonly string[] {
    const { dims, routed } = this.spec(value);
    return routed ? dims[dim]! : [];
  }

  /** Brings a value to exactly this spec; with `staysPartial`, it stays partial over the axes that do not split it. */
  toSpec(value: number, target: ValueSpec, staysPartial = false): number {
    const { dims, partial } = this.#normal(target);
    if (Object.keys(partial).length > 0) throw new Error(`a result cannot be asked to be ${specText(target)}`);
    // What is split by axes that it is partial over is scattered first: less is left to reduce.
    const scatters = dims.flat().some((axis) => axis in this.spec(value).partial);
    if (staysPartial) return this.#reshard(value, dims);
    return scatters ? this.#reduced(this.#reshard(value, dims)) : this.#reshard(this.#reduced(value), dims);
  }

  /** An explicit reshard, where it stands in the graph. */
  #placed(value: number, { dims, ...how }: ReshardParams): number {
    this.#explicit = how;
    const placed = this.toSpec(value, { dims, partial: {} });
    this.#explicit = null;
    return placed;
  }

  /** The results of an op that its rule replaces by a subgraph; null for others. */
  #decomposed(record: OpRecord, inputs: readonly number[], params: Params): number[] | null {
    if (!record.sharding.decompose) return null;
    const { wanted } = this;
    this.wanted = []; // wishes for the op's results are none of the subgraph's inner values
    const parts = record.sharding.decompose(
      new GraphValueBuilder(this),
      inputs.map((id) => ({ id })),
      inputs.map((v) => this.spec(v)),
      params,
      this.#local,
    );
    this.wanted = wanted;
    return parts?.map((v) => v.id) ?? null;
  }

  /** A spec without axes of size 1. */
  #normal(spec: ValueSpec): ValueSpec {
    const real = (axis: string): boolean => (this.#sizes[axisName(axis)] ?? 1) > 1;
    return {
      dims: spec.dims.map((axes) => axes.filter(real)),
      partial: Object.fromEntries(Object.entries(spec.partial).filter(([axis]) => real(axis))),
    };
  }

  /** The partial axes that may flow through this op unreduced; null when inputs must be whole. */
  #flowingPartial(
    record: OpRecord,
    inputs: readonly number[],
    outputTypes: readonly TensorType[],
  ): Readonly<Record<string, ReduceKind>> | null {
    const partials = inputs.map((v) => this.spec(v).partial);
    const some = partials.flatMap((p, i) => (Object.keys(p).length > 0 ? [i] : []));
    if (some.length === 0) return null;
    const first = partials[some[0]!]!;
    if (Object.values(first).some((kind) => kind !== "sum")) return null;
    const { linear } = record.sharding;
    const gradient = isGradient(first) && record.name === "cast" && widens(this.type(inputs[0]!), outputTypes[0]!);
    if (linear === "joint" || gradient || (this.intoSum && record.name === "cast")) {
      const same = some.length === inputs.length && partials.every((p) => samePartial(p, first));
      return same ? first : null;
    }
    // Through contractions and kernels with several results a reduction would only move to something larger.
    const carries = linear !== "none" && some.length === 1 && linear.includes(some[0]!);
    return carries && (record.name in elementOps || record.sharding.shrinks) ? first : null;
  }

  /** Which axes split which factor: the largest operand's wish first, each axis once. */
  #assign(
    factors: FactorMap,
    inputs: readonly number[],
    taken: readonly string[],
    routing: readonly string[] | undefined,
  ): Map<string, readonly string[]> {
    const assigned = new Map<string, readonly string[]>();
    const used = new Set(taken.map(axisName));
    // Experts are where the rows have travelled to.
    if (factors.routed && routing && routing.length > 0) {
      assigned.set(factors.routed.groups, routing);
      for (const axis of routing) used.add(axis);
    }
    const claim = (factor: string | null, axes: readonly string[]): void => {
      const have = (factor !== null && assigned.get(factor)) || [];
      if (factor === null || axes.length <= have.length || !sameAxes(have, axes.slice(0, have.length))) return;
      if (axes.slice(have.length).some((a) => used.has(axisName(a)))) return;
      const unit = factors.divisible?.[factor];
      const parts = axes.reduce((n, a) => n * this.#sizes[axisName(a)]!, 1);
      if (unit !== undefined && (unit % parts !== 0 || axes.some((a) => a.endsWith("*")))) return;
      assigned.set(factor, axes);
      for (const a of axes) used.add(axisName(a));
    };
    const bytes = (v: number): number => sizeOf(this.type(v).shape) * dtypeSize(this.type(v).dtype);
    const order = inputs.map((v, i) => ({ v, i })).sort((x, y) => bytes(y.v) - bytes(x.v) || x.i - y.i);
    for (const { v, i } of order) {
      for (const [d, f] of factors.inputs[i]!.entries()) {
        // A dim that is split once is split so by all: only what is scattered along the sequence may still add to it.
        if (f !== null && !assigned.has(f)) claim(f, this.#firm(v, d));
      }
    }
    const known = new Set(factors.inputs.flat());
    factors.outputs.forEach((names, o) => {
      const wish = this.wanted[o];
      if (!wish) return;
      for (const [d, f] of names.entries()) {
        const free = f !== null && !known.has(f) && !assigned.has(f);
        if (free) claim(f, wish.dims[d] ?? []);
      }
    });
    for (const { v, i } of order) {
      const d = this.#along.get(v);
      if (d !== undefined && this.#isScattered(v, d)) claim(factors.inputs[i]![d]!, this.spec(v).dims[d]!);
    }
    return assigned;
  }

  /**
   * True for a dim that is split by the axis of sequence parallelism, which gives way to every other use of the axis.
   */
  #isScattered(value: number, dim: number): boolean {
    return this.#along.get(value) === dim && this.spec(value).dims[dim]!.at(-1) === this.#scatter?.axis;
  }

  /** The axes of a dim without that of sequence parallelism. */
  #firm(value: number, dim: number): readonly string[] {
    const axes = this.spec(value).dims[dim]!;
    return this.#isScattered(value, dim) ? axes.slice(0, -1) : axes;
  }

  #step(value: number, key: string, op: string, params: Params, spec: ValueSpec): number {
    if (this.#explicit) {
      const own = op === "all_gather" ? { ...params, ...this.#explicit } : params;
      const made = this.append(op, [value], own, [this.type(value)])[0]!;
      this.graph.values[made]!.spec = spec;
      return made;
    }
    // What is gathered along the sequence is gathered by its readers, again in the backward, and not kept meanwhile.
    const dim = this.#along.get(value);
    const apart = op === "all_gather" && params.dim === dim && this.#isScattered(value, dim!);
    const who = apart ? this.#scatter!.room(this) : this.phase === "update" ? "update" : "";
    const name = `${value} ${who} ${key}`;
    const known = this.#made.get(name);
    if (known !== undefined) return known;
    // Others lie with the value's producer: a backward that reads a forward value of an earlier stage must not make
    // that stage's backward come before its own.
    const { path, phase } = this;
    const producer = this.graph.nodes[this.graph.values[value]!.node]!;
    if (!apart) {
      this.path = producer.path;
      if (phase !== "update") this.phase = producer.phase;
    }
    const made = this.append(op, [value], params, getOp(op).infer([this.type(value)], params))[0]!;
    this.path = path;
    this.phase = phase;
    const { routed } = this.spec(value);
    this.graph.values[made]!.spec = { ...(routed ? { routed } : {}), ...spec };
    if (dim !== undefined) this.#along.set(made, dim);
    this.#made.set(name, made);
    return made;
  }

  /**
   * Sums (max, min) a partial value over its partial axes; activations are scattered along their sequence where that
   * is on.
   */
  #reduced(value: number): number {
    let v = this.#scattered(value);
    for (const kind of ["sum", "max", "min"] as const) {
      const { dims, partial } = this.spec(v);
      const axes = Object.keys(partial).filter((a) => partial[a] === kind);
      if (axes.length === 0) continue;
      const rest = Object.fromEntries(Object.entries(partial).filter(([a]) => !axes.includes(a)));
      v = this.#step(v, `reduce ${kind}`, "all_reduce", { axes, kind }, { dims, partial: rest });
    }
    return v;
  }

  /** A value that is a sum over the axis of sequence parallelism, scattered along its sequence; others as they are. */
  #scattered(value: number): number {
    const { dims, partial, routed } = this.spec(value);
    const dim = this.#along.get(value);
    const axis = this.#scatter?.axis;
    if (axis === undefined || dim === undefined || partial[axis] !== "sum" || routed) return value;
    // One number a token is not worth it: its readers want it whole.
    if (!this.type(value).shape.some((n, d) => d > 0 && d !== dim && n > 1)) return value;
    const rest = Object.fromEntries(Object.entries(partial).filter(([a]) => a !== axis));
    const spec = { dims: dims.map((x, d) => (d === dim ? [...x, axis] : x)), partial: rest };
    return this.#step(value, "scatter", "reduce_scatter", { dim, axes: [axis], kind: "sum" }, spec);
  }

  /**
   * Gathers what is split otherwise than wanted (innermost axis first), then takes local parts: scattered sums along
   * axes that the value is partial over, slices along others.
   */
  #reshard(value: number, wanted: Dims): number {
    let v = value;
    expectUnmoved(this.spec(v), wanted);
    wanted.forEach((axes, d) => {
      for (;;) {
        const { dims, partial } = this.spec(v);
        const have = dims[d]!;
        if (sameAxes(have, axes.slice(0, have.length))) break;
        const kept = have.slice(0, -1);
        const spec = { dims: dims.map((x, i) => (i === d ? kept : x)), partial };
        v = this.#step(v, `gather ${specText(spec)}`, "all_gather", { dim: d, axes: have.slice(-1) }, spec);
      }
    });
    wanted.forEach((axes, d) => {
      for (;;) {
        const { dims, partial } = this.spec(v);
        const have = dims[d]!.length;
        if (have === axes.length) break;
        const kind = partial[axes[have]!];
        const first = axes.findIndex((axis, i) => i > have && axis in partial);
        const stop = kind ? have + 1 : first < 0 ? axes.length : first;
        const spec = { dims: dims.map((x, i) => (i === d ? axes.slice(0, stop) : x)), partial };
        const part = { dim: d, axes: axes.slice(have, stop) };
        if (kind) {
          const rest = Object.fromEntries(Object.entries(partial).filter(([axis]) => axis !== axes[have]));
          const scattered = { dims: spec.dims, partial: rest };
          v = this.#step(v, `scatter ${specText(scattered)}`, "reduce_scatter", { ...part, kind }, scattered);
        } else v = this.#step(v, `slice ${specText(spec)}`, "shard_slice", part, spec);
      }
    });
    return v;
  }
}

/**
 * Sums over samples or positions are gradients: they are made wide before they are reduced. Activations travel as
 * they are.
 */
function isGradient(partial: Readonly<Record<string, ReduceKind>>): boolean {
  return Object.keys(partial).some((axis) => batchAxes.includes(axis) || axis === "cp");
}

/** True for a cast that changes no value: it may come before a sum. */
function widens(from: TensorType, to: TensorType): boolean {
  const [a, b] = [from.dtype, to.dtype];
  return isFloat(a) && isFloat(b) && dtypeSize(b) > dtypeSize(a);
}

function samePartial(a: Readonly<Record<string, ReduceKind>>, b: Readonly<Record<string, ReduceKind>>): boolean {
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length && keys.every((k) => a[k] === b[k]);
}

function outputSpec(
  factors: FactorMap,
  output: number,
  assigned: ReadonlyMap<string, readonly string[]>,
  kept: Readonly<Record<string, ReduceKind>>,
  routing: readonly string[] | undefined,
): ValueSpec {
  const names = factors.outputs[output]!;
  const partial: Record<string, ReduceKind> = { ...kept };
  const met = routing?.length ? factors.routed?.groups : undefined;
  for (const [factor, axes] of assigned) {
    if (names.includes(factor) || factor === met) continue;
    const kinds = factors.reduce?.[factor] ?? "sum";
    const kind = typeof kinds === "string" ? kinds : kinds[output];
    if (kind) for (const axis of axes) partial[axisName(axis)] = kind;
  }
  const routed = routing && (!factors.routed || factors.routed.rows.some((f) => names.includes(f)));
  const dims = names.map((f) => (f === null ? [] : (assigned.get(f) ?? [])));
  return { dims, partial, ...(routed ? { routed: routing } : {}) };
}
