// Random programs, with gradients, some dims of whose leaves are sequences split zig-zag over cp: permuted by the
// pass and run on a mesh, they give what the program gives. A failure shrinks and prints both graphs.
import fc from "fast-check";
import { withSequenceInputs, zigzag } from "../../lib/compile/sequence.ts";
import type { Graph } from "../../lib/ir/graph.ts";
import { MeshLayout } from "../../lib/ir/mesh.ts";
import { graphText } from "../../lib/ir/print.ts";
import { type ValueSpec, replicated } from "../../lib/ir/spec.ts";
import { verify } from "../../lib/ir/verify.ts";
import { getOp } from "../../lib/ops/index.ts";
import { fuse } from "../../lib/passes/fuse.ts";
import { permuteSequences, type Sequences, sequenceInput } from "../../lib/passes/sequence.ts";
import { Engine } from "../../lib/runtime/engine.ts";
import { flatten, SymBuilder } from "../../lib/tensor/trace.ts";
import { type Dense, dense } from "../conformance/dense.ts";
import { runOnDevices } from "../conformance/device.ts";
import { evaluate } from "../conformance/evaluate.ts";
import { buildProgram, drawLeaves } from "./build.ts";
import { assertSame, countOf, isTame, seed, tolerance } from "./harness.ts";
import { type Recipe, recipes } from "./recipe.ts";

const runs = countOf(150, 4000);
/** Of so many programs one is also run on devices. */
const onDevices = 3;

/** Dims of leaves that are sequences: in each leaf the first dim, from its pick on, as long as the first leaf's. */
function sequencesOf(recipe: Recipe): Sequences | null {
  const inputs = new Map<string, number>();
  let length: number | undefined;
  recipe.leaves.forEach(({ shape, places }, i) => {
    const from = places[0]! % (shape.length + 1);
    const dim = shape.findIndex((n, d) => d >= from && n > 0 && (length === undefined || n === length));
    if (dim < 0) return;
    length ??= shape[dim]!;
    inputs.set(`x${i}`, dim);
  });
  return length === undefined ? null : { inputs, length };
}

/** Element i along a dim is element order[i] of x. */
function reordered(x: Dense, dim: number, order: Int32Array): Dense {
  const inner = x.shape.slice(dim + 1).reduce((a, b) => a * b, 1);
  const n = x.shape[dim]!;
  const data = Array.from(x.data, (_, i) => {
    const at = Math.floor(i / inner) % n;
    return x.data[i + (order[at]! - at) * inner]!;
  });
  return dense(x.dtype, x.shape, data);
}

interface Posed {
  readonly graph: Graph;
  readonly feeds: ReadonlyMap<string, Dense>;
}

function pose(recipe: Recipe): Posed {
  const leaves = drawLeaves(recipe);
  const b = new SymBuilder();
  const syms = leaves.map((x, i) => b.one("input", [], { name: `x${i}`, dtype: x.dtype, shape: x.shape }));
  return { graph: flatten(buildProgram(recipe, b, syms)), feeds: new Map(leaves.map((x, i) => [`x${i}`, x])) };
}

/** What the permuted graph is fed on a mesh. */
function permutedFeeds({ feeds }: Posed, { inputs, length }: Sequences, layout: MeshLayout): Map<string, Dense> {
  const order = zigzag(length, layout.size("cp"));
  const own = new Map(
    [...feeds].map(([name, x]) => {
      const dim = inputs.get(name);
      return [name, dim === undefined ? x : reordered(x, dim, order)];
    }),
  );
  for (const { name, values } of withSequenceInputs([], { inputs, length }, layout)) {
    own.set(name, dense("i32", [length], [...values!]));
  }
  return own;
}

function specsOf({ feeds }: Posed, { inputs }: Sequences): Map<string, ValueSpec> {
  const specs = new Map<string, ValueSpec>([[sequenceInput.positions, { dims: [["cp"]], partial: {} }]]);
  for (const [name, dim] of inputs) {
    const whole = replicated(feeds.get(name)!.shape.length);
    specs.set(name, { ...whole, dims: whole.dims.map((_, d) => (d === dim ? ["cp"] : [])) });
  }
  return specs;
}

describe("random programs on split sequences", function () {
  this.timeout(Math.max(120_000, runs * 300));
  const layouts = [2, 3].map((cp) => new MeshLayout({ cp }));
  const engines = layouts.map(({ devices }) => new Engine({ device: "cpu", devices, threads: 1 }));
  after(() => {
    for (const engine of engines) engine.close();
  });

  const check = async (recipe: Recipe, pick: number, devices: boolean): Promise<void> => {
    const posed = pose(recipe);
    const sequences = sequencesOf(recipe);
    fc.pre(sequences !== null);
    const { graph, feeds } = posed;
    const expected = [...evaluate(graph, feeds).values()];
    fc.pre(expected.every(isTame));
    const layout = layouts[pick]!;
    const permuted = permuteSequences(graph, sequences);
    try {
      verify(permuted, getOp);
      const own = permutedFeeds(posed, sequences, layout);
      const found = [...evaluate(permuted, own).values()];
      assertSame(found, expected, graph.outputs, tolerance[recipe.dtype], "permuted");
      if (!devices) return;
      const ranks = await runOnDevices(engines[pick]!, layout, permuted, own, specsOf(posed, sequences), 2, fuse);
      for (const results of ranks) {
        assertSame(results, expected, graph.outputs, tolerance[recipe.dtype], "permuted and split");
      }
    } catch (error) {
      const where = `${layout}, ${sequences.length} tokens, along ${JSON.stringify([...sequences.inputs])}`;
      const texts = `${graphText(graph)}\n${graphText(permuted)}`;
      throw new Error(`${(error as Error).message}\n${where}\n${texts}`, { cause: error });
    }
  };

  it(`${runs} of them (seed ${seed})`, async () => {
    let count = 0;
    const property = fc.asyncProperty(recipes, fc.nat(1), (recipe, pick) =>
      check(recipe, pick, count++ % onDevices === 0),
    );
    await fc.assert(property, { numRuns: runs, seed });
  });
});
