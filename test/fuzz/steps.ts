// The steps of random programs: each adds a few nodes to a graph and gives one value of the program's float dtype.
import { type Shape, sizeOf } from "../../lib/core/shape.ts";
import { reshapeGroups } from "../../lib/ir/view.ts";
import type { Sym, SymBuilder } from "../../lib/tensor/trace.ts";

/** Largest value a program holds. */
const maxSize = 600;

/** What a step works with. */
export interface StepContext {
  readonly b: SymBuilder;
  readonly dtype: "f32" | "f64";
  /** The values so far; never empty. */
  readonly values: readonly Sym[];
  readonly picks: readonly number[];
}

type Step = (context: StepContext) => Sym;

function pickAt<T>(list: readonly T[], pick: number): T {
  return list[pick % list.length]!;
}

/** The first operand: late values more often, so that programs grow deep. */
function first({ values, picks }: StepContext): Sym {
  return values[values.length - 1 - (Math.floor(picks[0]! / 2) % values.length)]!;
}

/** Another value that broadcasts with x, else one number made of another value. */
function partner({ b, values, picks }: StepContext, x: Sym): Sym {
  const y = pickAt(values, picks[1]!);
  const [a, c] = [x.type.shape, y.type.shape];
  const rank = Math.min(a.length, c.length);
  const fits = Array.from({ length: rank }, (_, i) => [a.at(-1 - i)!, c.at(-1 - i)!]).every(
    ([m, n]) => m === n || m === 1 || n === 1,
  );
  const wide = Array.from({ length: Math.max(a.length, c.length) }, (_, i) =>
    Math.max(a.at(-1 - i) ?? 1, c.at(-1 - i) ?? 1),
  );
  return fits && sizeOf(wide) <= maxSize ? y : b.mul(b.sum(y), 0.1);
}

/**
 * A mixture of experts: which of them a token gets goes by its index, so that no rounding changes it; two in five bound
 * what an expert takes.
 */
function experts(context: StepContext): Sym {
  const { b, dtype, picks } = context;
  const x = first(context);
  const { shape } = x.type;
  if (shape.length === 0 || sizeOf(shape) === 0) return x;
  const [n, w] = [shape.length > 1 ? shape[0]! : 1, shape.at(-1)!];
  const t = sizeOf(shape) / n / w;
  const [count, f] = [1 + (picks[1]! % 4), 1 + (picks[2]! % 3)];
  const k = 1 + (picks[3]! % count);
  if (n * t * k * Math.max(w, f) > maxSize) return x;
  const wave = (dims: Shape, by: number): Sym =>
    dims.map((_, d) => b.mul(ramp(context, dims, d), by * (1.3 + 1.1 * d))).reduce((a, c) => b.add(a, c));
  const [scores, ids] = b.emit("topk", [b.unary("sin", wave([n, t, count], 1))], { count: k });
  const capacity = picks[4]! % 5 < 2 ? 1 + (picks[4]! % 3) : undefined;
  const bound = capacity === undefined ? {} : { capacity };
  const kept = capacity === undefined ? ids! : b.one("expert_capacity", [ids!], { experts: count, capacity });
  const plan = b.emit("expert_sort", [kept], { experts: count });
  const params = { axis: "ep", ...bound };
  const [rows, counts] = b.emit("expert_dispatch", [b.reshape(x, [n, t, w]), ...plan], params);
  const weight = (dims: Shape, by: number): Sym => b.mul(b.cast(b.unary("cos", wave(dims, by)), dtype), 0.5);
  const product = (of: Sym, by: Sym): Sym => b.one("grouped_matmul", [of, counts!, by], { turned: false });
  const [left, right] = [0.7, 0.9].map((by) => product(rows!, weight([count, f, w], by)));
  const gated = b.one("expert_gate", [left!, right!, counts!], { activation: "silu" });
  const made = b.one("expert_return", [product(gated, weight([count, w, f], 0.3)), ...plan], params);
  return b.reshape(b.one("expert_combine", [made, scores!]), shape);
}

/** Indices along a dim as floats, in a shape. */
function ramp({ b, dtype }: StepContext, shape: Shape, dim: number): Sym {
  return b.cast(b.one("iota", [], { dim, shape: [...shape] }), dtype);
}

/** x with a small distinct number added to each element, so that extremes are not ties. */
function distinct(context: StepContext, x: Sym): Sym {
  const { b } = context;
  return x.type.shape.reduce<Sym>(
    (y, _, d) => b.add(y, b.mul(b.unary("sin", b.add(b.mul(ramp(context, x.type.shape, d), 1.3 + d), 0.7)), 0.05)),
    x,
  );
}

