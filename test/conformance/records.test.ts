// Every op's record against the reference: result types, and the sharding rule, by splitting each factor and joining.
import assert from "node:assert/strict";
import { isFloat } from "../../lib/core/dtype.ts";
import { DTypeError, ProgramError, ShapeError } from "../../lib/core/errors.ts";
import type { Params, TensorType } from "../../lib/ir/graph.ts";
import type { FactorMap } from "../../lib/ir/op.ts";
import type { ReduceKind } from "../../lib/ir/spec.ts";
import { emitOp, getOp, ops } from "../../lib/ops/index.ts";
import { SymBuilder } from "../../lib/tensor/trace.ts";
import type { Case } from "./case.ts";
import { cases } from "./cases.ts";
import { assertClose, float64 } from "./compare.ts";
import { combine, type Dense, join, narrow } from "./dense.ts";
import { Draw } from "./draw.ts";
import { evaluateOp, evaluatePart } from "./reference.ts";
import { philox } from "./reference-nn.ts";

function typeOf({ dtype, shape }: Dense): TensorType {
  return { dtype, shape };
}

function inferred({ op, inputs, params }: Case): TensorType[] {
  return getOp(op).infer(inputs.map(typeOf), params);
}

function evaluateCase(c: Case): Dense[] {
  return evaluateOp(c.op, c.inputs, inferred(c), c.params);
}

/** Rules look at sizes, not at how many numbers there are: the large cases say nothing more. */
const small = cases.filter((c) => c.inputs.every((x) => x.data.length < 300) && !c.op.startsWith("all_"));

describe("op records", function () {
  this.timeout(60_000);

  it("are registered under their own names, each with a case", () => {
    for (const [name, record] of Object.entries(ops)) {
      assert.equal(record.name, name);
      if (name === "input" || name === "parameter") continue;
      assert.ok(
        cases.some((c) => c.op === name),
        `no case for ${name}`,
      );
    }
    assert.equal(new Set(cases.map((c) => c.name)).size, cases.length, "two cases have one name");
  });

  it("are looked up by name, with a typed error", () => {
    assert.equal(getOp("einsum").name, "einsum");
    assert.throws(
      () => getOp("matmull"),
      (e) => e instanceof ProgramError && /matmull/.test(e.message),
    );
    assert.throws(() => getOp("toString"), ProgramError);
  });

  it("type the params of ops that are added by name", () => {
    const b = new SymBuilder();
    const x = b.one("input", [], { name: "x", dtype: "f32", shape: [4] });
    assert.deepEqual(emitOp(b, "slice", [x], { dim: 0, start: 1, stop: 3 })[0]!.type.shape, [2]);
    // @ts-expect-error: slice has no param "end"
    assert.throws(() => emitOp(b, "slice", [x], { dim: 0, start: 1, end: 3 }), ShapeError);
  });

  it("infer the types that the reference computes, and cost something finite", () => {
    for (const c of cases) {
      const types = inferred(c);
      const results = evaluateCase(c);
      assert.deepEqual(
        results.map(typeOf),
        types.map((t) => ({ dtype: t.dtype, shape: [...t.shape] })),
        c.name,
      );
      const cost = getOp(c.op).cost(c.inputs.map(typeOf), types, c.params);
      assert.ok(cost.flops >= 0 && cost.bytes >= 0 && Number.isFinite(cost.flops + cost.bytes), c.name);
    }
  });
});

/** Factors of rows in a device's own order are those that only dispatched rows are split by: test/parallel/experts. */
function factorNames(map: FactorMap): string[] {
  const own = map.routed?.rows ?? [];
  const names = [...map.inputs, ...map.outputs].flat().filter((name) => name !== null);
  return [...new Set(names)].filter((name) => !own.includes(name));
}

function factorSize(
  map: FactorMap,
  inputs: readonly TensorType[],
  outputs: readonly TensorType[],
  factor: string,
): number {
  const sizes = [
    ...map.inputs.map((names, i) => [names, inputs[i]!] as const),
    ...map.outputs.map((names, i) => [names, outputs[i]!] as const),
  ].flatMap(([names, type]) => names.flatMap((name, d) => (name === factor ? [type.shape[d]!] : [])));
  if (map.divisible?.[factor] === undefined) assert.equal(new Set(sizes).size, 1, `sizes of factor ${factor} differ`);
  return sizes[0]!;
}

interface Part {
  readonly start: number;
  readonly stop: number;
}

