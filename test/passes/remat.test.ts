// Recomputation: minimum cuts, and what of a small graph is kept under each policy.
import assert from "node:assert/strict";
import fc from "fast-check";
import type { Graph } from "../../lib/ir/graph.ts";
import { replicated } from "../../lib/ir/spec.ts";
import { verify } from "../../lib/ir/verify.ts";
import { getOp } from "../../lib/ops/index.ts";
import { CutGraph } from "../../lib/passes/min-cut.ts";
import { type RecomputePolicy, recompute } from "../../lib/passes/remat.ts";
import { placeStages } from "../../lib/passes/stage.ts";
import { gradients } from "../../lib/tensor/grad.ts";
import { flatten, SymBuilder } from "../../lib/tensor/trace.ts";

describe("CutGraph", () => {
  it("finds the cheapest vertices between sources and sinks, the ones nearest to the sinks", () => {
    const cut = new CutGraph();
    const [a, b, c, d] = [5, 2, 2, 4].map((n) => cut.vertex(n)) as [number, number, number, number];
    for (const [from, to] of [
      [a, b],
      [b, d],
      [a, c],
      [c, d],
    ] as const)
      cut.edge(from, to);
    cut.source(a);
    cut.sink(d);
    assert.deepEqual(cut.cut(), new Set([d]));
  });

  it("is as cheap as the best of all subsets of random graphs", () => {
    const edges = fc.array(fc.tuple(fc.nat(5), fc.nat(5)), { maxLength: 12 });
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 6, maxLength: 6 }), edges, (weights, links) => {
        const ordered = links.filter(([a, b]) => a < b);
        const cut = new CutGraph();
        const ids = weights.map((w) => cut.vertex(w));
        for (const [a, b] of ordered) cut.edge(ids[a]!, ids[b]!);
        cut.source(ids[0]!);
        cut.sink(ids[5]!);
        const found = new Set([...cut.cut()].map((v) => ids.indexOf(v)));
        const cost = (set: ReadonlySet<number>): number => [...set].reduce((sum, v) => sum + weights[v]!, 0);
        const separates = (set: ReadonlySet<number>): boolean => {
          const reached = new Set(set.has(0) ? [] : [0]);
          for (const at of reached) for (const [a, b] of ordered) if (a === at && !set.has(b)) reached.add(b);
          return !reached.has(5);
        };
        assert.ok(separates(found));
        for (let bits = 0; bits < 64; bits++) {
          const set = new Set([0, 1, 2, 3, 4, 5].filter((v) => bits & (1 << v)));
          if (separates(set)) assert.ok(cost(found) <= cost(set));
        }
      }),
      { seed: 20240611, numRuns: 300 },
    );
  });
});

/** Two blocks, each a product, a gelu and a product, added to what comes in. */
function blocks(): Graph {
  const b = new SymBuilder();
  const parameter = (id: string, shape: number[]) => b.one("parameter", [], { id, dtype: "f32", shape });
  let x = b.one("input", [], { name: "x", dtype: "f32", shape: [8, 16] });
  const weights = [0, 1].map((i) => [parameter(`a${i}`, [16, 32]), parameter(`b${i}`, [32, 16])] as const);
  b.path = "in";
  x = b.unary("tanh", x);
  weights.forEach(([a, c], i) => {
    b.path = `block${i}`;
    const hidden = b.unary("gelu", b.einsum("n w, w h -> n h", x, a));
    x = b.add(x, b.einsum("n h, h w -> n w", hidden, c));
  });
  b.path = "";
  const loss = b.sum(x);
  const grads = gradients(b, loss, b.constant(1, "f32"), weights.flat());
  return flatten([{ name: "loss", sym: loss }, ...grads.map((sym, i) => ({ name: `grad ${i}`, sym: sym! }))]);
}

function under(policy: RecomputePolicy, splitsWeights: boolean): Graph {
  const traced = blocks();
  for (const value of traced.values) value.spec = replicated(value.type.shape.length);
  const placed = placeStages(traced, { stages: 1, splitsWeights, stageOfPath: () => 0 });
  const graph = recompute(placed, { policy, sizes: {}, blockOf: (path) => (path === "" ? undefined : path) });
  verify(graph, getOp);
  return graph;
}

/** Ops of the forward whose results the backward reads, and those that it computes again. */
function keptAndAgain(graph: Graph): { kept: string[]; again: string[] } {
  const kept = new Set<number>();
  for (const { inputs, segment } of graph.nodes) {
    if (segment === "F") continue;
    for (const v of inputs) {
      const node = graph.values[v]!.node;
      if (graph.nodes[node]!.segment === "F" && graph.nodes[node]!.stage! >= 0) kept.add(node);
    }
  }
  const forward = graph.nodes.filter((n) => n.segment === "F").map((n) => `${n.path} ${n.op}`);
  const again = graph.nodes.filter(
    (n) => n.segment !== "F" && forward.includes(`${n.path} ${n.op}`) && n.op === "gelu",
  );
  return {
    kept: [...kept].map((n) => `${graph.nodes[n]!.path} ${graph.nodes[n]!.op}`).sort(),
    again: again.map((n) => `${n.path} ${n.op} ${n.segment}`).sort(),
  };
}

describe("recompute", () => {
  it("keeps everything with none", () => {
    const { kept } = keptAndAgain(under("none", false));
    assert.deepEqual(kept, ["block0 add", "block0 einsum", "block0 gelu", "block1 einsum", "block1 gelu", "in tanh"]);
  });

  it("keeps results of products with selective, and makes what follows them again", () => {
    const { kept, again } = keptAndAgain(under("selective", false));
    assert.deepEqual(kept, ["block0 add", "block0 einsum", "block1 einsum", "in tanh"]);
    assert.deepEqual(again, ["block0 gelu B", "block1 gelu B"]);
  });

  it("keeps what passes between blocks with full", () => {
    const { kept, again } = keptAndAgain(under("full", false));
    assert.deepEqual(kept, ["block0 add", "in tanh"]);
    assert.ok(again.includes("block1 gelu B"));
  });

  it("makes again in W what only W reads", () => {
    const { again } = keptAndAgain(under("selective", true));
    assert.deepEqual(again, ["block0 gelu W", "block1 gelu W"]);
  });
});
