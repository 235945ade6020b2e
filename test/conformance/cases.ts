// The cases of every op: operands and params, drawn deterministically. Backends are held against the reference on them.
import type { DType } from "../../lib/core/dtype.ts";
import { type Shape, shapeText } from "../../lib/core/shape.ts";
import type { OpName, OpParams } from "../../lib/ops/index.ts";
import { type Case, makeCase } from "./case.ts";
import { expertCases } from "./cases-experts.ts";
import { nnCases } from "./cases-nn.ts";
import { type Dense, dense } from "./dense.ts";
import { Draw } from "./draw.ts";

const floats: readonly DType[] = ["f32", "f64", "bf16", "f16"];

/** Shapes of elementwise cases: a scalar, size 1, odd and wide rows, blocks larger than any vector, nothing. */
const shapes: Readonly<Partial<Record<DType, readonly Shape[]>>> = {
  f32: [[], [1, 1], [3, 17], [4099], [0, 3]],
  f64: [[2, 3], [1], [33]],
  bf16: [[5, 13], [1]],
  f16: [[3, 37], [1]],
  i32: [[4, 7], []],
  bool: [[19], []],
};

interface Range {
  readonly low?: number;
  readonly high?: number;
  readonly dtypes?: readonly DType[];
}

const numeric: readonly DType[] = [...floats, "i32"];
const positive = { low: 0.1, high: 3 };

/** Domain and dtypes of each unary op. */
const unaryRanges = {
  neg: { dtypes: numeric },
  abs: { dtypes: numeric },
  sign: { dtypes: numeric },
  floor: { low: -5, high: 5 },
  ceil: { low: -5, high: 5 },
  round: { low: -5, high: 5 },
  exp: {},
  log: positive,
  sqrt: positive,
  rsqrt: positive,
  reciprocal: positive,
  sin: { low: -7, high: 7 },
  cos: { low: -7, high: 7 },
  tanh: { low: -4, high: 4 },
  erf: { low: -3, high: 3 },
  sigmoid: { low: -6, high: 6 },
  gelu: { low: -4, high: 4 },
  silu: { low: -6, high: 6 },
  is_finite: {},
} as const satisfies Partial<Record<OpName, Range>>;

/** Domains and dtypes of each binary op. */
const binaryRanges = {
  gelu_grad: { low: -3, high: 3 },
  silu_grad: { low: -3, high: 3 },
  add: { dtypes: numeric },
  sub: { dtypes: numeric },
  mul: { dtypes: numeric },
  div: { low: 0.4, high: 3, dtypes: numeric },
  rem: { low: 0.4, high: 3, dtypes: numeric },
  max: { dtypes: numeric },
  min: { dtypes: numeric },
  pow: { low: 0.2, high: 2.5 },
  eq: { dtypes: [...numeric, "bool"] },
  ne: { dtypes: [...numeric, "bool"] },
  lt: { dtypes: numeric },
  le: { dtypes: numeric },
} as const satisfies Partial<Record<OpName, Range>>;

function operand(draw: Draw, dtype: DType, shape: Shape, range: Range): Dense {
  if (dtype === "i32") return draw.ints(shape, -4, 5);
  if (dtype === "bool") return draw.bools(shape);
  return draw.uniform(dtype, shape, range.low, range.high);
}

function elementwiseCases(ranges: Readonly<Record<string, Range>>, arity: number): Case[] {
  return Object.entries(ranges).flatMap(([op, range]) =>
    (range.dtypes ?? floats).flatMap((dtype) =>
      shapes[dtype]!.map((shape) => {
        const draw = new Draw(`${op} ${dtype} ${shapeText(shape)}`);
        const inputs = Array.from({ length: arity }, () => operand(draw, dtype, shape, range));
        return makeCase(op as "add", {}, inputs);
      }),
    ),
  );
}