function bounded(op: string): Step {
  return (context) => context.b.unary(op, first(context));
}

function onPositive(op: string): Step {
  return (context) => {
    const x = first(context);
    return context.b.unary(op, context.b.add(context.b.mul(x, x), 0.3));
  };
}

function binary(op: string): Step {
  return (context) => {
    const x = first(context);
    return context.b.binary(op, x, partner(context, x));
  };
}

/** Some dims of a value, at least one. */
function someDims(x: Sym, pick: number): number[] {
  const rank = x.type.shape.length;
  const dims = x.type.shape.flatMap((_, d) => (((pick + 1) >> d) % 2 === 1 ? [d] : []));
  return rank > 0 && dims.length === 0 ? [pick % rank] : dims;
}

function reduction(kind: "sum" | "max" | "min"): Step {
  return (context) => {
    const x = first(context);
    if (x.type.shape.length === 0) return x;
    const y = kind === "sum" ? context.b.mul(x, 0.5) : distinct(context, x);
    return context.b.reduce(kind, y, someDims(x, context.picks[2]!), context.picks[3]! % 2 === 0);
  };
}

/**
 * Contracts a dim of x with one of equal size of another value (x itself in need); equal leading dims may be a batch.
 */
const einsum: Step = (context) => {
  const { b, values, picks } = context;
  const x = first(context);
  const rank = x.type.shape.length;
  if (rank === 0) return x;
  const k = picks[2]! % rank;
  const size = x.type.shape[k]!;
  const others = values.filter((v) => v.type.shape.includes(size));
  const y = pickAt(others, picks[1]!);
  const left = x.type.shape.map((_, d) => (d === k ? "k" : `m${d}`));
  const at = y.type.shape.indexOf(size);
  const batch = picks[3]! % 2 === 0 && k > 0 && at > 0 && x.type.shape[0] === y.type.shape[0];
  const right = y.type.shape.map((_, d) => (d === at ? "k" : d === 0 && batch ? "m0" : `n${d}`));
  const out = [...left, ...right.filter((label) => label !== "m0")].filter((label) => label !== "k");
  const turned = picks[4]! % 3 === 0 ? out.toReversed() : out;
  const sizes = sizeOf(x.type.shape) * sizeOf(y.type.shape);
  if (sizes > maxSize * Math.max(size, 1) || out.length > 6) return b.unary("tanh", x);
  const product = b.einsum(`${left.join(" ")}, ${right.join(" ")} -> ${turned.join(" ")}`, x, y);
  return b.mul(product, 1 / Math.max(size, 1));
};

/** x as a value of the rank that an op needs, with sizes that an op can take. */
function ofRank(b: SymBuilder, x: Sym, rank: number): Sym {
  const { shape } = x.type;
  if (shape.length <= rank) return b.reshape(x, [...new Array<number>(rank - shape.length).fill(1), ...shape]);
  const lead = shape.slice(0, shape.length - rank + 1);
  return b.reshape(x, [sizeOf(lead), ...shape.slice(lead.length)]);
}

const reshape: Step = (context) => {
  const { b, picks } = context;
  const x = first(context);
  const { shape } = x.type;
  if (shape.length === 0) return b.reshape(x, [1]);
  const d = picks[2]! % shape.length;
  const n = shape[d]!;
  const divisor = [2, 3, 5, 1].find((f) => n % f === 0)!;
  const options: number[][] = [
    [sizeOf(shape)],
    [...shape.slice(0, d), 1, ...shape.slice(d)],
    [...shape.slice(0, d), divisor, n / divisor, ...shape.slice(d + 1)],
    [...shape.slice(0, d), n * (shape[d + 1] ?? 1), ...shape.slice(d + 2)],
    shape.filter((size, i) => i !== shape.indexOf(1) || size !== 1),
    [...shape].reverse(),
  ];
  const to = pickAt(options, picks[3]!);
  const fits =
    to.length <= 5 && sizeOf(to) === sizeOf(shape) && (sizeOf(to) === 0 || reshapeGroups(shape, to).length > 0);
  return fits ? b.reshape(x, to) : x;
};

const transpose: Step = (context) => {
  const x = first(context);
  const left = x.type.shape.map((_, d) => d);
  const order: number[] = [];
  for (let pick = context.picks[2]! + 1; left.length > 0; pick++) order.push(...left.splice(pick % left.length, 1));
  return context.b.transpose(x, order);
};

