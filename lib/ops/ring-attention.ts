// Attention over a sequence that a mesh axis splits: keys and values go round the ring of ranks, and every rank adds
// what its queries see of each part (Liu et al. 2023, "Ring Attention with Blockwise Transformers"). Gradients go
// round with them.
import { statisticsDType } from "../core/dtype.ts";
import type { Builder } from "../ir/builder.ts";
import type { Params } from "../ir/graph.ts";
import type { LocalBuilder } from "../ir/op.ts";
import { axisName, sameAxes, shifted, type ValueSpec } from "../ir/spec.ts";

type Dims = readonly (readonly string[])[];

/** The axis that splits the queries' and the keys' sequence alike; null where there is none. */
export function ringAxis(specs: readonly ValueSpec[]): string | null {
  const [q, k] = [specs[0]!.dims[1]!, specs[1]!.dims[1]!];
  return q.length === 1 && sameAxes(q, k) ? q[0]! : null;
}

/** How the operands of a ring lie, and what takes them round it. */
class Ring<V> {
  readonly ranks: number;
  readonly query: Dims;
  readonly lse: Dims;
  readonly #b: Builder<V>;
  readonly #local: LocalBuilder<V>;
  readonly #axis: string;
  readonly #batch: readonly string[];
  readonly #groups: readonly string[];

