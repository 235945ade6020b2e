// Gradients of every op against finite differences in float64 through the reference evaluator, second order too.
import assert from "node:assert/strict";
import { isFloat } from "../../lib/core/dtype.ts";
import { PlanError, ShapeError } from "../../lib/core/errors.ts";
import type { Params } from "../../lib/ir/graph.ts";
import { graphText } from "../../lib/ir/print.ts";
import { type OpName, getOp } from "../../lib/ops/index.ts";
import { gradients } from "../../lib/tensor/grad.ts";
import { flatten, type Sym, SymBuilder } from "../../lib/tensor/trace.ts";
import type { Case } from "./case.ts";
import { cases } from "./cases.ts";
import { isClose } from "./compare.ts";
import { type Dense, dense } from "./dense.ts";
import { Draw } from "./draw.ts";
import { evaluate } from "./evaluate.ts";

const step = 1e-6;
const tolerance = { relative: 1e-3, absolute: 1e-5 };
/** Elements of each operand that are moved. */
const probes = 12;

/** A function of fed tensors with a scalar result, and its gradients. */
class Problem {
  readonly b = new SymBuilder();
  readonly feeds = new Map<string, Dense>();
  private readonly draw: Draw;

  constructor(name: string) {
    this.draw = new Draw(name);
  }

  feed(value: Dense): Sym {
    const name = `x${this.feeds.size}`;
    this.feeds.set(name, value);
    return this.b.one("input", [], { name, dtype: value.dtype, shape: value.shape });
  }

  /** sum of values with random weights. */
  weighted(values: readonly Sym[]): Sym {
    const terms = values.map((y) => {
      const weights = this.feed(this.draw.uniform("f64", y.type.shape));
      return this.b.sum(this.b.mul(this.b.cast(y, "f64"), weights));
    });
    return terms.reduce((a, c) => this.b.add(a, c));
  }

  gradients(of: Sym, wrt: readonly Sym[]): (Sym | null)[] {
    return gradients(this.b, of, this.b.constant(1, "f64"), wrt);
  }

  /** Compares d(of)/d(wrt) with central differences. */
  check(of: Sym, wrt: readonly Sym[], what: string): void {
    const found = this.gradients(of, wrt);
    const named = found.flatMap((sym, i) => (sym === null ? [] : [{ name: `g${i}`, sym }]));
    const exact = named.length === 0 ? new Map<string, Dense>() : evaluate(flatten(named), this.feeds);
    const forward = flatten([{ name: "l", sym: of }]);
    const value = (feeds: ReadonlyMap<string, Dense>): number => evaluate(forward, feeds).get("l")!.data[0]!;
    wrt.forEach((sym, k) => {
      const name = sym.node.params.name as string;
      const x = this.feeds.get(name)!;
      const stride = Math.max(1, Math.floor(x.data.length / probes));
      for (let i = 0; i < x.data.length; i += stride) {
        const moved = (by: number): number => {
          const data = x.data.map((v, j) => (j === i ? v + by : v));
          return value(new Map([...this.feeds, [name, { ...x, data }]]));
        };
        const numeric = (moved(step) - moved(-step)) / (2 * step);
        const analytic = exact.get(`g${k}`)?.data[i] ?? 0;
        if (!isClose(analytic, numeric, tolerance)) {
          assert.fail(`${what}: operand ${k}, element ${i}: gradient ${analytic}, finite difference ${numeric}`);
        }
      }
    });
  }
}

/** True when floats are float64 throughout: narrower ones are too coarse for finite differences. */
function isWide(c: Case): boolean {
  const results = getOp(c.op).infer(c.inputs, c.params as Params);
  const narrow = [...c.inputs, ...results].some(({ dtype }) => isFloat(dtype) && dtype !== "f64");
  return !narrow && c.inputs.some(({ dtype }) => dtype === "f64");
}

/** Float operands to differentiate; none when floats are narrow or the op says it has no gradient. */
function differentiable(c: Case): readonly number[] {
  if (!isWide(c) || "none" in getOp(c.op).gradient) return [];
  return c.differentiate ?? c.inputs.flatMap((x, i) => (isFloat(x.dtype) ? [i] : []));
}

