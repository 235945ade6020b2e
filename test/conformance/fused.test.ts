// Fusion changes no bit: a chain of elementwise ops in one pass rounds where the ops one by one would.
import assert from "node:assert/strict";
import type { DType } from "../../lib/core/dtype.ts";
import { MeshLayout } from "../../lib/ir/mesh.ts";
import { fuse } from "../../lib/passes/fuse.ts";
import { Engine } from "../../lib/runtime/engine.ts";
import { flatten, type Sym, SymBuilder } from "../../lib/tensor/trace.ts";
import { testDevice } from "../device.ts";
import { runOnDevices } from "./device.ts";
import { Draw } from "./draw.ts";

/** A chain that uses values twice, casts, compares and selects. */
function chain(b: SymBuilder, x: Sym, y: Sym): Sym {
  const product = b.mul(b.unary("gelu", b.mul(x, 1.7)), y);
  const root = b.unary("sqrt", b.unary("abs", b.add(product, x)));
  const wide = b.cast(b.div(root, b.add(b.unary("exp", y), 0.3)), "f32");
  const back = b.cast(b.mul(wide, wide), b.dtype(x));
  const whole = b.cast(b.cast(b.mul(back, 5), "i32"), b.dtype(x));
  return b.select(b.binary("lt", back, product), b.sub(back, whole), b.unary("silu", root));
}

describe("fused expressions", function () {
  this.timeout(60_000);
  for (const dtype of ["f32", "f64", "bf16", "f16"] as const satisfies readonly DType[]) {
    it(`give the bits of their ops one by one, in ${dtype}`, async () => {
      const b = new SymBuilder();
      const draw = new Draw(`fused ${dtype}`);
      const feeds = new Map(["x", "y"].map((name) => [name, draw.uniform(dtype, [37, 129])]));
      const [x, y] = ["x", "y"].map((name) => b.one("input", [], { name, dtype, shape: [37, 129] })) as [Sym, Sym];
      const graph = flatten([{ name: "z", sym: chain(b, x, y) }]);
      const layout = new MeshLayout({});
      using engine = new Engine({ device: testDevice, devices: 1, threads: 2 });
      const [apart] = await runOnDevices(engine, layout, graph, feeds);
      let nodes = 0;
      const [together] = await runOnDevices(engine, layout, graph, feeds, new Map(), 1, (g) => {
        const fused = fuse(g);
        nodes = fused.nodes.filter((node) => node.op === "fused").length;
        return fused;
      });
      assert.equal(nodes, 1);
      assert.deepEqual(together, apart);
    });
  }
});