const slice: Step = (context) => {
  const { b, picks } = context;
  const x = first(context);
  const { shape } = x.type;
  if (shape.length === 0) return x;
  const d = picks[2]! % shape.length;
  const start = picks[3]! % (shape[d]! + 1);
  const stop = start + 1 + (picks[4]! % 4);
  return b.slice(x, d, Math.min(start, Math.max(shape[d]! - 1, 0)), Math.min(stop, shape[d]!));
};

const pad: Step = (context) => {
  const { b, picks } = context;
  const x = first(context);
  const rank = x.type.shape.length;
  if (rank === 0 || sizeOf(x.type.shape) > maxSize / 6) return x;
  return b.pad(x, picks[2]! % rank, picks[3]! % 3, picks[4]! % 3, 0.25);
};

const concat: Step = (context) => {
  const { b, picks } = context;
  const x = first(context);
  const rank = x.type.shape.length;
  if (rank === 0 || sizeOf(x.type.shape) > maxSize / 2) return x;
  const dim = picks[2]! % rank;
  const fits = context.values.filter(
    ({ type }) => type.shape.length === rank && type.shape.every((n, d) => d === dim || n === x.type.shape[d]),
  );
  const other = pickAt(fits, picks[1]!);
  return sizeOf(other.type.shape) > maxSize / 2 ? x : b.concat([x, other, x], dim);
};

const broadcast: Step = (context) => {
  const { b, picks } = context;
  const x = first(context);
  const { shape } = x.type;
  const wide = [2 + (picks[2]! % 2), ...shape.map((n, d) => (n === 1 && picks[3]! % 2 === d % 2 ? 3 : n))];
  return shape.length > 3 || sizeOf(wide) > maxSize ? x : b.broadcastTo(x, wide);
};

/** Softmax, and its logarithm by parts. */
const softmax: Step = (context) => {
  const { b, picks } = context;
  const x = first(context);
  const rank = x.type.shape.length;
  if (rank === 0) return x;
  if (picks[2]! % 2 === 0) return b.one("softmax", [x]);
  const shifted = b.sub(x, b.one("stop_gradient", [b.reduce("max", x, rank - 1, true)]));
  return b.sub(shifted, b.unary("log", b.sum(b.unary("exp", shifted), rank - 1, true)));
};

/** A vector of the last dim's size, made of x's other dims or of a ramp. */
function weights(context: StepContext, x: Sym, offset: number): Sym {
  const n = x.type.shape.at(-1)!;
  const y = context.values.find(({ type }) => type.shape.length === 1 && type.shape[0] === n);
  const base = y ?? context.b.mul(ramp(context, [n], 0), 0.1);
  return context.b.add(context.b.unary("tanh", base), offset);
}

const norm: Step = (context) => {
  const { b, picks } = context;
  const x = first(context);
  if (x.type.shape.length === 0) return x;
  const w = weights(context, x, 1.5);
  if (picks[2]! % 2 === 0) return b.emit("rms_norm", [x, w], { eps: 1e-2 })[0]!;
  return b.emit("layer_norm", [x, w, weights(context, x, 0.2)], { eps: 1e-2 })[0]!;
};

/** i32 numbers in [0, below] over a shape of one dim or more: `below` itself is outside a table of that size. */
function ids({ b, picks }: StepContext, shape: Shape, below: number): Sym {
  const index = b.mul(b.one("iota", [], { dim: picks[4]! % shape.length, shape: [...shape] }), 3);
  return b.binary("rem", b.add(index, picks[3]!), below + 1);
}

const embedding: Step = (context) => {
  const { b, picks } = context;
  const table = ofRank(b, first(context), 2);
  const shape = picks[2]! % 2 === 0 ? [5] : [3, 2];
  const [vocab, width] = table.type.shape as readonly [number, number];
  return width * 6 > maxSize ? table : b.one("embedding", [table, ids(context, shape, vocab)]);
};

const crossEntropy: Step = (context) => {
  const { b } = context;
  const x = first(context);
  const logits = x.type.shape.length < 2 ? ofRank(b, x, 2) : x;
  const rows = logits.type.shape.slice(0, -1);
  const targets = ids(context, rows, logits.type.shape.at(-1)!);
  return b.cast(b.emit("cross_entropy", [logits, targets], { ignore: 0 })[0]!, context.dtype);
};

