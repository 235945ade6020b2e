// Rows sent to experts and back on every kind of mesh: results and gradients are those of one device, with uneven
// batches, ranks without a sample, ranks without an expert, and experts without a row.
import assert from "node:assert/strict";
import type { Graph } from "../../lib/ir/graph.ts";
import { MeshLayout } from "../../lib/ir/mesh.ts";
import type { ValueSpec } from "../../lib/ir/spec.ts";
import { Engine } from "../../lib/runtime/engine.ts";
import { gradients } from "../../lib/tensor/grad.ts";
import { type NamedSym, SymBuilder, flatten } from "../../lib/tensor/trace.ts";
import { assertClose } from "../conformance/compare.ts";
import { build, type Dense } from "../conformance/dense.ts";
import { localPart, runOnDevices, type Specs } from "../conformance/device.ts";
import { Draw } from "../conformance/draw.ts";
import { evaluate } from "../conformance/evaluate.ts";

interface Sizes {
  readonly b: number;
  readonly t: number;
  readonly k: number;
  readonly e: number;
}

const [width, inner] = [5, 6];

/** The layer's result and its gradients, from fed ids. */
function layer({ b, t, k, e }: Sizes, capacity?: number): Graph {
  const g = new SymBuilder();
  const input = (name: string, shape: readonly number[], dtype = "f64") => g.one("input", [], { name, dtype, shape });
  const [x, weights] = [input("x", [b, t, width]), input("weights", [b, t, k])];
  const [w1, w2, w3] = [input("w1", [e, inner, width]), input("w2", [e, width, inner]), input("w3", [e, inner, width])];
  const ids = input("ids", [b, t, k], "i32");
  const bound = capacity === undefined ? {} : { capacity };
  const kept = capacity === undefined ? ids : g.one("expert_capacity", [ids], { experts: e, capacity });
  const plan = g.emit("expert_sort", [kept], { experts: e });
  const [rows, counts] = g.emit("expert_dispatch", [x, ...plan], { axis: "ep", ...bound });
  const product = (rows_: typeof x, w: typeof x) => g.one("grouped_matmul", [rows_, counts!, w], { turned: false });
  const gated = g.one("expert_gate", [product(rows!, w1), product(rows!, w3), counts!], { activation: "silu" });
  const made = g.one("expert_return", [product(gated, w2), ...plan], { axis: "ep", ...bound });
  const y = g.one("expert_combine", [made, weights]);
  const loss = g.sum(g.mul(y, input("target", [b, t, width])));
  const wrt = { x, weights, w1, w2, w3 };
  const grads = gradients(g, loss, g.constant(1, "f64"), Object.values(wrt));
  const outputs: NamedSym[] = Object.keys(wrt).map((name, i) => ({ name: `d${name}`, sym: grads[i]! }));
  return flatten([{ name: "y", sym: y }, ...outputs]);
}

/** `all`: the expert that every token chooses first. */
function feedsOf({ b, t, k, e }: Sizes, all = -1): Map<string, Dense> {
  const draw = new Draw(`experts ${[b, t, k, e, all].join()}`);
  const [rows, up, down] = [
    [b, t, width],
    [e, inner, width],
    [e, width, inner],
  ];
  const shifts = draw.ints([b, t], 0, e).data;
  // A token's choices are of different experts.
  const ids = build("i32", [b, t, k], ([s, i, j]) => ((all < 0 ? shifts[s! * t + i!]! : all) + j!) % e);
  return new Map<string, Dense>([
    ["x", draw.uniform("f64", rows!)],
    ["weights", draw.uniform("f64", [b, t, k], 0.1, 1)],
    ["w1", draw.uniform("f64", up!)],
    ["w2", draw.uniform("f64", down!)],
    ["w3", draw.uniform("f64", up!)],
    ["target", draw.uniform("f64", rows!)],
    ["ids", ids],
  ]);
}

const batch = ["dp*", "fsdp*", "ep*"];

/** Samples over the batch axes, experts over ep, their inner width over tp; tokens over cp. */
function specsOf(layout: MeshLayout): Specs {
  const real = (axes: readonly string[]): string[] => axes.filter((a) => layout.size(a.replace("*", "")) > 1);
  const spec = (...dims: readonly (readonly string[])[]): ValueSpec => ({ dims: dims.map(real), partial: {} });
  const rows = spec(batch, ["cp"], []);
  const [up, down] = [spec(["ep"], ["tp"], []), spec(["ep"], [], ["tp"])];
  const of = { x: rows, weights: rows, target: rows, ids: rows, y: rows, w1: up, w3: up, w2: down, dx: rows };
  return new Map(Object.entries({ ...of, dweights: rows, dw1: up, dw3: up, dw2: down }));
}

