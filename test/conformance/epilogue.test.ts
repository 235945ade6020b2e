// Epilogues: products that finish their results give the bits that the ops one by one give.
import assert from "node:assert/strict";
import type { DType } from "../../lib/core/dtype.ts";
import type { Graph } from "../../lib/ir/graph.ts";
import { MeshLayout } from "../../lib/ir/mesh.ts";
import { fuseEpilogues } from "../../lib/passes/epilogue.ts";
import { fuse } from "../../lib/passes/fuse.ts";
import { Engine } from "../../lib/runtime/engine.ts";
import { flatten, type Sym, SymBuilder } from "../../lib/tensor/trace.ts";
import { testDevice } from "../device.ts";
import { assertClose } from "./compare.ts";
import { runOnDevices } from "./device.ts";
import { Draw } from "./draw.ts";

const shapes = { x: [3, 30, 20], w: [20, 4, 10], bias: [1, 1, 4, 10], residual: [3, 30, 4, 10] } as const;
const equation = "b t k, k h d -> b t h d";

type Ends = (b: SymBuilder, product: Sym, bias: Sym, residual: Sym) => Sym;

/** What follows a product, and how many nodes other than its operands are left. */
const ends: readonly (readonly [string, Ends, number])[] = [
  ["a bias", (b, y, bias) => b.add(y, bias), 1],
  ["a bias in front", (b, y, bias) => b.add(bias, y), 1],
  ["a residual", (b, y, _, residual) => b.add(residual, y), 1],
  ["an activation", (b, y) => b.unary("silu", y), 1],
  ["all", (b, y, bias, residual) => b.add(b.unary("gelu", b.add(y, bias)), residual), 1],
  ["a bias and a residual", (b, y, bias, residual) => b.add(residual, b.add(y, bias)), 1],
  ["another order, which no kernel has", (b, y, bias) => b.add(b.unary("gelu", y), b.mul(bias, bias)), 2],
  ["two readers", (b, y, bias) => b.add(b.add(y, bias), b.one("stop_gradient", [y])), 3],
];

const tolerance = {
  f32: { relative: 1e-5, absolute: 1e-5 },
  f64: { relative: 1e-13, absolute: 1e-13 },
  bf16: { relative: 0.02, absolute: 0.05 },
};

function inputs(b: SymBuilder, dtype: DType, wide: DType): Sym[] {
  return Object.entries(shapes).map(([name, shape]) => {
    return b.one("input", [], { name, dtype: name === "x" || name === "w" ? dtype : wide, shape: [...shape] });
  });
}

function feedsOf(dtype: "f32" | "f64" | "bf16", wide: "f32" | "f64" | "bf16") {
  const draw = new Draw(`epilogue ${dtype} ${wide}`);
  return new Map(
    Object.entries(shapes).map(([name, shape]) => {
      return [name, draw.uniform(name === "x" || name === "w" ? dtype : wide, [...shape])];
    }),
  );
}

describe("products that finish their results", function () {
  this.timeout(60_000);
  for (const dtype of ["f32", "f64", "bf16"] as const) {
    for (const [name, end, left] of ends) {
      it(`with ${name}, in ${dtype}`, async () => {
        const wide = dtype === "bf16" ? "f32" : dtype;
        const b = new SymBuilder();
        const [x, w, bias, residual] = inputs(b, dtype, wide) as [Sym, Sym, Sym, Sym];
        const product = b.one("einsum", [x, w], { equation, dtype: wide });
        const repeated = b.one("broadcast", [bias], { shape: [...shapes.residual] });
        const graph = flatten([{ name: "y", sym: b.cast(end(b, product, repeated, residual), dtype) }]);
        const feeds = feedsOf(dtype, wide);
        const layout = new MeshLayout({});
        using engine = new Engine({ device: testDevice, devices: 1, threads: 2 });
        const [apart] = await runOnDevices(engine, layout, graph, feeds);
        let nodes: Graph["nodes"] = [];
        const [together] = await runOnDevices(engine, layout, graph, feeds, new Map(), 1, (g) => {
          const done = fuseEpilogues(fuse(g));
          nodes = done.nodes;
          return done;
        });
        const work = nodes.filter(({ op }) => !["input", "broadcast", "constant"].includes(op));
        assert.equal(work.length, left, work.map(({ op }) => op).join());
        // Kernels of other devices may keep what is between in another precision.
        if (testDevice === "cpu") assert.deepEqual(together, apart);
        else assertClose(together![0]!, apart![0]!, tolerance[dtype], name);
      });
    }
  }

  it("are left alone where their own result is rounded first", async () => {
    const b = new SymBuilder();
    const [x, w, bias] = inputs(b, "bf16", "bf16") as [Sym, Sym, Sym];
    const repeated = b.one("broadcast", [bias], { shape: [...shapes.residual] });
    const graph = flatten([{ name: "y", sym: b.unary("gelu", b.add(b.einsum(equation, x, w), repeated)) }]);
    using engine = new Engine({ device: testDevice, devices: 1, threads: 2 });
    let ops: string[] = [];
    await runOnDevices(engine, new MeshLayout({}), graph, feedsOf("bf16", "bf16"), new Map(), 1, (g) => {
      const done = fuseEpilogues(fuse(g));
      ops = done.nodes.map(({ op }) => op);
      return done;
    });
    assert.ok(ops.includes("einsum") && ops.includes("fused"), ops.join());
  });

  for (const dtype of ["f32", "bf16"] as const) {
    it(`take operands of any layout, in ${dtype}`, async () => {
      const layout = new MeshLayout({});
      using engine = new Engine({ device: testDevice, devices: 1, threads: 2 });
      const feeds = feedsOf(dtype, dtype);
      const build = (whole: boolean): Graph => {
        const b = new SymBuilder();
        const [x, w, , residual] = inputs(b, dtype, dtype) as [Sym, Sym, Sym, Sym];
        const varied = b.mul(residual, 2);
        const finish = { bias: true, activation: "gelu", residual: true } as const;
        const y = whole
          ? b.one("einsum", [x, w, varied, residual], { equation, finish })
          : b.add(b.unary("gelu", b.add(b.einsum(equation, x, w), varied)), residual);
        return flatten([{ name: "y", sym: y }]);
      };
      const [apart] = await runOnDevices(engine, layout, build(false), feeds);
      const [together] = await runOnDevices(engine, layout, build(true), feeds);
      assertClose(together![0]!, apart![0]!, tolerance[dtype], "finished apart");
    });
  }
});
