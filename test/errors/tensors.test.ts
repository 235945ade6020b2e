// Wrong shapes, axes, meshes and values at the tensor API: errors of meshwork's own kinds, in the caller's terms.
import assert from "node:assert/strict";
import { DTypeError, MeshError, ShapeError } from "../../lib/core/errors.ts";
import { concat, embedding } from "../../lib/tensor/functions.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";
import { hostile, refuses, tolerates } from "./small.ts";

describe("errors of tensors", () => {
  let mesh: Mesh;
  let x: Tensor;
  before(async () => {
    mesh = await Mesh.open({ axes: { dp: 2 }, threads: 1 });
    x = mesh.tensor([
      [1, 2, 3],
      [4, 5, 6],
    ]);
  });
  after(() => mesh.close());

  it("shapes that do not match", async () => {
    const cases: readonly (readonly [string, () => unknown, RegExp])[] = [
      ["add", () => x.add(mesh.tensor([1, 2])), /\[2, 3\] and \[2\] do not broadcast: dim -1 is 3 and 2/],
      ["matmul", () => x.matmul(x), /left's last dim is 3, the right's second to last is 2/],
      ["matmul by a vector", () => x.matmul(mesh.tensor([1])), /the right side has 2 or more dims/],
      ["reshape", () => x.reshape([4]), /\[4\]/],
      ["reshape with -1", () => x.reshape([4, -1]), /\[2, 3\] cannot be reshaped to \[4, -1\]/],
      ["broadcast", () => x.broadcastTo([2, 2]), /\[2, 2\]/],
      ["sum", () => x.sum(2), /dim 2 is outside a tensor of rank 2/],
      ["sum of a dim twice", () => x.sum([0, -2]), /name a dim twice/],
      ["transpose", () => x.transpose([0, 0]), /does not permute/],
      ["slice", () => x.slice(1, 2, 5), /\[2, 5\) is not a part of dim 1/],
      ["concat", () => concat([x, mesh.tensor([1])]), /concat/],
      ["item", () => x.item(), /item\(\) reads one element, this tensor has shape \[2, 3\]/],
      ["einsum", () => x.einsum("a b, a b -> c", x), /c/],
      ["ragged rows", () => mesh.tensor([[1, 2], [3]]), /ragged array: dim 1 has sizes 2 and 1/],
      ["elements", () => mesh.fromData([1, 2], [3]), /2 elements do not make a tensor of shape \[3\]/],
      ["a negative size", () => mesh.fromData([1, 2], [-2, -1]), /size 0 is -2/],
      ["too many dims", () => mesh.zeros([1, 1, 1, 1, 1, 1, 1, 1, 1]), /9 dims; 8 are the most/],
    ];
    for (const [what, call, message] of cases) await refuses(what, call, ShapeError, message);
    await refuses("dtypes", () => x.add(mesh.tensor([1], { dtype: "i32" })), DTypeError, /f32.*i32/);
    await refuses("ids", () => embedding(x, x), DTypeError, /i32/);
  });

  it("arrays that hold themselves", async () => {
    const circle: never[] = [];
    Reflect.apply(circle.push, circle, [circle]);
    await refuses("a circle", () => mesh.tensor(circle), ShapeError, /nested deeper than 8/);
  });

  it("axes that the mesh lacks or that are split twice", async () => {
    const split =
      (...spec: (string | null)[]) =>
      () =>
        Reflect.apply(mesh.tensor, mesh, [[[1, 2]], { spec }]);
    await refuses("unknown", split("tp"), MeshError, /mesh dp=2 has no axis "tp"; it has dp/);
    await refuses("twice", split("dp", "dp"), MeshError, /splits two dims over axis dp/);
    await refuses("too long", split(null, null, "dp"), ShapeError, /a spec of 3 dims for a tensor of shape \[1, 2\]/);
    await refuses("group", () => Reflect.apply(mesh.group, mesh, ["pp"]), MeshError, /no axis "pp"/);
  });

  it("tensors of two meshes", async () => {
    const other = await Mesh.open({ threads: 1 });
    const y = other.tensor([1]);
    const message = /a tensor of mesh 1 device cannot be .* mesh dp=2/;
    await refuses("add", () => x.add(y), MeshError, message);
    await refuses("concat", () => concat([x, y]), MeshError, message);
    await refuses("evaluate", () => mesh.evaluate([y]), MeshError, message);
    await other.close();
    await refuses("a closed mesh", () => y.add(1).item(), Error as never, /closed/);
  });

  it("tells constants apart that JSON would not", async () => {
    const values = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 0, -0];
    const found = [];
    for (const value of values) found.push(await mesh.full([1], value).item());
    assert.deepEqual(found, values);
  });

  it("hostile values: Mesh.open", async () => {
    const open = async (options: unknown): Promise<void> => {
      const opened: Mesh = await Reflect.apply(Mesh.open, Mesh, [options]);
      await opened.close();
    };
    for (const value of hostile) {
      if (typeof value !== "object")
        await refuses("options", () => open(value), MeshError, /takes an object of options/);
      for (const key of ["axes", "device", "threads", "timeoutMs", "pin", "unbuffered"]) {
        await tolerates(`${key} ${String(value)}`, () => open({ [key]: value }));
      }
      await refuses(
        "a size",
        () => open({ axes: { dp: value } }),
        MeshError,
        /a size is a whole number from 1 on|over the limit/,
      );
    }
    await refuses("a device", () => open({ device: "tpu" }), MeshError, /"cpu", "cuda" or "null", not "tpu"/);
    await refuses("devices", () => open({ axes: { dp: 64, tp: 64 } }), MeshError, /4096 devices is over the limit/);
    await refuses("a name", () => open({ axes: { "a b": 2 } }), MeshError, /cannot name a mesh axis/);
  });

  it("hostile values: tensors and their operations", async () => {
    const { prototype } = Object.getPrototypeOf(x).constructor;
    for (const value of hostile) {
      const text = String(value);
      await tolerates(`tensor of ${text}`, () => Reflect.apply(mesh.tensor, mesh, [value]));
      await tolerates(`tensor in ${text}`, () => Reflect.apply(mesh.tensor, mesh, [[1], value]));
      for (const key of ["dtype", "spec"]) {
        await tolerates(`${key} ${text}`, () => Reflect.apply(mesh.tensor, mesh, [[1, 2], { [key]: value }]));
      }
      await tolerates(`shape ${text}`, () => Reflect.apply(mesh.fromData, mesh, [[1, 2], value]));
      await tolerates(`size ${text}`, () => Reflect.apply(mesh.zeros, mesh, [[value]]));
      await tolerates(`zeros ${text}`, () => Reflect.apply(mesh.zeros, mesh, [value]));
      await tolerates(`evaluate ${text}`, () => Reflect.apply(mesh.evaluate, mesh, [value]));
      await tolerates(`concat ${text}`, () => Reflect.apply(concat, null, [value]));
      for (const name of ["add", "matmul", "reshape", "broadcastTo", "transpose", "sum", "cast", "softmax", "einsum"]) {
        await tolerates(`${name} ${text}`, () => Reflect.apply(prototype[name], x, [value, x]));
      }
      if (typeof value === "symbol") continue;
      for (const name of ["slice", "pad", "select"]) {
        await tolerates(`${name} ${text}`, () => Reflect.apply(prototype[name], x, [0, Number(value), 0]));
      }
    }
  });
});
