// Fusion joins elementwise work of one room only: a stage's segment, or a phase where there are no stages.
import assert from "node:assert/strict";
import type { Node } from "../../lib/ir/graph.ts";
import { verify } from "../../lib/ir/verify.ts";
import { getOp } from "../../lib/ops/index.ts";
import { fuse } from "../../lib/passes/fuse.ts";
import { GraphBuilder } from "../../lib/passes/graph-builder.ts";

/** The ops that are left of x -> exp -> tanh -> y, the two in these rooms, and how many operations they are. */
function fused(...rooms: readonly Partial<Node>[]): string[] {
  const b = new GraphBuilder();
  const emit = (op: string, inputs: readonly number[], params = {}): number => {
    const [v] = b.emit(op, inputs, params);
    b.graph.values[v!]!.spec = { dims: [[]], partial: {} };
    return v!;
  };
  let value = emit("input", [], { name: "x", dtype: "f32", shape: [4] });
  ["exp", "tanh"].forEach((op, i) => {
    b.like({ op, params: {}, inputs: [], outputs: [], path: "", phase: "forward", ...rooms[i] });
    value = emit(op, [value]);
  });
  b.graph.outputs.push({ name: "y", value });
  const made = fuse(b.graph);
  verify(made, getOp);
  return made.nodes.slice(1).map(({ op, params }) => {
    return op === "fused" ? `fused ${(params.expression as readonly unknown[]).length}` : op;
  });
}

describe("fuse", () => {
  it("joins what is in one room", () => {
    assert.deepEqual(fused({}, {}), ["fused 2"]);
    assert.deepEqual(fused({ stage: 1, segment: "B" }, { stage: 1, segment: "B" }), ["fused 2"]);
  });

  it("joins nothing over phases, stages and segments, nor what each reader makes for itself", () => {
    assert.deepEqual(fused({}, { phase: "backward" }), ["exp", "tanh"]);
    assert.deepEqual(fused({ stage: 0, segment: "F" }, { stage: 0, segment: "B" }), ["exp", "tanh"]);
    assert.deepEqual(fused({ stage: 0, segment: "B" }, { stage: 0, segment: "W" }), ["exp", "tanh"]);
    assert.deepEqual(fused({ stage: 0, segment: "F" }, { stage: 1, segment: "F" }), ["exp", "tanh"]);
    assert.deepEqual(fused({ stage: -1, segment: "F" }, { stage: -1, segment: "F" }), ["exp", "tanh"]);
  });
});