/** Numbers at which implementations differ. */
function specialCases(): Case[] {
  const special = [0, -0, 1, -1, 0.5, 1.5, 2.5, -2.5, Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  const pairs = special.flatMap((x) => special.map((y): readonly [number, number] => [x, y]));
  const x = dense("f32", [special.length], special);
  const left = dense(
    "f32",
    [pairs.length],
    pairs.map(([a]) => a),
  );
  const right = dense(
    "f32",
    [pairs.length],
    pairs.map(([, b]) => b),
  );
  const ints = [0, 1, -1, 7, -7, 2 ** 31 - 1, -(2 ** 31), 65537];
  const intPairs = ints.flatMap((a) => ints.map((b): readonly [number, number] => [a, b]));
  const leftInt = dense(
    "i32",
    [intPairs.length],
    intPairs.map(([a]) => a),
  );
  const rightInt = dense(
    "i32",
    [intPairs.length],
    intPairs.map(([, b]) => b),
  );
  return [
    ...(["is_finite", "sign", "abs", "neg", "floor", "ceil", "round"] as const).map((op) => makeCase(op, {}, [x])),
    ...(["max", "min", "eq", "ne", "lt", "le", "rem"] as const).map((op) => makeCase(op, {}, [left, right])),
    ...(["add", "sub", "mul", "div", "rem", "max", "lt"] as const).map((op) => makeCase(op, {}, [leftInt, rightInt])),
    makeCase("cast", { dtype: "i32" }, [dense("f32", [7], [1.9, -1.9, 3e9, -3e9, Number.NaN, 0.5, -0.5])]),
    makeCase("cast", { dtype: "bool" }, [dense("f32", [4], [0, 0.5, -0, Number.NaN])]),
  ];
}

function castCases(): Case[] {
  const dtypes: readonly DType[] = ["f32", "f64", "bf16", "f16", "i32", "bool"];
  return dtypes.flatMap((from) =>
    dtypes.map((dtype) =>
      makeCase("cast", { dtype }, [operand(new Draw(`cast ${from}`), from, [3, 11], { low: -9, high: 9 })]),
    ),
  );
}

function logicalCases(): Case[] {
  const draw = new Draw("logical");
  const pair = [draw.bools([5, 7]), draw.bools([5, 7])];
  const selects = (["f32", "f64", "bf16", "f16", "i32", "bool"] as const).map((dtype) =>
    makeCase("select", {}, [draw.bools([3, 9]), operand(draw, dtype, [3, 9], {}), operand(draw, dtype, [3, 9], {})]),
  );
  return [makeCase("not", {}, pair.slice(0, 1)), makeCase("and", {}, pair), makeCase("or", {}, pair), ...selects];
}

function fusedCases(): Case[] {
  const chain = (dtype: DType): OpParams["fused"] => ({
    expression: [
      { op: "constant", dtype, inputs: [], attrs: { value: 0.5 } },
      { op: "mul", dtype, inputs: [0, 2], attrs: {} },
      { op: "tanh", dtype, inputs: [3], attrs: {} },
      { op: "lt", dtype: "bool", inputs: [4, 1], attrs: {} },
      { op: "select", dtype, inputs: [5, 4, 1], attrs: {} },
      { op: "cast", dtype: "f32", inputs: [6], attrs: {} },
      { op: "iota", dtype: "i32", inputs: [], attrs: { dim: 1 } },
      { op: "cast", dtype: "f32", inputs: [8], attrs: {} },
      { op: "add", dtype: "f32", inputs: [7, 9], attrs: {} },
    ],
    outputs: [6, 10],
  });
  return floats.map((dtype) => {
    const draw = new Draw(`fused ${dtype}`);
    return makeCase("fused", chain(dtype), [draw.uniform(dtype, [5, 33]), draw.uniform(dtype, [5, 33])]);
  });
}

function leafCases(): Case[] {
  const key = dense("i32", [3], [12345, -987654321, 7]);
  const random = (
    kind: "bits" | "uniform" | "normal",
    dtype: DType,
    shape: Shape,
    indices: Record<number, number[]> = {},
  ): Case => {
    const indexed = Object.keys(indices).map(Number);
    const operands = indexed.map((d) => dense("i32", [shape[d]!], indices[d]!));
    return makeCase("random", { kind, dtype, shape, site: 3, indexed }, [key, ...operands]);
  };
  return [
    makeCase("constant", { value: 1.25, dtype: "f32", shape: [2, 3] }, []),
    makeCase("constant", { value: -3, dtype: "i32", shape: [] }, []),
    makeCase("constant", { value: 1, dtype: "bool", shape: [3] }, []),
    makeCase("constant", { value: Number.NEGATIVE_INFINITY, dtype: "f64", shape: [2] }, []),
    makeCase("constant", { value: 0.3, dtype: "bf16", shape: [0, 2] }, []),
    makeCase("iota", { dim: 1, shape: [3, 5] }, []),
    makeCase("iota", { dim: 0, shape: [300] }, []),
    random("bits", "i32", [3, 7]),
    random("uniform", "f32", [2, 3, 5]),
    random("uniform", "f64", [13]),
    random("normal", "f32", [5, 9]),
    random("normal", "bf16", [21]),
    random("uniform", "f16", [21]),
    random("normal", "f64", [2, 2]),
    random("uniform", "f32", [3, 6], { 0: [100000, 5, 2] }),
    random("uniform", "f32", [2, 4, 5], { 1: [0, 1, 9, 10], 2: [3, 4, 5, 0, 1] }),
    random("normal", "f64", [7], { 0: [2, 3, 4, 0, 1, 8, 8] }),
    random("uniform", "f32", []),
  ];
}

function movementCases(): Case[] {
  const draw = new Draw("movement");
  const x = (dtype: DType, shape: Shape): Dense => operand(draw, dtype, shape, {});
  const reshape = (from: Shape, shape: Shape, dtype: DType = "f64"): Case =>
    makeCase("reshape", { shape }, [x(dtype, from)]);
  const concat = (dim: number, dtype: DType, ...parts: Shape[]): Case =>
    makeCase(
      "concat",
      { dim },
      parts.map((shape) => x(dtype, shape)),
    );
  return [
    reshape([4, 6], [24]),
    reshape([24], [4, 6]),
    reshape([4, 6], [2, 12]),
    reshape([4, 3, 2], [4, 6]),
    reshape([2, 1, 6], [2, 6]),
    reshape([6], [1, 6, 1]),
    reshape([1, 4], [1, 2, 2]),
    reshape([6, 4], [3, 8], "f32"),
    reshape([], [1, 1]),
    reshape([0, 3], [3, 0]),
    reshape([2, 0, 3], [2, 0], "i32"),
    reshape([8, 2], [4, 2, 2], "bool"),
    makeCase("transpose", { permutation: [1, 0] }, [x("f64", [3, 5])]),
    makeCase("transpose", { permutation: [2, 0, 1] }, [x("f64", [2, 3, 4])]),
    makeCase("transpose", { permutation: [0, 2, 1, 3] }, [x("bf16", [2, 3, 1, 5])]),
    makeCase("transpose", { permutation: [] }, [x("i32", [])]),
    makeCase("broadcast", { shape: [3, 4] }, [x("f64", [1, 4])]),
    makeCase("broadcast", { shape: [2, 3, 5] }, [x("f64", [2, 1, 1])]),
    makeCase("broadcast", { shape: [0, 4] }, [x("f32", [1, 4])]),
    makeCase("slice", { dim: 0, start: 1, stop: 3 }, [x("f64", [4, 3])]),
    makeCase("slice", { dim: 1, start: 0, stop: 0 }, [x("f32", [4, 3])]),
    makeCase("slice", { dim: 1, start: 0, stop: 3 }, [x("f64", [4, 3])]),
    makeCase("pad", { dim: 1, before: 2, after: 1, value: 0 }, [x("f64", [3, 2])]),
    makeCase("pad", { dim: 0, before: 0, after: 3, value: -1.5 }, [x("f64", [2, 2])]),
    makeCase("pad", { dim: 0, before: 1, after: 1, value: 7 }, [x("i32", [0, 2])]),
    concat(0, "f64", [2, 3], [1, 3], [0, 3]),
    concat(1, "f64", [2, 3], [2, 2]),
    concat(2, "bf16", [2, 1, 3], [2, 1, 4]),
    concat(1, "f16", [2, 3], [2, 4]),
    concat(0, "bool", [5]),
    makeCase("stop_gradient", {}, [x("f64", [2, 3])], { differentiate: [] }),
  ];
}

function reductionCases(): Case[] {
  const draw = new Draw("reduction");
  const kinds = ["reduce_sum", "reduce_max", "reduce_min"] as const;
  const reductions = kinds.flatMap((op) => [
    makeCase(op, { dims: [1] }, [draw.uniform("f64", [3, 5])]),
    makeCase(op, { dims: [0] }, [draw.uniform("f64", [3, 5])]),
    makeCase(op, { dims: [0, 2] }, [draw.uniform("f64", [2, 3, 4])]),
    makeCase(op, { dims: [0, 1] }, [draw.uniform("f32", [37, 129])]),
    makeCase(op, { dims: [0] }, [draw.uniform("f32", [129, 37])]),
    makeCase(op, { dims: [1] }, [draw.uniform("bf16", [9, 65])]),
    makeCase(op, { dims: [1] }, [draw.uniform("f16", [9, 65])]),
    makeCase(op, { dims: [1] }, [draw.ints([4, 6], -9, 10)]),
    makeCase(op, { dims: [1] }, [draw.uniform("f32", [3, 0])]),
    makeCase(op, { dims: [0] }, [draw.ints([0, 2], 0, 1)]),
    makeCase(op, { dims: [0] }, [draw.uniform("f64", [1, 4])]),
    makeCase(op, { dims: [0] }, [draw.uniform("f32", [0, 0])]),
  ]);
  const rows = (dtype: DType, shape: Shape): Case[] => [
    makeCase("softmax", {}, [draw.uniform(dtype, shape, -4, 4)]),
    makeCase("softmax_grad", {}, [draw.uniform(dtype, shape, 0, 1), draw.uniform(dtype, shape)]),
  ];
  return [
    ...reductions,
    ...rows("f64", [3, 4]),
    ...rows("f32", [2, 3, 67]),
    ...rows("bf16", [5, 33]),
    ...rows("f16", [5, 33]),
    ...rows("f32", [1]),
    ...rows("f64", [0, 5]),
    makeCase("softmax", {}, [dense("f32", [2, 3], [1000, 1001, 999, -1000, Number.NEGATIVE_INFINITY, -1001])]),
  ];
}

/** Equations with the size of each label. */
const equations: readonly (readonly [string, Readonly<Record<string, number>>])[] = [
  ["m k, k n -> m n", { m: 3, k: 4, n: 5 }],
  ["m k, n k -> m n", { m: 3, k: 4, n: 5 }],
  ["k m, k n -> m n", { m: 3, k: 4, n: 5 }],
  ["m k, k n -> n m", { m: 3, k: 4, n: 5 }],
  ["b m k, b k n -> b m n", { b: 2, m: 3, k: 4, n: 2 }],
  ["b t d, d f -> b t f", { b: 2, t: 3, d: 4, f: 5 }],
  ["b t d, b t f -> d f", { b: 2, t: 3, d: 4, f: 2 }],
  ["b t g r d, b s g d -> b g r t s", { b: 2, t: 2, g: 2, r: 2, d: 3, s: 3 }],
  ["b g r t s, b s g d -> b t g r d", { b: 2, t: 2, g: 2, r: 2, d: 3, s: 3 }],
  ["b t d, d c h e -> b t c h e", { b: 2, t: 2, d: 3, c: 3, h: 2, e: 2 }],
  ["b t h e, h e d -> b t d", { b: 2, t: 3, h: 2, e: 3, d: 4 }],
  ["h e d, b t h e -> t b d", { b: 2, t: 3, h: 2, e: 3, d: 4 }],
  ["a b, b a -> a b", { a: 3, b: 4 }],
  ["m b, n b -> m n b", { b: 2, m: 3, n: 2 }],
  ["i, j -> i j", { i: 3, j: 4 }],
  ["i, i ->", { i: 5 }],
  ["i, -> i", { i: 3 }],
  [", ->", {}],
  ["m k, k n -> m n", { m: 1, k: 4, n: 1 }],
  ["m k, k n -> m n", { m: 3, k: 1, n: 2 }],
  ["m k, k n -> m n", { m: 3, k: 0, n: 2 }],
  ["m k, k n -> m n", { m: 0, k: 2, n: 3 }],
];

function contractionCases(): Case[] {
  const make = (equation: string, sizes: Readonly<Record<string, number>>, dtype: DType, result?: DType): Case => {
    const draw = new Draw(`${equation} ${dtype}`);
    const shapesOf = equation
      .split("->")[0]!
      .split(",")
      .map((labels) =>
        labels
          .split(" ")
          .filter((l) => l !== "")
          .map((l) => sizes[l]!),
      );
    const params = result === undefined ? { equation } : { equation, dtype: result };
    return makeCase(
      "einsum",
      params,
      shapesOf.map((shape) => draw.uniform(dtype, shape)),
    );
  };
  const small = equations.flatMap(([equation, sizes]) => [make(equation, sizes, "f64"), make(equation, sizes, "f32")]);
  const large = { b: 2, m: 37, k: 65, n: 51 };
  return [
    ...small,
    ...(["f32", "bf16", "f16"] as const).flatMap((dtype) => [
      make("b m k, b k n -> b m n", large, dtype),
      make("m k, n k -> m n", large, dtype),
      make("k m, k n -> n m", large, dtype),
    ]),
    make("m k, k n -> m n", large, "bf16", "f32"),
    make("m k, k n -> m n", large, "f16", "f32"),
  ];
}

function collectiveCases(): Case[] {
  const x = new Draw("collective").uniform("f32", [4, 6]);
  const axes = ["tp"];
  return [
    makeCase("all_reduce", { axes, kind: "sum" }, [x]),
    makeCase("all_gather", { axes, dim: 0 }, [x]),
    makeCase("reduce_scatter", { axes, dim: 1, kind: "sum" }, [x]),
    makeCase("all_to_all", { axes, splitDim: 0, joinDim: 1 }, [x]),
    makeCase("shard_slice", { axes, dim: 0 }, [x]),
    makeCase("bucket", { op: "reduce_scatter", axes, kind: "sum", dims: [1, 0] }, [x, x]),
    makeCase("broadcast_from", { axes, root: 0 }, [x]),
    makeCase("reshard", { dims: [[], axes] }, [x]),
    makeCase("assign", {}, [x, new Draw("assigned").uniform("f32", [4, 6])]),
    makeCase("ring_shift", { axes, dim: 0 }, [x]),
  ];
}

/** Every case. Collectives among them say only what a whole value is; their exchange is tested with several devices. */
export const cases: readonly Case[] = [
  ...leafCases(),
  ...elementwiseCases(unaryRanges, 1),
  ...elementwiseCases(binaryRanges, 2),
  ...specialCases(),
  ...castCases(),
  ...logicalCases(),
  ...fusedCases(),
  ...movementCases(),
  ...reductionCases(),
  ...contractionCases(),
  ...nnCases(),
  ...expertCases(),
  ...collectiveCases(),
];