/** Ways to cut [0, size): uneven halves, thirds, an empty part; only even ones where a rule asks for those. */
function cuts(size: number, divisible: number | undefined): Part[][] {
  const at = (...points: number[]): Part[] => points.map((start, i) => ({ start, stop: points[i + 1] ?? 1 }));
  const even = (parts: number): Part[] => at(...Array.from({ length: parts }, (_, i) => i / parts));
  if (divisible !== undefined) return [2, 3, 4].filter((k) => divisible % k === 0).map(even);
  const half = Math.ceil(size / 2) / Math.max(size, 1);
  const third = Math.ceil(size / 3) / Math.max(size, 1);
  return [at(0, half), at(0, third, Math.min(1, 2 * third)), at(0, 1, 1)];
}

/** The part of a tensor whose dims with the factor are cut (as fractions of their sizes), and where it begins. */
function cutType(type: TensorType, names: readonly (string | null)[], factor: string, part: Part) {
  const bounds = type.shape.map((n, d) =>
    names[d] === factor ? ([Math.round(n * part.start), Math.round(n * part.stop)] as const) : ([0, n] as const),
  );
  return { starts: bounds.map(([start]) => start), shape: bounds.map(([start, stop]) => stop - start), bounds };
}

function cutTensor(x: Dense, names: readonly (string | null)[], factor: string, part: Part): Dense {
  const { bounds } = cutType(x, names, factor, part);
  return bounds.reduce((y, [start, stop], d) => (names[d] === factor ? narrow(y, d, start, stop) : y), x);
}

function reduceKind(map: FactorMap, factor: string, output: number): ReduceKind | null {
  const kinds = map.reduce?.[factor] ?? "sum";
  return typeof kinds === "string" ? kinds : kinds[output]!;
}

const combiners = { sum: (a: number, b: number) => a + b, max: Math.max, min: Math.min } as const;

/** Evaluates a case part by part along a factor and joins or reduces the results. */
function evaluateSplit(c: Case, map: FactorMap, factor: string, parts: readonly Part[]): Dense[] {
  const types = inferred(c);
  const results = parts.map((part) => {
    const outputCuts = types.map((type, i) => cutType(type, map.outputs[i]!, factor, part));
    return evaluatePart(c.op, {
      inputs: c.inputs.map((x, i) => cutTensor(x, map.inputs[i]!, factor, part)),
      outputs: types.map((type, i) => ({ dtype: type.dtype, shape: outputCuts[i]!.shape })),
      params: c.params,
      inputStarts: c.inputs.map((x, i) => cutType(x, map.inputs[i]!, factor, part).starts),
      outputStarts: outputCuts.map(({ starts }) => starts),
    });
  });
  return types.map((_, i) => {
    const own = results.map((r) => r[i]!);
    const dim = map.outputs[i]!.indexOf(factor);
    if (dim >= 0) return join(own, dim);
    const kind = reduceKind(map, factor, i);
    return kind === null ? own[0]! : own.reduce((a, b) => combine(a, b, combiners[kind]));
  });
}

