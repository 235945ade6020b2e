// Optimizers: several steps through the reference evaluator against the papers' formulas, and settings out of range.
import assert from "node:assert/strict";
import type { Params } from "../../lib/ir/graph.ts";
import { adamw, type Optimizer, sgd } from "../../lib/optim/optimizer.ts";
import { flatten, type Sym, SymBuilder } from "../../lib/tensor/trace.ts";
import { type Dense, dense } from "../conformance/dense.ts";
import { evaluate } from "../conformance/evaluate.ts";

/** Keeps the results of the last op. */
class Recorder extends SymBuilder {
  last: readonly Sym[] = [];
  override emit(op: string, inputs: readonly Sym[], params?: Params): Sym[] {
    const results = super.emit(op, inputs, params);
    this.last = results;
    return results;
  }
}

interface Run {
  readonly learningRate: number;
  readonly scale?: number;
  readonly gate?: number;
  readonly decays?: boolean;
}

/** One update in float64: the parameter and its state afterwards. */
function update(
  optimizer: Optimizer,
  step: number,
  state: readonly number[][],
  gradient: number[],
  run: Run,
): number[][] {
  const b = new Recorder();
  const vector = (data: number[]): Dense => dense("f64", [data.length], data);
  const one = (x: number): Dense => dense("f64", [1], [x]);
  const feeds: Record<string, Dense> = {
    gradient: vector(gradient),
    learningRate: one(run.learningRate),
    scale: one(run.scale ?? 1),
    gate: dense("i32", [1], [run.gate ?? 1]),
  };
  ["parameter", ...optimizer.state].forEach((name, i) => {
    feeds[name] = vector(state[i]!);
  });
  const scalars = optimizer.scalars(step);
  optimizer.scalarNames.forEach((name, i) => {
    feeds[name] = one(scalars[i]!);
  });
  const read = (name: string): Sym => {
    const { dtype, shape } = feeds[name]!;
    return b.one("input", [], { name, dtype, shape });
  };
  optimizer.update(b, {
    parameter: read("parameter"),
    gradient: read("gradient"),
    state: optimizer.state.map(read),
    learningRate: read("learningRate"),
    scalars: optimizer.scalarNames.map(read),
    scale: read("scale"),
    gate: read("gate"),
    decays: run.decays ?? true,
  });
  const outputs = b.last.map((sym, i) => ({ name: String(i), sym }));
  const results = evaluate(flatten(outputs), new Map(Object.entries(feeds)));
  return outputs.map(({ name }) => [...results.get(name)!.data]);
}

const gradients = [
  [1, -2],
  [0.5, 0.25],
  [-3, 0],
];

function near(found: readonly number[], expected: readonly number[]): void {
  found.forEach((x, i) => {
    assert.ok(Math.abs(x - expected[i]!) < 1e-12, `${found} instead of ${expected}`);
  });
}

describe("optimizers", () => {
  it("adamw follows Adam with corrected moments and decoupled decay", () => {
    const [lr, b1, b2, eps, decay, scale] = [0.1, 0.8, 0.9, 1e-3, 0.5, 0.25];
    const optimizer = adamw({ learningRate: lr, betas: [b1, b2], eps, weightDecay: decay });
    let state = [
      [1, 2],
      [0, 0],
      [0, 0],
    ];
    const [p, m, v] = structuredClone(state) as [number[], number[], number[]];
    gradients.forEach((gradient, s) => {
      state = update(optimizer, s + 1, state, gradient, { learningRate: lr, scale });
      gradient.forEach((raw, i) => {
        const g = raw * scale;
        m[i] = b1 * m[i]! + (1 - b1) * g;
        v[i] = b2 * v[i]! + (1 - b2) * g * g;
        const moment = m[i]! / (1 - b1 ** (s + 1));
        const spread = Math.sqrt(v[i]! / (1 - b2 ** (s + 1)));
        p[i] = p[i]! - lr * decay * p[i]! - (lr * moment) / (spread + eps);
      });
      near(state.flat(), [...p, ...m, ...v]);
    });
  });

  for (const nesterov of [false, true]) {
    it(`sgd adds decay to the gradient and keeps momentum${nesterov ? ", looking ahead" : ""}`, () => {
      const [lr, momentum, decay] = [0.1, 0.9, 0.01];
      const optimizer = sgd({ learningRate: lr, momentum, nesterov, weightDecay: decay });
      let state = [
        [1, 2],
        [0, 0],
      ];
      const [p, buffer] = structuredClone(state) as [number[], number[]];
      gradients.forEach((gradient, s) => {
        state = update(optimizer, s + 1, state, gradient, { learningRate: lr });
        gradient.forEach((raw, i) => {
          const g = raw + decay * p[i]!;
          buffer[i] = momentum * buffer[i]! + g;
          p[i] = p[i]! - lr * (nesterov ? g + momentum * buffer[i]! : buffer[i]!);
        });
        near(state.flat(), [...p, ...buffer]);
      });
    });
  }

  it("leave alone what does not decay, and everything where the gate is shut", () => {
    const optimizer = adamw({ learningRate: 1, weightDecay: 0.5 });
    const state = [[3], [0], [0]];
    assert.deepEqual(update(optimizer, 1, state, [0], { learningRate: 1, decays: false }), state);
    assert.deepEqual(update(optimizer, 1, state, [0], { learningRate: 1 }), [[1.5], [0], [0]]);
    assert.deepEqual(update(optimizer, 1, state, [Number.NaN], { learningRate: 1, gate: 0 }), state);
  });

  it("refuse settings out of range by name", () => {
    const refused: [() => Optimizer, RegExp][] = [
      [() => adamw({ learningRate: -1 }), /learningRate/],
      [() => adamw({ learningRate: 1, betas: [1, 0.9] }), /betas\[0\]/],
      [() => adamw({ learningRate: 1, betas: [0.9, Number.NaN] }), /betas\[1\]/],
      [() => adamw({ learningRate: 1, eps: Number.POSITIVE_INFINITY }), /eps/],
      [() => adamw({ learningRate: 1, weightDecay: -0.1 }), /weightDecay/],
      [() => sgd({ learningRate: 1, momentum: 1 }), /momentum/],
      [() => sgd({ learningRate: 1, nesterov: true }), /nesterov needs a momentum/],
    ];
    for (const [make, message] of refused) assert.throws(make, { code: "ERR_CONFIG", message });
  });
});
