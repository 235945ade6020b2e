// Every case on one CPU device against the reference: dense operands, and views with gaps and turned dims.
import { sizeOf } from "../../lib/core/shape.ts";
import type { Graph, Params } from "../../lib/ir/graph.ts";
import { MeshLayout } from "../../lib/ir/mesh.ts";
import type { OpName } from "../../lib/ops/index.ts";
import { Engine } from "../../lib/runtime/engine.ts";
import { flatten, type Sym, SymBuilder } from "../../lib/tensor/trace.ts";
import { testDevice } from "../device.ts";
import type { Case } from "./case.ts";
import { cases } from "./cases.ts";
import { assertClose, type Tolerance, toleranceOf } from "./compare.ts";
import { build, type Dense } from "./dense.ts";
import { runOnDevices } from "./device.ts";
import { evaluate, type Feeds } from "./evaluate.ts";

interface Posed {
  readonly graph: Graph;
  readonly feeds: Feeds;
}

type Wrap = (b: SymBuilder, x: Dense, feed: (x: Dense) => Sym) => Sym;

/** A graph that applies the case's op to its operands as `wrap` provides them. */
function pose(c: Case, wrap: Wrap): Posed {
  const b = new SymBuilder();
  const feeds = new Map<string, Dense>();
  const feed = (x: Dense): Sym => {
    const name = `x${feeds.size}`;
    feeds.set(name, x);
    return b.one("input", [], { name, dtype: x.dtype, shape: x.shape });
  };
  const operands = c.inputs.map((x) => wrap(b, x, feed));
  const results = b.emit(c.op, operands, c.params as Params);
  return { graph: flatten(results.map((sym, i) => ({ name: `y${i}`, sym }))), feeds };
}

/** The operand as a slice of a transposition of a larger tensor: no dim is where it would be. */
const strided: Wrap = (b, x, feed) => {
  const rank = x.shape.length;
  const turned = Array.from({ length: rank }, (_, d) => rank - 1 - d);
  const wide = turned.map((d) => x.shape[d]! + 2);
  const padded = build(x.dtype, wide, (index) => {
    const own = turned.map((_, d) => index[rank - 1 - d]! - 1);
    const inside = own.every((i, d) => i >= 0 && i < x.shape[d]!);
    return inside ? x.data[own.reduce((sum, i, d) => sum * x.shape[d]! + i, 0)]! : 1;
  });
  let view = b.transpose(feed(padded), turned);
  x.shape.forEach((n, d) => {
    view = b.slice(view, d, 1, n + 1);
  });
  return view;
};

/** Results in place need operands that are buffers of their own. */
const inPlace: readonly OpName[] = ["adamw", "sgd", "assign"];
/** With one device nothing is exchanged. */
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

/**
 * CUDA's attention rounds weights, which sum to one, to the 16-bit type before their product with the values, as
 * FlashAttention does: an error of half a unit of the largest value.
 */
function toleranceFor(c: Case, y: Dense): Tolerance {
  const { relative, absolute } = toleranceOf([...c.inputs, y]);
  const unit = y.dtype === "bf16" ? 2 ** -7 : y.dtype === "f16" ? 2 ** -10 : 0;
  if (testDevice !== "cuda" || unit === 0 || !c.op.startsWith("attention")) return { relative, absolute };
  return { relative, absolute: Math.max(absolute, unit * Math.max(...y.data.map(Math.abs))) };
}

describe("CPU kernels agree with the reference", function () {
  this.timeout(120_000);
  const layout = new MeshLayout({});
  let engine: Engine;
  before(() => {
    engine = new Engine({ device: testDevice, devices: 1, threads: 2 });
  });
  after(() => engine.close());

  const check = async (c: Case, { graph, feeds }: Posed, times: number): Promise<void> => {
    const expected = [...evaluate(graph, feeds).values()];
    const [found] = await runOnDevices(engine, layout, graph, feeds, new Map(), times);
    expected.forEach((y, i) => {
      assertClose(found![i]!, y, toleranceFor(c, y), `${c.name}, result ${i}`);
    });
  };

  const byOp = new Map<OpName, Case[]>();
  for (const c of cases) {
    if (!collectives.includes(c.op)) byOp.set(c.op, [...(byOp.get(c.op) ?? []), c]);
  }
  for (const [op, list] of byOp) {
    it(`${op}, three times alike`, async () => {
      for (const c of list)
        await check(
          c,
          pose(c, (_, x, feed) => feed(x)),
          3,
        );
    });
    const rich = list.filter((c) => c.inputs.some((x) => x.shape.length > 0 && sizeOf(x.shape) < 10_000));
    if (rich.length === 0 || inPlace.includes(op)) continue;
    it(`${op} on views`, async () => {
      for (const c of rich) await check(c, pose(c, strided), 1);
    });
  }
});
