// Random programs, with gradients, on random meshes with randomly split leaves: equal to one device, which equals the
// reference. A failure shrinks and prints its graph.
import assert from "node:assert/strict";
import fc from "fast-check";
import { fromStorage } from "../../lib/core/dtype.ts";
import { graphText } from "../../lib/ir/print.ts";
import type { Mesh } from "../../lib/tensor/mesh.ts";
import { Tensor } from "../../lib/tensor/tensor.ts";
import { type NamedSym, SymBuilder, flatten } from "../../lib/tensor/trace.ts";
import { type Dense, dense } from "../conformance/dense.ts";
import { evaluate } from "../conformance/evaluate.ts";
import { buildProgram, drawLeaves } from "./build.ts";
import { assertSame, countOf, isTame, Meshes, seed, tolerance } from "./harness.ts";
import { type Recipe, recipes, specOf } from "./recipe.ts";

const runs = countOf(200, 5000);

/** The program's outputs on a mesh with the recipe's splits, computed `times` times with the same bits. */
async function runOn(mesh: Mesh<string>, recipe: Recipe, leaves: readonly Dense[], times: number): Promise<Dense[]> {
  const tensors = leaves.map((x, i) =>
    mesh.fromData(x.data, x.shape, { dtype: x.dtype, spec: specOf(recipe.leaves[i]!, mesh.layout.axes) }),
  );
  const outputs = buildProgram(
    recipe,
    mesh.builder,
    tensors.map((t) => t.sym),
  ).map(({ sym }) => new Tensor(sym, mesh));
  const first = (await mesh.evaluate(outputs)).map((data) => data.slice());
  for (let k = 1; k < times; k++) assert.deepEqual(await mesh.evaluate(outputs), first, `run ${k + 1} gave other bits`);
  return outputs.map((t, i) => dense(t.dtype, t.shape, fromStorage(t.dtype, first[i]!)));
}

interface Traced {
  readonly outputs: readonly NamedSym[];
  readonly expected: readonly Dense[];
}

/** The program through the reference evaluator. */
function reference(recipe: Recipe, leaves: readonly Dense[]): Traced {
  const b = new SymBuilder();
  const syms = leaves.map((x, i) => b.one("input", [], { name: `x${i}`, dtype: x.dtype, shape: x.shape }));
  const outputs = buildProgram(recipe, b, syms);
  const values = evaluate(flatten(outputs), new Map(leaves.map((x, i) => [`x${i}`, x])));
  return { outputs, expected: outputs.map(({ name }) => values.get(name)!) };
}

async function check(recipe: Recipe, meshes: Meshes): Promise<void> {
  const leaves = drawLeaves(recipe);
  const { outputs, expected } = reference(recipe, leaves);
  fc.pre(expected.every(isTame));
  const specs = recipe.leaves.map((l) => JSON.stringify(specOf(l, Object.keys(recipe.axes))));
  try {
    const one = await runOn(await meshes.get({}), { ...recipe }, leaves, 1);
    assertSame(one, expected, outputs, tolerance[recipe.dtype], "on one device against the reference");
    const many = await runOn(await meshes.get(recipe.axes), recipe, leaves, 3);
    assertSame(many, one, outputs, tolerance[recipe.dtype], "split against one device");
  } catch (error) {
    await meshes.close();
    const where = `mesh ${JSON.stringify(recipe.axes)}, inputs split ${specs.join(" ")}`;
    throw new Error(`${(error as Error).message}\n${where}\n${graphText(flatten(outputs))}`, { cause: error });
  }
}

describe("random programs", function () {
  this.timeout(Math.max(120_000, runs * 300));
  const meshes = new Meshes();
  after(() => meshes.close());

  it(`${runs} of them (seed ${seed}) split over a mesh equal one device`, async () => {
    let count = 0;
    const property = fc.asyncProperty(recipes, async (recipe) => {
      if (++count % 500 === 0) await meshes.close();
      await check(recipe, meshes);
    });
    await fc.assert(property, {
      numRuns: runs,
      seed,
      interruptAfterTimeLimit: runs * 280,
      markInterruptAsFailure: true,
    });
  });
});