const meshes: readonly Readonly<Record<string, number>>[] = [
  { ep: 2 },
  { ep: 3 },
  { ep: 5 },
  { tp: 2 },
  { dp: 2 },
  { dp: 2, ep: 2 },
  { fsdp: 2, ep: 2 },
  { ep: 2, tp: 2 },
  { cp: 2, ep: 2 },
  { dp: 2, ep: 2, tp: 2 },
];

describe("experts over a mesh", function () {
  this.timeout(120_000);
  const shapes: readonly Sizes[] = [
    { b: 4, t: 3, k: 2, e: 4 },
    { b: 3, t: 5, k: 2, e: 3 },
    { b: 1, t: 4, k: 1, e: 4 },
    { b: 2, t: 2, k: 3, e: 3 },
  ];
  for (const axes of meshes) {
    const layout = new MeshLayout(axes);
    it(`${layout}: results and gradients are those of one device`, async () => {
      using engine = new Engine({ device: "cpu", devices: layout.devices, threads: 1, timeoutMs: 20_000 });
      for (const sizes of shapes) {
        for (const [all, capacity] of [[-1], [0], [sizes.e - 1], [-1, 2]] as const) {
          const [graph, feeds] = [layer(sizes, capacity), feedsOf(sizes, all)];
          const specs = specsOf(layout);
          const expected = evaluate(graph, feeds);
          const results = await runOnDevices(engine, layout, graph, feeds, specs, 2);
          results.forEach((own, rank) => {
            graph.outputs.forEach(({ name }, i) => {
              const part = localPart(expected.get(name)!, specs.get(name)!, layout, rank);
              const what = `${name} of ${JSON.stringify(sizes)}, ids ${all}, capacity ${capacity}, device ${rank}`;
              assertClose(own[i]!, part, { relative: 1e-9, absolute: 1e-9 }, what);
            });
          });
        }
      }
    });
  }

  it("rows reach experts that are split over ranks when no sample is", async () => {
    const layout = new MeshLayout({ ep: 3 });
    using engine = new Engine({ device: "cpu", devices: 3, threads: 1 });
    const sizes = shapes[0]!;
    const specs = new Map([...specsOf(layout)].filter(([name]) => name.includes("w") && name.length < 4));
    const [graph, feeds] = [layer(sizes), feedsOf(sizes)];
    const expected = evaluate(graph, feeds);
    const results = await runOnDevices(engine, layout, graph, feeds, specs);
    results.forEach((own, rank) => {
      graph.outputs.forEach(({ name }, i) => {
        const spec = specs.get(name);
        const part = spec ? localPart(expected.get(name)!, spec, layout, rank) : expected.get(name)!;
        assertClose(own[i]!, part, { relative: 1e-9, absolute: 1e-9 }, `${name}, device ${rank}`);
      });
    });
  });

  it("rows in the order of experts cannot be read, nor mixed with others", async () => {
    const layout = new MeshLayout({ ep: 2 });
    using engine = new Engine({ device: "cpu", devices: 2, threads: 1 });
    const b = new SymBuilder();
    const x = b.one("input", [], { name: "x", dtype: "f64", shape: [2, 3, 2] });
    const ids = b.one("input", [], { name: "ids", dtype: "i32", shape: [2, 3, 1] });
    const plan = b.emit("expert_sort", [ids], { experts: 2 });
    const rows = b.one("expert_dispatch", [x, ...plan], { axis: "ep" });
    const draw = new Draw("mixed");
    const feeds = new Map([
      ["x", draw.uniform("f64", [2, 3, 2])],
      ["ids", draw.ints([2, 3, 1], 0, 2)],
    ]);
    const split = { dims: [["ep*"], [], []], partial: {} };
    const specs = new Map([
      ["x", split],
      ["ids", split],
    ]);
    const refused = (sym: typeof x, message: RegExp) =>
      assert.rejects(runOnDevices(engine, layout, flatten([{ name: "y", sym }]), feeds, specs), message);
    await refused(rows, /rows that were dispatched to experts .* cannot be a result/);
    await refused(b.one("exp", [rows]), /rows that were dispatched to experts .* cannot be a result/);
    const mixed = b.add(rows, b.reshape(x, [2, 3, 1, 2]));
    await refused(mixed, /add of rows that were dispatched to experts .* bring them back first/);
    await refused(b.sum(rows), /reduce_sum of rows that were dispatched to experts .* bring them back first/);
  });
});
