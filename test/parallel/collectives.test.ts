// The collective ops as passes insert them: uneven and empty shards, nested axes, several groups at once.
import assert from "node:assert/strict";
import { ProgramError } from "../../lib/core/errors.ts";
import type { Params } from "../../lib/ir/graph.ts";
import { MeshLayout } from "../../lib/ir/mesh.ts";
import type { ReduceKind, ValueSpec } from "../../lib/ir/spec.ts";
import { GraphBuilder } from "../../lib/passes/graph-builder.ts";
import { Engine } from "../../lib/runtime/engine.ts";
import { testDevice } from "../device.ts";
import { assertClose, float64 } from "../conformance/compare.ts";
import type { Dense } from "../conformance/dense.ts";
import { localPart, runSharded } from "../conformance/device.ts";
import { Draw } from "../conformance/draw.ts";

function spec(dims: readonly (readonly string[])[], partial: Readonly<Record<string, ReduceKind>> = {}): ValueSpec {
  return { dims, partial };
}

/** Runs one collective on x and compares each device's result with its part of `expected`. */
async function exchange(
  layout: MeshLayout,
  x: Dense,
  from: ValueSpec,
  op: string,
  params: Params,
  to: ValueSpec,
  expected: Dense,
): Promise<void> {
  const b = new GraphBuilder();
  const input = b.emit("input", [], { name: "x", dtype: x.dtype, shape: x.shape })[0]!;
  const y = b.emit(op, [input], params)[0]!;
  b.graph.values[input]!.spec = from;
  b.graph.values[y]!.spec = to;
  b.graph.outputs.push({ name: "y", value: y });
  using engine = new Engine({ device: testDevice, devices: layout.devices, threads: 1 });
  const results = await runSharded(engine, layout, b.graph, new Map([["x", x]]), 3);
  results.forEach((own, rank) => {
    assertClose(own[0]!, localPart(expected, to, layout, rank), float64, `${op} on ${layout}, device ${rank}`);
  });
}

describe("collectives", function () {
  this.timeout(60_000);
  const draw = new Draw("collectives");
  const x = draw.uniform("f64", [5, 7]);
  const scaled = (k: number): Dense => ({ ...x, data: x.data.map((v) => v * k) });

  for (const size of [2, 3, 6]) {
    const layout = new MeshLayout({ tp: size });
    const axes = ["tp"];
    it(`over ${size} ranks`, async () => {
      const [whole, rows, columns] = [spec([[], []]), spec([axes, []]), spec([[], axes])];
      const partial = (kind: ReduceKind): ValueSpec => spec([[], []], { tp: kind });
      await exchange(layout, x, partial("sum"), "all_reduce", { axes, kind: "sum" }, whole, scaled(size));
      await exchange(layout, x, partial("max"), "all_reduce", { axes, kind: "max" }, whole, x);
      await exchange(layout, x, rows, "all_gather", { axes, dim: 0 }, whole, x);
      await exchange(layout, x, columns, "all_gather", { axes, dim: 1 }, whole, x);
      await exchange(layout, x, partial("sum"), "reduce_scatter", { axes, kind: "sum", dim: 0 }, rows, scaled(size));
      await exchange(layout, x, partial("min"), "reduce_scatter", { axes, kind: "min", dim: 1 }, columns, x);
      await exchange(layout, x, rows, "all_to_all", { axes, splitDim: 1, joinDim: 0 }, columns, x);
      await exchange(layout, x, columns, "all_to_all", { axes, splitDim: 0, joinDim: 1 }, rows, x);
      await exchange(layout, x, whole, "shard_slice", { axes, dim: 1 }, columns, x);
      for (const [dim, from] of [rows, columns].entries()) {
        const once = spec(from.dims.map((d) => d.map((a) => `${a}@1`)));
        await exchange(layout, x, from, "ring_shift", { axes, dim }, once, x);
        await exchange(layout, x, whole, "shard_slice", { axes: ["tp@1"], dim }, once, x);
        const joined = exchange(layout, x, once, "all_gather", { axes: ["tp@1"], dim }, whole, x);
        await assert.rejects(joined, (e) => e instanceof ProgramError && /shifted/.test(e.message));
      }
      await exchange(layout, x, whole, "broadcast_from", { axes, root: size - 1 }, whole, x);
    });
  }

  it("over an inner axis, within the parts that the outer one leaves", async () => {
    const layout = new MeshLayout({ dp: 2, tp: 3 });
    const axes = ["tp"];
    const [outer, nested] = [spec([[], ["dp"]]), spec([[], ["dp", "tp"]])];
    await exchange(layout, x, nested, "all_gather", { axes, dim: 1 }, outer, x);
    await exchange(layout, x, outer, "shard_slice", { axes, dim: 1 }, nested, x);
    const partial = spec([[], ["dp"]], { tp: "sum" });
    await exchange(layout, x, partial, "reduce_scatter", { axes, dim: 1, kind: "sum" }, nested, scaled(3));
    const moved = spec([["tp"], ["dp"]]);
    await exchange(layout, x, nested, "all_to_all", { axes, splitDim: 0, joinDim: 1 }, moved, x);
    await exchange(layout, x, moved, "all_to_all", { axes, splitDim: 1, joinDim: 0 }, nested, x);
  });

  it("refuse axes that do not split the dim innermost", async () => {
    const layout = new MeshLayout({ dp: 2, tp: 2 });
    const from = spec([[], ["dp", "tp"]]);
    await assert.rejects(
      exchange(layout, x, from, "all_gather", { axes: ["dp"], dim: 1 }, spec([[], ["tp"]]), x),
      (e) => e instanceof ProgramError && /innermost/.test(e.message),
    );
  });
});