/** The op of a case on fed operands, its weighted results, and the operands to differentiate by. */
function pose(c: Case): { problem: Problem; loss: Sym; wrt: Sym[] } | null {
  const chosen = differentiable(c);
  const problem = new Problem(c.name);
  const operands = c.inputs.map((x) => problem.feed(x));
  const results = problem.b.emit(c.op, operands, c.params as Params);
  const shown = results.filter((y, i) => isFloat(y.type.dtype) && (c.cotangents?.includes(i) ?? true));
  if (chosen.length === 0 || shown.length === 0) return null;
  return { problem, loss: problem.weighted(shown), wrt: chosen.map((i) => operands[i]!) };
}

/** Ops whose gradient is a fused kernel without a gradient of its own. */
const once: readonly OpName[] = ["layer_norm", "rms_norm", "cross_entropy", "attention", "expert_gate"];

describe("gradients", function () {
  this.timeout(120_000);
  const byOp = new Map<OpName, Case[]>();
  for (const c of cases) byOp.set(c.op, [...(byOp.get(c.op) ?? []), c]);

  for (const [op, list] of byOp) {
    const posed = list.flatMap((c) => {
      const p = pose(c);
      return p === null ? [] : [{ c, ...p }];
    });
    if (posed.length === 0) continue;
    it(`of ${op} agree with finite differences`, () => {
      for (const { c, problem, loss, wrt } of posed) problem.check(loss, wrt, c.name);
    });
    if (once.includes(op)) continue;
    it(`of ${op} have gradients that agree with finite differences`, () => {
      for (const { c, problem, loss, wrt } of posed) {
        const first = problem.gradients(loss, wrt).filter((sym) => sym !== null);
        if (first.length > 0) problem.check(problem.weighted(first), wrt, `second order of ${c.name}`);
      }
    });
  }

  it("exist for every op with float operands, or are refused with a reason", () => {
    for (const [op, list] of byOp) {
      const { gradient } = getOp(op);
      if ("none" in gradient) assert.ok(gradient.none.length > 10, op);
      else if (op !== "stop_gradient" && list.some(isWide)) {
        const given = list.some((c) => differentiable(c).length > 0);
        assert.ok(given, `${op} has a gradient, but no case that tests it`);
      }
    }
  });
});

/** Gradient of sum(f(x) * weights) at x. */
function gradientOf(f: (b: SymBuilder, x: Sym) => Sym, x: Dense): readonly number[] {
  const problem = new Problem("point");
  const sym = problem.feed(x);
  const loss = problem.b.sum(f(problem.b, sym));
  const [g] = problem.gradients(loss, [sym]);
  return g == null ? [] : evaluate(flatten([{ name: "g", sym: g }]), problem.feeds).get("g")!.data;
}

