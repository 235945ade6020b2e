// valueAndGrad and grad: values, zero gradients, parameters, higher orders, typed errors.
import assert from "node:assert/strict";
import {
  DTypeError,
  grad,
  Mesh,
  MeshError,
  nn,
  Placement,
  ShapeError,
  type Tensor,
  valueAndGrad,
} from "../../lib/index.ts";

describe("valueAndGrad", function () {
  this.timeout(20_000);
  let mesh: Mesh<"dp" | "tp">;
  before(async () => {
    mesh = await Mesh.open({ axes: { dp: 2, tp: 2 }, threads: 1 });
  });
  after(() => mesh.close());

  it("gives a value and gradients of the variables' shapes, zero where there is no way", async () => {
    const x = mesh.tensor(
      [
        [1, 2, 3],
        [4, 5, 6],
      ],
      { spec: ["dp", null] },
    );
    const w = mesh.tensor([1, 10, 100], { spec: ["tp"] });
    const unused = mesh.ones([2, 2]);
    const [value, [dx, dw, none]] = valueAndGrad((a, b, _) => a.mul(b).sum(), [x, w, unused]);
    assert.equal(await value.item(), 975);
    assert.deepEqual(await dx.array(), [
      [1, 10, 100],
      [1, 10, 100],
    ]);
    assert.deepEqual(await dw.array(), [5, 7, 9]);
    assert.deepEqual(await none.array(), [
      [0, 0],
      [0, 0],
    ]);
  });

  it("takes a scalar tensor and its intermediate values", async () => {
    const x = mesh.tensor([2, 3]);
    const y = x.square();
    const z = y.mul(x).sum();
    const [dy, dx] = grad(z, [y, x]);
    assert.deepEqual(await dy.array(), [2, 3]);
    assert.deepEqual(await dx.array(), [12, 27]);
  });

  it("nests: derivatives of sin up to the fourth", async () => {
    const t = mesh.tensor(0.7, { dtype: "f64" });
    let f = (x: Tensor): Tensor => x.sin();
    for (const expected of [Math.cos(0.7), -Math.sin(0.7), -Math.cos(0.7), Math.sin(0.7)]) {
      const inner = f;
      f = (x) => grad(inner, [x])[0];
      assert.ok(Math.abs((await f(t).item()) - expected) < 1e-12);
    }
  });

  it("differentiates by parameters of a placed model, wherever they are read", async () => {
    const layer = nn.nameModules(new nn.Linear(3, 2, { bias: false, initial: { kind: "constant", value: 0.5 } }));
    await Placement.of(mesh, layer);
    const x = mesh.tensor([[1, 2, 3]]);
    const [value, [dw]] = valueAndGrad(
      () =>
        layer
          .call(x)
          .add(layer.call(x.mul(10)))
          .sum(),
      [layer.weight],
    );
    assert.equal(await value.item(), 66);
    assert.deepEqual(await dw.array(), [
      [11, 22, 33],
      [11, 22, 33],
    ]);
  });

  it("refuses what has no gradient", async () => {
    await using other = await Mesh.open();
    const x = mesh.tensor([1, 2]);
    const ids = mesh.tensor([1, 2], { dtype: "i32" });
    assert.throws(() => valueAndGrad((a) => a.mul(2), [x]), ShapeError);
    assert.throws(() => valueAndGrad(ids.sum(), [x]), DTypeError);
    assert.throws(() => grad(x.sum(), [ids]), DTypeError);
    assert.throws(() => grad(x.sum(), [other.tensor([1, 2])]), MeshError);
  });
});