  constructor(b: Builder<V>, local: LocalBuilder<V>, query: ValueSpec, axis: string) {
    this.#b = b;
    this.#local = local;
    this.#axis = axisName(axis);
    this.ranks = local.size(axis);
    [this.#batch, this.#groups] = [query.dims[0]!, query.dims[2]!];
    this.query = [this.#batch, [axis], this.#groups, [], []];
    this.lse = [this.#batch, this.#groups, [], [axis]];
  }

  /** Dims of keys, values and their gradients after so many shifts. */
  keys(shifts: number): Dims {
    return [this.#batch, [shifted(this.#axis, shifts)], this.#groups, []];
  }

  split(value: V, dims: Dims): V {
    return this.#local.split(value, dims);
  }

  /** Positions and segments, of queries and keys in turn, as they are after so many shifts of the keys. */
  marks(values: readonly V[], shifts: number): V[] {
    return values.map((v, i) => this.split(v, [this.#batch, [shifted(this.#axis, i % 2 === 0 ? 0 : shifts)]]));
  }

  /** Moves the parts of keys, or of what goes with them, from after `shifts` shifts to after one more. */
  shift(value: V, shifts: number): V {
    const after = this.keys((shifts + 1) % this.ranks);
    const params = { dim: 1, axes: [shifted(this.#axis, shifts)] };
    return this.emit("ring_shift", [value], params, [after])[0]!;
  }

  emit(op: string, inputs: readonly V[], params: Params, dims: readonly Dims[]): V[] {
    const specs = dims.map((split) => ({ dims: split, partial: {} }));
    return this.#local.emit(op, inputs, params, specs);
  }

  /** Keys and values as one tensor, so that they travel together. */
  joined(k: V, v: V): V {
    return this.#b.concat([this.split(k, this.keys(0)), this.split(v, this.keys(0))], 3);
  }

  parts(joined: V, width: number): [V, V] {
    return [this.#b.slice(joined, 3, 0, width), this.#b.slice(joined, 3, width, this.#b.shape(joined)[3]!)];
  }
}

/** An attention's result over some of the keys: out in the statistics' dtype, and the log-sum-exp of the scores. */
interface Partial<V> {
  readonly out: V;
  readonly lse: V;
}

/** A factor for each query, lse's dims [b, g, r, t], as it multiplies [b, t, g, r, e]. */
function perQuery<V>(b: Builder<V>, factor: V): V {
  const turned = b.transpose(factor, [0, 3, 1, 2]);
  return b.reshape(turned, [...b.shape(turned), 1]);
}

/** The result over two sets of keys; rows that see none have lse = -inf, and out = 0. */
function merge<V>(b: Builder<V>, x: Partial<V>, y: Partial<V>): Partial<V> {
  const most = b.binary("max", x.lse, y.lse);
  const base = b.select(b.unary("is_finite", most), most, 0);
  const [ex, ey] = [b.unary("exp", b.sub(x.lse, base)), b.unary("exp", b.sub(y.lse, base))];
  const sum = b.add(ex, ey);
  const norm = b.select(b.binary("le", sum, 0), 1, sum);
  const out = b.add(b.mul(x.out, perQuery(b, b.div(ex, norm))), b.mul(y.out, perQuery(b, b.div(ey, norm))));
  return { out, lse: b.add(base, b.unary("log", sum)) };
}

/** attention() over a split sequence: q, k, v (, marks) -> out, lse. n - 1 shifts of keys and values over n ranks. */
export function ringAttention<V>(
  b: Builder<V>,
  local: LocalBuilder<V>,
  inputs: readonly V[],
  query: ValueSpec,
  axis: string,
  params: Params,
): V[] {
  const ring = new Ring(b, local, query, axis);
  const [q, k, v, ...marks] = inputs as readonly [V, V, V, ...V[]];
  const width = b.shape(k)[3]!;
  const own = ring.split(q, ring.query);
  let joined = ring.joined(k, v);
  let all: Partial<V> | null = null;
  for (let shifts = 0; shifts < ring.ranks; shifts++) {
    if (shifts > 0) joined = ring.shift(joined, shifts - 1);
    const operands = [own, ...ring.parts(joined, width), ...ring.marks(marks, shifts)];
    const [out, lse] = ring.emit("attention", operands, params, [ring.query, ring.lse]) as [V, V];
    const part = { out: b.cast(out, statisticsDType(b.dtype(q))), lse };
    all = all === null ? part : merge(b, all, part);
  }
  return [b.cast(all!.out, b.dtype(q)), all!.lse];
}

/**
 * Gradients of ringAttention(): q, k, v, out, lse, dout (, marks) -> dq, dk, dv. The gradients of keys and values, in
 * the statistics' dtype, begin with the first rank after the owner, gather what each rank adds, and end at home: n -
 * 1 shifts of keys and values, and n - 1 of their gradients. A rank's own part comes last.
 */
export function ringAttentionGrad<V>(
  b: Builder<V>,
  local: LocalBuilder<V>,
  inputs: readonly V[],
  query: ValueSpec,
  axis: string,
  params: Params,
): V[] {
  const ring = new Ring(b, local, query, axis);
  const [q, k, v, out, lse, dout, ...marks] = inputs as readonly [V, V, V, V, V, V, ...V[]];
  const width = b.shape(k)[3]!;
  const wide = statisticsDType(b.dtype(q));
  const own = ring.split(q, ring.query);
  const results = [ring.split(out, ring.query), ring.split(lse, ring.lse), ring.split(dout, ring.query)];
  const home = ring.joined(k, v);
  let joined = home;
  let dq: V | null = null;
  let travelling: V | null = null;
  const add = (sum: V | null, more: V): V => (sum === null ? more : b.add(sum, more));
  for (let step = 1; step <= ring.ranks; step++) {
    const shifts = step % ring.ranks;
    joined = shifts === 0 ? home : ring.shift(joined, shifts - 1);
    const operands = [own, ...ring.parts(joined, width), ...results, ...ring.marks(marks, shifts)];
    const dims = [ring.query, ring.keys(shifts), ring.keys(shifts)];
    const [forQ, forK, forV] = ring.emit("attention_grad", operands, params, dims) as [V, V, V];
    dq = add(dq, b.cast(forQ, wide));
    travelling = add(travelling, b.concat([b.cast(forK, wide), b.cast(forV, wide)], 3));
    if (shifts !== 0) travelling = ring.shift(travelling, shifts);
  }
  const [dk, dv] = ring.parts(travelling!, width);
  return [b.cast(dq!, b.dtype(q)), b.cast(dk, b.dtype(k)), b.cast(dv, b.dtype(v))];
}