describe("reverse mode", () => {
  it("shares the gradient of an extreme among ties", () => {
    const x = dense("f64", [1, 3], [1, 3, 3]);
    assert.deepEqual(
      gradientOf((b, s) => b.reduce("max", s, 1), x),
      [0, 0.5, 0.5],
    );
    const zero = dense("f64", [2], [0, -1]);
    assert.deepEqual(
      gradientOf((b, s) => b.binary("max", s, 0), zero),
      [0.5, 0],
    );
  });

  it("keeps x^0 and 0^x finite", () => {
    assert.deepEqual(
      gradientOf((b, s) => b.binary("pow", s, 0), dense("f64", [1], [0])),
      [0],
    );
    assert.deepEqual(
      gradientOf((b, s) => b.binary("pow", 0, s), dense("f64", [1], [2])),
      [0],
    );
  });

  it("stops at stop_gradient and at values that are not floats", () => {
    const x = dense("f64", [2], [1, 2]);
    assert.deepEqual(
      gradientOf((b, s) => b.mul(s, b.unary("stop_gradient", s)), x),
      [1, 2],
    );
    assert.deepEqual(
      gradientOf((b, s) => b.unary("stop_gradient", s), x),
      [],
    );
    assert.deepEqual(
      gradientOf((b, s) => b.cast(b.cast(s, "i32"), "f64"), x),
      [],
    );
  });

  it("adds cotangents in use order, labels nodes with phase and path, and restores the builder", () => {
    const b = new SymBuilder();
    const x = b.one("input", [], { name: "x", dtype: "f64", shape: [2] });
    b.path = "block";
    const y = b.add(b.add(b.unary("sin", x), b.unary("exp", x)), b.mul(x, x));
    b.path = "head";
    const loss = b.sum(y);
    const [g] = gradients(b, loss, b.constant(1, "f64"), [x]);
    assert.deepEqual([b.path, b.phase], ["head", "forward"]);
    // ((sin's + exp's) + first of mul) + second of mul.
    const order: string[] = [];
    for (let node = g!.node; node.op === "add"; node = node.inputs[0]!.node) {
      assert.deepEqual([node.path, node.phase], ["", "backward"]);
      order.unshift(node.inputs[1]!.node.op);
      if (node.inputs[0]!.node.op !== "add") order.unshift(node.inputs[0]!.node.op);
    }
    const text = graphText(flatten([{ name: "g", sym: g! }]));
    assert.deepEqual(order, ["mul", "mul", "mul", "mul"], text);
    assert.match(text, /cos\(%\d+\) {2}# block backward/);
    assert.match(text.split("\n").findLast((line) => line.includes("= mul")) ?? "", /block backward/);
    const first = g!.node.inputs[0]!.node.inputs[0]!.node;
    assert.match(first.inputs.map((s) => s.node.inputs[1]?.node.op ?? s.node.op).join(), /cos/, text);
  });

  it("differentiates deep graphs without recursion, and nests", () => {
    const b = new SymBuilder();
    const x = b.one("input", [], { name: "x", dtype: "f64", shape: [] });
    let y: Sym = x;
    for (let i = 0; i < 20_000; i++) y = b.add(y, 1);
    let d: Sym = b.mul(b.mul(y, x), x);
    for (let order = 0; order < 3; order++) d = gradients(b, d, b.constant(1, "f64"), [x])[0]!;
    const value = evaluate(flatten([{ name: "d", sym: d }]), new Map([["x", dense("f64", [], [0.5])]]));
    assert.equal(value.get("d")!.data[0], 6);
  }).timeout(60_000);

  it("gives each operand a cotangent of its own dtype", () => {
    for (const from of ["f32", "bf16", "f16", "f64"] as const) {
      const b = new SymBuilder();
      const x = b.one("input", [], { name: "x", dtype: from, shape: [2] });
      const [g] = gradients(b, b.sum(b.cast(x, "f32")), b.constant(1, "f32"), [x]);
      assert.deepEqual(g!.type, { dtype: from, shape: [2] });
    }
    const b = new SymBuilder();
    const operand = (name: string, dtype: string, shape: readonly number[]) =>
      b.one("input", [], { name, dtype, shape });
    const [x, w] = [operand("x", "bf16", [2, 3]), operand("w", "bf16", [3, 4])];
    const y = b.one("einsum", [x, w], { equation: "m k, k n -> m n", dtype: "f32" });
    const scale = operand("s", "bf16", [4]);
    const z = b.sum(b.one("rms_norm", [b.cast(y, "bf16"), scale], { eps: 1e-5 }));
    const types = gradients(b, z, b.constant(1, "bf16"), [x, w, scale]).map((g) => g!.type);
    assert.deepEqual(types, [x.type, w.type, scale.type]);
  });

  it("gives null for what the output does not depend on, and the seed for the output itself", () => {
    const b = new SymBuilder();
    const [x, z] = ["x", "z"].map((name) => b.one("input", [], { name, dtype: "f64", shape: [] })) as [Sym, Sym];
    const y = b.mul(x, 2);
    const seed = b.constant(3, "f64");
    assert.deepEqual(gradients(b, y, seed, [z, y]), [null, seed]);
    assert.throws(() => gradients(b, y, b.constant(1, "f32"), [x]), ShapeError);
  });

  it("refuses ops without a gradient, naming the op, its module and the reason", () => {
    const b = new SymBuilder();
    const operand = (name: string, shape: readonly number[]) => b.one("input", [], { name, dtype: "f64", shape });
    b.path = "h.3.norm";
    const [x, w] = [operand("x", [2, 3]), operand("w", [3])];
    const y = b.one("rms_norm", [x, w], { eps: 1e-5 });
    const [g] = gradients(b, b.sum(y), b.constant(1, "f64"), [x]);
    assert.throws(
      () => gradients(b, b.sum(g!), b.constant(1, "f64"), [x]),
      (e) =>
        e instanceof PlanError && /rms_norm_grad in h\.3\.norm cannot be differentiated: .*compose/.test(e.message),
    );
    const rstd = b.emit("rms_norm", [x, w], { eps: 1e-5 })[1]!;
    assert.throws(() => gradients(b, b.sum(rstd), b.constant(1, "f64"), [x]), /rstd is not differentiable/);
  });
});