describe("sharding rules", function () {
  this.timeout(60_000);

  it("name factors whose parts, computed apart, join to the whole", () => {
    let splits = 0;
    for (const c of small) {
      const types = inferred(c);
      const inputTypes = c.inputs.map(typeOf);
      const map = getOp(c.op).sharding.factors(inputTypes, types, c.params);
      assert.deepEqual(
        map.inputs.map((f) => f.length),
        inputTypes.map((t) => t.shape.length),
        c.name,
      );
      assert.deepEqual(
        map.outputs.map((f) => f.length),
        types.map((t) => t.shape.length),
        c.name,
      );
      const whole = evaluateCase(c);
      for (const factor of factorNames(map)) {
        const size = factorSize(map, inputTypes, types, factor);
        for (const parts of cuts(size, map.divisible?.[factor])) {
          splits++;
          evaluateSplit(c, map, factor, parts).forEach((result, i) => {
            assertClose(result, whole[i]!, float64, `${c.name} split by ${factor} (result ${i})`);
          });
        }
      }
    }
    assert.ok(splits > 500, `only ${splits} splits`);
  });

  it("split the dims that they should: nothing is kept whole without need", () => {
    const factors = (op: string, shapes: readonly (readonly number[])[], params: Params) => {
      const inputs = shapes.map((shape): TensorType => ({ dtype: "f32", shape }));
      const record = getOp(op);
      return record.sharding.factors(inputs, record.infer(inputs, params), params);
    };
    const split = factors("reshape", [[6, 8]], { shape: [6, 2, 4] });
    assert.deepEqual([split.inputs, split.outputs], [[["d0", "d1"]], [["d0", "d1", null]]]);
    assert.deepEqual(split.divisible, { d1: 2 });
    const merged = factors("reshape", [[4, 3, 5]], { shape: [12, 5] });
    assert.deepEqual([merged.inputs, merged.outputs], [[["d0", null, "d2"]], [["d0", "d2"]]]);
    assert.deepEqual(merged.divisible, { d0: 4 });
    const unit = factors("reshape", [[1, 7, 6]], { shape: [1, 7, 2, 3] });
    assert.deepEqual(unit.outputs, [["d0", "d1", "d2", null]]);
    assert.deepEqual(factors("broadcast", [[1, 4]], { shape: [3, 4] }), {
      inputs: [[null, "d1"]],
      outputs: [["d0", "d1"]],
    });
    assert.deepEqual(factors("slice", [[4, 5]], { dim: 1, start: 0, stop: 2 }).inputs, [["d0", null]]);
    assert.deepEqual(
      factors(
        "einsum",
        [
          [2, 3],
          [3, 4],
        ],
        { equation: "m k, k n -> m n" },
      ),
      {
        inputs: [
          ["m", "k"],
          ["k", "n"],
        ],
        outputs: [["m", "n"]],
      },
    );
  });

  it("say truly what is linear", () => {
    for (const c of small) {
      const { linear } = getOp(c.op).sharding;
      if (linear === "none" || !c.inputs.some((x) => x.dtype === "f64")) continue;
      const sets = linear === "joint" ? [c.inputs.map((_, i) => i)] : linear.map((i) => [i]);
      for (const set of sets) {
        const draw = new Draw(`linear ${c.name}`);
        const other = c.inputs.map((x, i) => (set.includes(i) && isFloat(x.dtype) ? draw.uniform("f64", x.shape) : x));
        const sum = c.inputs.map((x, i) => (set.includes(i) ? combine(x, other[i]!, (a, b) => a + b) : x));
        const run = (inputs: readonly Dense[]): Dense[] => evaluateCase({ ...c, inputs });
        const [left, right] = [run(c.inputs), run(other)];
        run(sum).forEach((whole, i) => {
          const parts = combine(left[i]!, right[i]!, (a, b) => a + b);
          assertClose(parts, whole, float64, `${c.name} linear in ${set.join()}`);
        });
      }
    }
  });
});

type Refusal = readonly [string, readonly string[], Params, new (message: string) => Error, RegExp];

/** "f32 2 3" -> f32[2, 3]. */
function parseType(text: string): TensorType {
  const [dtype, ...sizes] = text.split(" ");
  return { dtype: dtype as TensorType["dtype"], shape: sizes.map(Number) };
}

const attention = { causal: true, scale: 1, positions: false, segments: false };

