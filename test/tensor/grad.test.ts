// Gradients of slices: parts that tile a value are joined, others are added.
import assert from "node:assert/strict";
import { gradients } from "../../lib/tensor/grad.ts";
import { Tensor } from "../../lib/tensor/tensor.ts";
import { flatten, SymBuilder } from "../../lib/tensor/trace.ts";
import { dense } from "../conformance/dense.ts";
import { evaluate } from "../conformance/evaluate.ts";

/** Gradient of the sum of parts of x [2, 3], [first, stop) of dim 1 times a number each; and the ops it takes. */
function gradientOf(parts: readonly (readonly [number, number, number])[]): { data: readonly number[]; ops: string[] } {
  const builder = new SymBuilder();
  const context = { builder, name: "a trace" };
  const x = new Tensor(builder.one("input", [], { name: "x", dtype: "f64", shape: [2, 3] }), context);
  const sum = parts
    .map(([start, stop, factor]) => x.slice(1, start, stop).mul(factor).sum())
    .reduce((total, part) => total.add(part));
  const [dx] = gradients(builder, sum.sym, builder.constant(1, "f64"), [x.sym]);
  const graph = flatten([{ name: "dx", sym: dx! }]);
  const { data } = evaluate(graph, new Map([["x", dense("f64", [2, 3], [1, 2, 3, 4, 5, 6])]])).get("dx")!;
  return { data, ops: graph.nodes.map((n) => n.op) };
}

describe("the gradient of slices", () => {
  it("is joined where they tile the value, in any order", () => {
    const { data, ops } = gradientOf([
      [2, 3, 5],
      [0, 1, 3],
      [1, 2, 4],
    ]);
    assert.deepEqual(data, [3, 4, 5, 3, 4, 5]);
    assert.ok(ops.includes("concat") && !ops.includes("pad") && !ops.includes("add"), ops.join(" "));
  });

  for (const [name, parts, expected] of [
    [
      "overlap",
      [
        [0, 2, 1],
        [1, 3, 10],
      ],
      [1, 11, 10],
    ],
    [
      "leave a gap",
      [
        [0, 1, 1],
        [2, 3, 10],
      ],
      [1, 0, 10],
    ],
    [
      "end early",
      [
        [0, 1, 1],
        [1, 2, 10],
      ],
      [1, 10, 0],
    ],
    [
      "are joined by the whole",
      [
        [0, 1, 1],
        [1, 3, 10],
        [0, 3, 100],
      ],
      [101, 110, 110],
    ],
    ["are one", [[1, 2, 7]], [0, 7, 0]],
  ] as const) {
    it(`is added where they ${name}`, () => {
      const { data, ops } = gradientOf(parts);
      assert.deepEqual(data, [...expected, ...expected]);
      assert.ok(!ops.includes("concat"), ops.join(" "));
    });
  }
});
