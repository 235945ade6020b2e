// Every op with its operands split in every way its rule allows, and in ways it does not, on meshes of 2, 3 and 2x2:
// all devices must end with what one device computes.
import assert from "node:assert/strict";
import type { Graph, Params, TensorType } from "../../lib/ir/graph.ts";
import { MeshLayout } from "../../lib/ir/mesh.ts";
import { replicated, type ValueSpec } from "../../lib/ir/spec.ts";
import { getOp, type OpName } from "../../lib/ops/index.ts";
import { Engine } from "../../lib/runtime/engine.ts";
import { flatten, SymBuilder } from "../../lib/tensor/trace.ts";
import { testDevice } from "../device.ts";
import type { Case } from "../conformance/case.ts";
import { cases } from "../conformance/cases.ts";
import { assertClose, type Tolerance } from "../conformance/compare.ts";
import type { Dense } from "../conformance/dense.ts";
import { localPart, runOnDevices, type Specs } from "../conformance/device.ts";
import { Draw } from "../conformance/draw.ts";
import { evaluate, type Feeds } from "../conformance/evaluate.ts";

/** Sums in another order, in the type that the case computes with. */
function toleranceOf(c: Case, result: Dense): Tolerance {
  const dtypes = [result.dtype, ...c.inputs.map((x) => x.dtype)];
  if (dtypes.includes("bf16")) return { relative: 1.6e-2, absolute: 1e-2 };
  if (dtypes.includes("f16")) return { relative: 4e-3, absolute: 4e-3 };
  return dtypes.includes("f32") ? { relative: 1e-5, absolute: 1e-5 } : { relative: 1e-7, absolute: 1e-7 };
}

interface Posed {
  readonly graph: Graph;
  readonly feeds: Feeds;
}

function pose(c: Case): Posed {
  const b = new SymBuilder();
  const feeds = new Map<string, Dense>();
  const operands = c.inputs.map((x, i) => {
    feeds.set(`x${i}`, x);
    return b.one("input", [], { name: `x${i}`, dtype: x.dtype, shape: x.shape });
  });
  const results = b.emit(c.op, operands, c.params as Params);
  return { graph: flatten(results.map((sym, i) => ({ name: `y${i}`, sym }))), feeds };
}

function withAxes(rank: number, dims: ReadonlyMap<number, readonly string[]>): ValueSpec {
  return { ...replicated(rank), dims: Array.from({ length: rank }, (_, d) => dims.get(d) ?? []) };
}

/** Splits each operand's dims with the factor over the axes. */
function byFactor(
  c: Case,
  factor: string,
  names: readonly (readonly (string | null)[])[],
  axes: readonly string[],
): Specs {
  return new Map(
    c.inputs.map((x, i) => {
      const d = names[i]!.indexOf(factor);
      return [`x${i}`, withAxes(x.shape.length, d < 0 ? new Map() : new Map([[d, axes]]))];
    }),
  );
}

/** Asks for each result's dims with the factor to be split over the axes. */
function wanted(factor: string, names: readonly (readonly (string | null)[])[], axes: readonly string[]): Specs {
  return new Map(
    names.map((factors, i) => {
      const d = factors.indexOf(factor);
      return [`y${i}`, withAxes(factors.length, d < 0 ? new Map() : new Map([[d, axes]]))];
    }),
  );
}

/** Splits dims of each operand at random, whether or not the rule likes it. */
function atRandom(c: Case, draw: Draw, axes: readonly string[]): Specs {
  return new Map(
    c.inputs.map((x, i) => {
      const dims = new Map<number, string[]>();
      for (const axis of axes) {
        const d = Math.floor(draw.next() * (x.shape.length + 1));
        if (d < x.shape.length) dims.set(d, [...(dims.get(d) ?? []), axis]);
      }
      return [`x${i}`, withAxes(x.shape.length, dims)];
    }),
  );
}

const collectives: readonly OpName[] = [
  "all_reduce",
  "all_gather",
  "reduce_scatter",
  "all_to_all",
  "shard_slice",
  "bucket",
  "broadcast_from",
  "ring_shift",
  "expert_counts",
  "expert_arrivals",
  "expert_exchange",
];