/** Self-attention over dims [batch, time, heads, width], with keys and values derived from x. */
const attention: Step = (context) => {
  const { b, picks } = context;
  const k = ofRank(b, first(context), 4);
  const [n, t, g, d] = k.type.shape as readonly [number, number, number, number];
  if (t * t * n * g * d > maxSize * 10) return k;
  const q = b.reshape(b.unary("sin", k), [n, t, g, 1, d]);
  const params = {
    causal: picks[2]! % 2 === 0,
    scale: 0.7,
    positions: picks[3]! % 3 === 0,
    segments: picks[4]! % 3 === 0,
  };
  const positions = b.one("iota", [], { dim: 1, shape: [n, t] });
  const segments = b.binary("rem", b.one("iota", [], { dim: 1, shape: [n, t] }), 2);
  const marks = [...(params.positions ? [positions, positions] : []), ...(params.segments ? [segments, segments] : [])];
  return b.emit("attention", [q, k, b.unary("tanh", k), ...marks], params)[0]!;
};

const rope: Step = (context) => {
  const { b, picks } = context;
  const x = ofRank(b, first(context), 3);
  const [n, t, width] = x.type.shape as readonly [number, number, number];
  const even = width % 2 === 0 ? x : b.concat([x, x], 2);
  if (even.type.shape[2] === 0 || n * t * width > maxSize) return x;
  const positions = b.add(b.one("iota", [], { dim: 1, shape: [n, t] }), picks[2]!);
  const frequencies = b.unary("exp", b.mul(ramp(context, [even.type.shape[2]! / 2], 0), -0.5));
  return b.one("rope", [even, positions, frequencies], { inverse: picks[3]! % 2 === 0 });
};

const random: Step = (context) => {
  const { b, dtype, picks } = context;
  const x = first(context);
  const key = b.constant(picks[2]!, "i32", [3]);
  const kind = picks[3]! % 2 === 0 ? "uniform" : "normal";
  const noise = b.one("random", [key], { kind, dtype, shape: [...x.type.shape], site: picks[4]!, indexed: [] });
  return b.mul(x, b.cast(b.binary("lt", noise, 0.6), dtype));
};

const select: Step = (context) => {
  const { b } = context;
  const x = first(context);
  const y = partner(context, x);
  const both = b.one("and", [b.binary("le", -0.9173, x), b.unary("is_finite", x)]);
  return b.select(both, x, y);
};

const steps = {
  tanh: bounded("tanh"),
  sin: bounded("sin"),
  cos: bounded("cos"),
  erf: bounded("erf"),
  sigmoid: bounded("sigmoid"),
  gelu: bounded("gelu"),
  silu: bounded("silu"),
  neg: bounded("neg"),
  stop: bounded("stop_gradient"),
  log: onPositive("log"),
  sqrt: onPositive("sqrt"),
  rsqrt: onPositive("rsqrt"),
  reciprocal: onPositive("reciprocal"),
  exp: (context) => context.b.unary("exp", context.b.unary("sin", first(context))),
  abs: (context) => context.b.unary("abs", distinct(context, first(context))),
  add: binary("add"),
  sub: binary("sub"),
  mul: binary("mul"),
  div: (context) => {
    const y = first(context);
    return context.b.div(partner(context, y), context.b.add(context.b.mul(y, y), 0.5));
  },
  max: (context) => {
    const x = distinct(context, first(context));
    return context.b.binary("max", x, partner(context, x));
  },
  ramp: (context) => {
    const x = first(context);
    const { shape } = x.type;
    return shape.length === 0
      ? x
      : context.b.add(x, context.b.mul(ramp(context, shape, context.picks[2]! % shape.length), 0.1));
  },
  sum: reduction("sum"),
  reduce_max: reduction("max"),
  reduce_min: reduction("min"),
  einsum,
  reshape,
  transpose,
  slice,
  pad,
  concat,
  broadcast,
  softmax,
  norm,
  embedding,
  cross_entropy: crossEntropy,
  attention,
  rope,
  random,
  select,
  experts,
} as const satisfies Record<string, Step>;

/** Contractions, sums and moves come up more often: they are what sharding is about. */
export const stepNames: readonly string[] = [
  ...Object.keys(steps),
  ...["einsum", "einsum", "einsum", "sum", "sum", "reshape", "transpose", "add", "mul", "broadcast", "concat", "norm"],
];

/** Adds a step to the graph. */
export function addStep(name: string, context: StepContext): Sym {
  const table: Readonly<Record<string, Step>> = steps;
  return table[name]!(context);
}
