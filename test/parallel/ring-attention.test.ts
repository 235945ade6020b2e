// Ring attention: queries, keys and values split along the sequence give what whole ones give, forward and backward.
import assert from "node:assert/strict";
import type { DType } from "../../lib/core/dtype.ts";
import type { Params } from "../../lib/ir/graph.ts";
import { MeshLayout } from "../../lib/ir/mesh.ts";
import { replicated, type ValueSpec } from "../../lib/ir/spec.ts";
import { shard } from "../../lib/passes/shard.ts";
import { Engine } from "../../lib/runtime/engine.ts";
import { flatten, SymBuilder } from "../../lib/tensor/trace.ts";
import { testDevice } from "../device.ts";
import { assertClose } from "../conformance/compare.ts";
import type { Dense } from "../conformance/dense.ts";
import { localPart, runOnDevices, type Specs } from "../conformance/device.ts";
import { Draw } from "../conformance/draw.ts";
import { evaluate } from "../conformance/evaluate.ts";

interface Posed {
  readonly dtype: DType;
  /** Samples, queries, keys, key-value groups, query heads of each, widths of keys and values. */
  readonly sizes: readonly [b: number, t: number, s: number, g: number, r: number, d: number, e: number];
  readonly causal: boolean;
  readonly segments: boolean;
}

/** out, lse and the three gradients of one attention whose positions are in no order. */
function pose({ dtype, sizes: [b, t, s, g, r, d, e], causal, segments }: Posed) {
  const draw = new Draw(`ring ${dtype} ${[b, t, s, g, r, d, e, causal, segments]}`);
  const feeds = new Map<string, Dense>([
    ["q", draw.uniform(dtype, [b, t, g, r, d])],
    ["k", draw.uniform(dtype, [b, s, g, d])],
    ["v", draw.uniform(dtype, [b, s, g, e])],
    ["dout", draw.uniform(dtype, [b, t, g, r, e])],
  ]);
  if (causal) {
    feeds.set("pq", draw.ints([b, t], 0, Math.max(s, 1)));
    feeds.set("pk", draw.ints([b, s], 0, Math.max(s, 1)));
  }
  if (segments) {
    feeds.set("sq", draw.ints([b, t], 0, 2));
    feeds.set("sk", draw.ints([b, s], 0, 2));
  }
  const builder = new SymBuilder();
  const input = (name: string) => {
    const { dtype: type, shape } = feeds.get(name)!;
    return builder.one("input", [], { name, dtype: type, shape });
  };
  const names = [...(causal ? ["pq", "pk"] : []), ...(segments ? ["sq", "sk"] : [])];
  const marks = names.map(input);
  const [q, k, v, dout] = ["q", "k", "v", "dout"].map(input);
  const params: Params = { causal, scale: d ** -0.5, positions: causal, segments };
  const [out, lse] = builder.emit("attention", [q!, k!, v!, ...marks], params);
  const grads = builder.emit("attention_grad", [q!, k!, v!, out!, lse!, dout!, ...marks], params);
  const results = [out!, lse!, ...grads].map((sym, i) => ({ name: `y${i}`, sym }));
  return { graph: flatten(results), feeds };
}

/** Samples, sequence and groups of every operand over the given axes; positions stay whole. */
function splitting(rank: (name: string) => number, axes: { b: string[]; t: string[]; g: string[] }): Specs {
  const spec = (name: string, dims: Record<number, string[]>): [string, ValueSpec] => [
    name,
    { ...replicated(rank(name)), dims: Array.from({ length: rank(name) }, (_, d) => dims[d] ?? []) },
  ];
  const heads = { 0: axes.b, 1: axes.t, 2: axes.g };
  return new Map([
    ...["q", "k", "v", "dout", "y0", "y2", "y3", "y4"].map((name) => spec(name, heads)),
    spec("y1", { 0: axes.b, 1: axes.g, 3: axes.t }),
    spec("sq", { 0: axes.b, 1: axes.t }),
    spec("sk", { 0: axes.b, 1: axes.t }),
  ]);
}

const ranks: Record<string, number> = { q: 5, k: 4, v: 4, dout: 5, y0: 5, y1: 4, y2: 5, y3: 4, y4: 4, sq: 2, sk: 2 };

describe("ring attention", function () {
  this.timeout(60_000);
  const shapes: Posed["sizes"][] = [
    [2, 12, 12, 2, 2, 4, 3],
    [1, 7, 7, 1, 3, 8, 8],
    [1, 2, 2, 2, 1, 4, 4],
    [2, 5, 8, 1, 1, 3, 2],
    [1, 150, 150, 1, 2, 16, 16],
  ];
  const meshes: [Record<string, number>, { b: string[]; t: string[]; g: string[] }][] = [
    [{ cp: 2 }, { b: [], t: ["cp"], g: [] }],
    [{ cp: 3 }, { b: [], t: ["cp"], g: [] }],
    [
      { dp: 2, cp: 2, tp: 2 },
      { b: ["dp"], t: ["cp"], g: ["tp"] },
    ],
  ];
  for (const [axes, split] of meshes) {
    const layout = new MeshLayout(axes);
    it(`over ${layout}: uneven and empty parts, marks of any order, three dtypes`, async () => {
      const engine = new Engine({ device: testDevice, devices: layout.devices, threads: 1 });
      try {
        for (const sizes of shapes) {
          for (const dtype of ["f64", "f32", "bf16"] as const) {
            for (const [causal, segments] of [
              [false, false],
              [true, false],
              [true, true],
            ] as const) {
              const { graph, feeds } = pose({ dtype, sizes, causal, segments });
              const expected = [...evaluate(graph, feeds).values()];
              const specs = splitting((name) => ranks[name]!, split);
              const results = await runOnDevices(engine, layout, graph, feeds, specs, 2);
              const tolerance = { f64: 1e-7, f32: 1e-5, bf16: 2e-2 }[dtype];
              results.forEach((own, rank) => {
                expected.forEach((y, i) => {
                  const part = localPart(y, specs.get(`y${i}`)!, layout, rank);
                  const what = `${dtype} ${sizes} causal ${causal} segments ${segments} on ${layout}, rank ${rank}, ${i}`;
                  assertClose(own[i]!, part, { relative: tolerance, absolute: tolerance }, what);
                });
              });
            }
          }
        }
      } finally {
        engine.close();
      }
    });
  }

  it("sends keys and values n - 1 times, and their gradients as often: nothing else", () => {
    for (const n of [2, 3, 8]) {
      const { graph } = pose({ dtype: "f32", sizes: [2, 16, 16, 2, 2, 4, 4], causal: true, segments: false });
      const specs = splitting((name) => ranks[name]!, { b: [], t: ["cp"], g: [] });
      const sharded = shard(graph, {
        sizes: { cp: n },
        sourceSpec: (node) => specs.get(node.params.name as string) ?? replicated(2),
        outputSpec: (name) => specs.get(name)!,
      });
      const count = (op: string): number => sharded.nodes.filter((node) => node.op === op).length;
      assert.equal(count("ring_shift"), 3 * (n - 1));
      assert.equal(count("all_gather") + count("all_reduce") + count("all_to_all"), 0);
    }
  });
});