const refusals: readonly Refusal[] = [
  ["add", ["f32 2 3", "f32 2 4"], {}, ShapeError, /add of f32\[2, 3\] and f32\[2, 4\]/],
  ["add", ["f32 2", "f64 2"], {}, DTypeError, /f32\[2\] and f64\[2\].*promoted/],
  ["add", ["f32 2"], {}, ShapeError, /takes 2 operands, found 1/],
  ["add", ["bool 2", "bool 2"], {}, DTypeError, /bool/],
  ["exp", ["i32 2"], {}, DTypeError, /i32\[2\]/],
  ["and", ["f32 2", "f32 2"], {}, DTypeError, /must be bool/],
  ["select", ["f32 2", "f32 2", "f32 2"], {}, DTypeError, /condition/],
  ["select", ["bool 3", "f32 2", "f32 2"], {}, ShapeError, /differ in shape/],
  ["select", ["bool 2", "f32 2", "f64 2"], {}, DTypeError, /promoted/],
  ["cast", ["f32 2"], { dtype: "f8" }, DTypeError, /f8/],
  ["reshape", ["f32 2 3"], { shape: [4] }, ShapeError, /6 elements.*4/],
  ["reshape", ["f32 2"], { shape: [-2] }, ShapeError, /not a shape/],
  ["transpose", ["f32 2 3"], { permutation: [0, 0] }, ShapeError, /permutation/],
  ["broadcast", ["f32 2 1"], { shape: [3, 4] }, ShapeError, /only dims of size 1/],
  ["slice", ["f32 4"], { dim: 0, start: 2, stop: 5 }, ShapeError, /\[2, 5\)/],
  ["slice", ["f32 4"], { dim: 1, start: 0, stop: 1 }, ShapeError, /dim 1/],
  ["pad", ["f32 4"], { dim: 0, before: -1, after: 0, value: 0 }, ShapeError, /-1/],
  ["concat", ["f32 2 3", "f32 3 3"], { dim: 1 }, ShapeError, /another dim/],
  ["concat", [], { dim: 1 }, ShapeError, /operands/],
  ["reduce_sum", ["bool 2"], { dims: [0] }, DTypeError, /bool/],
  ["reduce_max", ["f32 2 2"], { dims: [1, 0] }, ShapeError, /ascend/],
  ["softmax", ["f32"], {}, ShapeError, /last dim/],
  ["einsum", ["f32 2 3", "f32 4 5"], { equation: "m k, k n -> m n" }, ShapeError, /label k is 3 and 4/],
  ["einsum", ["f32 2 3", "f32 3"], { equation: "m k, k n -> m n" }, ShapeError, /2 labels/],
  ["einsum", ["f32 2 3", "f32 3"], { equation: "m k, n -> n" }, ShapeError, /m .*one operand only/],
  ["einsum", ["f32 2", "f32 2"], { equation: "i, i -> j" }, ShapeError, /j .*no operand/],
  ["einsum", ["f32 2 2", "f32 2"], { equation: "i i, i -> i" }, ShapeError, /twice/],
  ["einsum", ["f32 2"], { equation: "i -> i" }, ShapeError, /operands/],
  ["einsum", ["i32 2", "i32 2"], { equation: "i, i ->" }, DTypeError, /i32/],
  ["einsum", ["f32 2", "f32 2"], { equation: "i, i ->", dtype: "bf16" }, DTypeError, /cannot give bf16/],
  ["layer_norm", ["f32 2 3", "f32 2", "f32 3"], { eps: 1 }, ShapeError, /w is f32\[2\]/],
  ["layer_norm", ["f32 2 3", "bf16 3", "f32 3"], { eps: 1 }, DTypeError, /w is bf16/],
  ["embedding", ["f32 2 3", "f32 4"], {}, DTypeError, /index tensor/],
  ["embedding", ["f32 3", "i32 4"], {}, ShapeError, /2 dims/],
  ["cross_entropy", ["f32 2 3", "i32 3"], { ignore: 0 }, ShapeError, /target tensor/],
  ["attention", ["f32 1 2 1 1 4", "f32 1 2 2 4", "f32 1 2 2 4"], attention, ShapeError, /groups/],
  ["attention", ["f32 1 2 1 1 4", "f32 1 2 1 4", "f32 1 3 1 4"], attention, ShapeError, /v is/],
  ["attention", ["f32 1 2 1 1 4", "f32 1 2 1 4", "f32 1 2 1 4", "i32 1 2"], attention, ShapeError, /found 4/],
  ["rope", ["f32 1 2 3", "i32 1 2", "f32 1"], { inverse: false }, ShapeError, /even/],
  ["adamw", ["f32 2", "f32 3", "f32 2", "f32 2", "f32", "f32", "f32", "f32", "i32 1"], {}, ShapeError, /operand 1/],
  ["sgd", ["f32 2", "f32 2", "f32 2", "f32 2", "f32", "i32 1"], {}, ShapeError, /one number/],
  ["sgd", ["bf16 2", "bf16 2", "bf16 2", "bf16", "bf16", "i32 1"], {}, DTypeError, /bf16/],
  ["random", ["i32 2"], { kind: "normal", dtype: "f32", shape: [2], site: 0, indexed: [] }, ShapeError, /key/],
  ["random", ["i32 3"], { kind: "bits", dtype: "f32", shape: [2], site: 0, indexed: [] }, DTypeError, /bits/],
  ["all_gather", ["f32 2"], { axes: [], dim: 0 }, ShapeError, /no axis/],
  ["all_gather", ["f32 2"], { axes: ["tp"], dim: 1 }, ShapeError, /dim 1/],
];

describe("op records refuse", () => {
  for (const [op, types, params, kind, message] of refusals) {
    it(`${op}(${types.join(", ")}) ${JSON.stringify(params)}`, () => {
      assert.throws(
        () => getOp(op).infer(types.map(parseType), params),
        (error) => error instanceof kind && message.test(error.message),
      );
    });
  }
});

describe("the reference", () => {
  it("has Philox4x32-10 right (the authors' known answers)", () => {
    const f = 0xffffffff;
    const hex = (words: readonly number[]) => words.map((w) => w.toString(16).padStart(8, "0")).join(" ");
    assert.equal(hex(philox([0, 0, 0, 0], [0, 0])), "6627e8d5 e169c58d bc57ac4c 9b00dbd8");
    assert.equal(hex(philox([f, f, f, f], [f, f])), "408f276d 41c83b0e a20bc7c6 6d5451fd");
  });
});
