// compile: results under splits, one program for each set of shapes, overlapping calls, models, typed errors.
import assert from "node:assert/strict";
import { compile, Mesh, MeshError, nn, Placement, ShapeError, type Tensor, valueAndGrad } from "../../lib/index.ts";

describe("compile", function () {
  this.timeout(20_000);
  let mesh: Mesh<"dp" | "tp">;
  before(async () => {
    mesh = await Mesh.open({ axes: { dp: 2, tp: 3 }, threads: 1 });
  });
  after(() => mesh.close());

  const counting = (n: number) => Float32Array.from({ length: n }, (_, i) => i);
  const product = (m: number, k: number, n: number) =>
    Array.from({ length: m * n }, (_, i) => {
      let sum = 0;
      for (let j = 0; j < k; j++) sum += (Math.floor(i / n) * k + j) * (j * n + (i % n));
      return sum;
    });

  it("runs a split matmul with uneven and empty shards, one program for each set of shapes", async () => {
    using f = compile(mesh, (a: Tensor, b: Tensor) => a.matmul(b), {
      in: [
        ["dp", "tp"],
        ["tp", null],
      ],
      out: [[null, ["tp", "dp"]]],
    });
    for (const [m, k, n] of [
      [5, 7, 4],
      [1, 2, 2],
      [5, 7, 4],
    ] as const) {
      const c = await f.run(mesh.fromData(counting(m * k), [m, k]), mesh.fromData(counting(k * n), [k, n]));
      assert.deepEqual(c.shape, [m, n]);
      assert.deepEqual(await c.values(), product(m, k, n));
    }
    assert.equal(f.programs, 2);
  });

  it("takes numbers and lazy tensors, returns lists and records, as tensors or data", async () => {
    using f = compile(mesh, (x: Tensor, y: Tensor) => ({ sum: x.add(y), parts: x.mul(y).cast("bf16") }));
    const lazy = mesh.tensor([1, 2]).mul(3);
    const { sum, parts } = await f.run(lazy, [10, 20]);
    assert.deepEqual(await sum.array(), [13, 26]);
    assert.deepEqual([parts.dtype, await parts.array()], ["bf16", [30, 120]]);
    const data = await f.data(sum, sum);
    assert.deepEqual([...data.sum], [26, 52]);
    using pair = compile(mesh, (x: Tensor) => [x.neg(), x.sum()] as const);
    const [negative, total] = await pair.run([[1], [2]]);
    assert.deepEqual([await negative.array(), await total.item()], [[[-1], [-2]], 3]);
  });

  it("runs overlapping calls in order, each on its own arguments", async () => {
    using f = compile(mesh, (x: Tensor) => x.square(), { in: [["dp"]] });
    const results = await Promise.all(Array.from({ length: 12 }, (_, i) => f.data([i, i + 1, i + 2])));
    results.forEach((r, i) => {
      assert.deepEqual([...r], [i ** 2, (i + 1) ** 2, (i + 2) ** 2]);
    });
    const tensors = await Promise.all(Array.from({ length: 6 }, (_, i) => f.run([i, i, i])));
    for (const [i, t] of tensors.entries()) assert.deepEqual(await t.array(), [i * i, i * i, i * i]);
  });

  it("compiles gradients of a placed model", async () => {
    const model = nn.nameModules(
      new nn.Linear(4, 2, { initial: { kind: "constant", value: 1 }, split: { outputs: "tp" } }),
    );
    await Placement.of(mesh, model);
    using f = compile(mesh, (x: Tensor) => {
      const [loss, [dw, db]] = valueAndGrad(() => model.call(x).square().sum(), [model.weight, model.bias!]);
      return { loss, dw, db };
    });
    const { loss, dw, db } = await f.data([[1, 2, 3, 4]]);
    assert.deepEqual([[...loss], [...dw], [...db]], [[200], [20, 40, 60, 80, 20, 40, 60, 80], [20, 20]]);
  });

  it("refuses tensors of other meshes and of none", async () => {
    await using other = await Mesh.open();
    const outside = mesh.tensor([1, 2]);
    using identity = compile(mesh, (x: Tensor) => x);
    await assert.rejects(identity.run(other.tensor([1])), MeshError);
    await assert.rejects(compile(mesh, (x: Tensor) => x.add(outside)).run([1, 2]), MeshError);
    await assert.rejects(compile(mesh, () => outside).run(), MeshError);
    await assert.rejects(compile(mesh, (x: Tensor) => [x, undefined as unknown as Tensor]).run([1]), ShapeError);
    await assert.rejects(compile(mesh, (x: Tensor) => x.matmul(x)).run([[1, 2]]), ShapeError);
    assert.deepEqual(await (await identity.run([4, 5])).array(), [4, 5]);
  });
});
