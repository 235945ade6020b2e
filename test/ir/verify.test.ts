// verify() finds each way in which a graph can be unsound, and says where; print writes graphs for people.
import assert from "node:assert/strict";
import { ProgramError } from "../../lib/core/errors.ts";
import type { Graph, Node, Value } from "../../lib/ir/graph.ts";
import { graphText } from "../../lib/ir/print.ts";
import { verify } from "../../lib/ir/verify.ts";
import { getOp } from "../../lib/ops/index.ts";
import { flatten, SymBuilder } from "../../lib/tensor/trace.ts";

function sample(): Graph {
  const b = new SymBuilder();
  const x = b.one("input", [], { name: "x", dtype: "f32", shape: [2, 3] });
  b.path = "h.0.mlp";
  const y = b.einsum("m k, k n -> m n", x, b.transpose(x, [1, 0]));
  return flatten([{ name: "y", sym: b.unary("exp", y) }]);
}

/** The sample with one node or value changed. */
function withNode(n: number, change: Partial<Node>): Graph {
  const graph = sample();
  graph.nodes[n] = { ...graph.nodes[n]!, ...change };
  return graph;
}

function withValue(id: number, change: Partial<Value>): Graph {
  const graph = sample();
  graph.values[id] = { ...graph.values[id]!, ...change };
  return graph;
}

describe("verify", () => {
  it("accepts sound graphs", () => {
    verify(sample(), getOp);
    verify({ nodes: [], values: [], outputs: [] }, getOp);
  });

  const unsound: readonly (readonly [string, Graph, RegExp])[] = [
    ["an unknown op", withNode(3, { op: "exq" }), /node 3.*exq.*h\.0\.mlp.*no op named exq/],
    ["an input that is made later", withNode(1, { inputs: [2] }), /node 1.*reads %2, which node 2 makes only later/],
    ["an input that is not there", withNode(1, { inputs: [9] }), /%9, which is not a value/],
    ["operands that the record refuses", withNode(2, { inputs: [0, 0] }), /node 2.*label k is 3 and 2/],
    ["a wrong shape", withValue(2, { type: { dtype: "f32", shape: [2, 3] } }), /result 0 should be f32\[2, 2\]/],
    ["a wrong dtype", withValue(3, { type: { dtype: "f64", shape: [2, 2] } }), /result 0 should be f32/],
    ["a value of another node", withValue(3, { node: 2 }), /%3.*node 2/],
    ["two results where one is made", withNode(3, { outputs: [3, 3] }), /belongs to node 3|results/],
    ["a result that is not a value", withNode(3, { outputs: [7] }), /%3|%7/],
    ["a spec of another rank", withValue(3, { spec: { dims: [[]], partial: {} } }), /spec of %3 has 1 dims/],
    ["an output that is not there", { ...sample(), outputs: [{ name: "y", value: 4 }] }, /output y is %4/],
  ];
  for (const [what, graph, message] of unsound) {
    it(`refuses ${what}`, () => {
      assert.throws(
        () => verify(graph, getOp),
        (error) => error instanceof ProgramError && message.test(error.message),
      );
    });
  }

  it("tells programs where: node, op and path", () => {
    assert.throws(
      () => verify(withNode(2, { inputs: [0, 0] }), getOp),
      (error) => {
        assert.ok(error instanceof ProgramError);
        assert.deepEqual(error.details, { node: 2, op: "einsum", path: "h.0.mlp" });
        return true;
      },
    );
  });
});

describe("print", () => {
  it("writes a graph, one node a line", () => {
    const graph = sample();
    graph.values[3]!.spec = { dims: [["dp"], []], partial: { tp: "sum" } };
    assert.equal(
      graphText(graph),
      [
        "%0: f32[2, 3] = input() {name: x, dtype: f32, shape: [2, 3]}  # forward",
        "%1: f32[3, 2] = transpose(%0) {permutation: [1, 0]}  # h.0.mlp forward",
        "%2: f32[2, 2] = einsum(%0, %1) {equation: m k, k n -> m n}  # h.0.mlp forward",
        "%3: f32[2, 2] [dp, -] +sum(tp) = exp(%2)  # h.0.mlp forward",
        "return y = %3",
      ].join("\n"),
    );
  });
});
