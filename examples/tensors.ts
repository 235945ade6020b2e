// Lazy tensors, gradients of any order, and a matrix product over a mesh.
// Run with: npx tsx examples/tensors.ts
import { compile, grad, Mesh, type Tensor, valueAndGrad } from "../lib/index.ts";

await using mesh = await Mesh.open({ axes: { dp: 2, tp: 2 } });

// Operations grow a graph; reading a value compiles it (once for each structure) and runs it on the devices.
const x = mesh.tensor([
  [1, 2],
  [3, 4],
]);
const w = mesh.tensor([
  [0.5, -1],
  [2, 0.25],
]);
const y = x.matmul(w).gelu().sum();
console.log("sum of gelu(x w):", (await y.item()).toFixed(4));

// A scalar and its gradients: lazy tensors again.
const [loss, [dx, dw]] = valueAndGrad((a, b) => a.matmul(b).square().mean(), [x, w]);
console.log("loss:", await loss.item());
console.log("d loss / d x:", JSON.stringify(await dx.array()));
console.log("d loss / d w:", JSON.stringify(await dw.array()));

// Gradients nest: the third derivative of t^4 at 2 is 24 t = 48.
const t = mesh.tensor(2);
const power = (a: Tensor) => a.square().square();
const first = (a: Tensor) => grad(power, [a])[0];
const second = (a: Tensor) => grad(first, [a])[0];
console.log("third derivative:", await grad(second, [t])[0].item());

// The same code on split tensors: rows of a over dp, columns of b over tp; each device multiplies its own part.
const a = mesh.fromData(
  Float32Array.from({ length: 24 }, (_, i) => i),
  [6, 4],
  { spec: ["dp", null] },
);
const b = mesh.fromData(
  Float32Array.from({ length: 12 }, (_, i) => i % 5),
  [4, 3],
  { spec: [null, "tp"] },
);
console.log("row 5 of a b:", JSON.stringify(await a.matmul(b).select(0, 5).array()));

// A function compiled for the mesh: traced once for each set of shapes, then only run.
const f = compile(mesh, (u: Tensor, v: Tensor) => ({ product: u.matmul(v), total: u.sum() }), {
  in: [
    ["dp", null],
    [null, "tp"],
  ],
});
const { product, total } = await f.run(a, b);
console.log("compiled:", product.shape, await total.item(), "programs:", f.programs);