/** What sorts rows leaves each device's in an order of its own: test/parallel/experts.test.ts. */
function isSmall(c: Case): boolean {
  return !collectives.includes(c.op) && c.op !== "expert_sort" && c.inputs.every((x) => x.data.length < 300);
}

/** Updates in place must find every operand split alike. */
const inPlace: readonly OpName[] = ["adamw", "sgd"];

describe("split operands give what whole ones give", function () {
  this.timeout(300_000);
  const meshes = [{ tp: 2 }, { tp: 3 }, { dp: 2, tp: 2 }].map((axes) => new MeshLayout(axes));
  const engines = new Map<MeshLayout, Engine>();
  before(() => {
    for (const layout of meshes)
      engines.set(layout, new Engine({ device: testDevice, devices: layout.devices, threads: 1 }));
  });
  after(() => {
    for (const engine of engines.values()) engine.close();
  });

  const check = async (c: Case, layout: MeshLayout, specs: Specs): Promise<void> => {
    const { graph, feeds } = pose(c);
    const expected = [...evaluate(graph, feeds).values()];
    const results = await runOnDevices(engines.get(layout)!, layout, graph, feeds, specs);
    const how = [...specs.values()].map((s) => `[${s.dims.map((a) => a.join(".") || "-").join(", ")}]`).join(" ");
    results.forEach((own, rank) => {
      expected.forEach((y, i) => {
        const spec = specs.get(`y${i}`);
        const part = spec === undefined ? y : localPart(y, spec, layout, rank);
        assertClose(own[i]!, part, toleranceOf(c, y), `${c.name} as ${how} on ${layout}, device ${rank}, result ${i}`);
      });
    });
  };

  const byOp = new Map<OpName, Case[]>();
  for (const c of cases) if (isSmall(c)) byOp.set(c.op, [...(byOp.get(c.op) ?? []), c]);
  for (const [op, all] of byOp) {
    // Dtypes share rules: one case of each shape is enough.
    const shapeOf = (c: Case): string => JSON.stringify([c.inputs.map((x) => x.shape), c.params]);
    const list = all.filter((c, i) => all.findIndex((other) => shapeOf(other) === shapeOf(c)) === i);
    it(op, async () => {
      for (const c of list) {
        const types = c.inputs.map(({ dtype, shape }): TensorType => ({ dtype, shape }));
        const record = getOp(op);
        const map = record.sharding.factors(types, record.infer(types, c.params as Params), c.params as Params);
        const rows = map.routed?.rows ?? [];
        const split = (name: string | null): name is string => name !== null && !rows.includes(name);
        const factors = [...new Set(map.inputs.flat().filter(split))];
        for (const factor of factors) {
          for (const layout of meshes) await check(c, layout, byFactor(c, factor, map.inputs, layout.axes));
        }
        if (inPlace.includes(op)) continue;
        for (const factor of new Set(map.outputs.flat().filter(split))) {
          for (const layout of meshes) await check(c, layout, wanted(factor, map.outputs, layout.axes));
        }
        const draw = new Draw(`placements of ${c.name}`);
        for (let k = 0; k < 2; k++) {
          for (const layout of meshes) await check(c, layout, atRandom(c, draw, layout.axes));
        }
      }
    });
  }

  it("cross-entropy over a split vocabulary exchanges rows, never logits", async () => {
    const c = cases.find((x) => x.op === "cross_entropy" && x.inputs[0]!.dtype === "f32")!;
    const layout = meshes[1]!;
    const engine = engines.get(layout)!;
    const bytes = (): number => engine.stats().devices[0]!.traffic.reduce((sum, t) => sum + t.bytes, 0);
    const before = bytes();
    await check(c, layout, new Map([["x0", withAxes(2, new Map([[1, ["tp"]]]))]]));
    const rows = c.inputs[1]!.data.length;
    assert.equal(bytes() - before, 3 * rows * 4);
  });
});
