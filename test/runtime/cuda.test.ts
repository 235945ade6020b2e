// The device "cuda" from JavaScript, without a GPU: on the emulated backend that `npm run test:native` builds, with
// collectives in-process and by the stand-in for NCCL. What needs a GPU is told apart in docs/PERFORMANCE.md.
import assert from "node:assert/strict";
import { type Emulated, runEmulated } from "./emulated.ts";

const everything = `
  const mesh = await meshwork.Mesh.open({ device: DEVICE, axes: { dp: 2, tp: 2 }, timeoutMs: 20000 });
  const group = mesh.group("tp");
  const arrays = [0, 1, 2, 3].map((d) => Float32Array.from({ length: 5 }, (_, i) => 10 * d + i));
  const both = [];
  for (let repeat = 0; repeat < 4; repeat++) {
    const sums = await group.allReduce(arrays, "sum");
    const parts = await group.reduceScatter(arrays, "max");
    const all = await group.allGather(parts);
    const exchanged = await group.allToAll(arrays);
    const root = await group.broadcast(arrays, 1);
    both.push([sums, parts, all, exchanged, root].map((list) => list.map((a) => [...a])));
  }
  const x = mesh.tensor([[1, 2, 3], [4, 5, 6]], { spec: ["dp", null] });
  const y = await x.mul(2).add(1).sum().item();
  console.log(JSON.stringify({ both, y }));
  await mesh.close();
`;

describe("the device cuda, emulated", function () {
  this.timeout(120_000);

  let expected: unknown;
  before(() => {
    expected = runEmulated(everything.replace("DEVICE", '"cpu"'), { gpus: 1, collectives: "in-process" });
  });
  const cases: readonly Emulated[] = [
    { gpus: 1, collectives: "in-process" },
    { gpus: 2, collectives: "in-process" },
    { gpus: 4, collectives: "nccl" },
  ];
  for (const emulated of cases) {
    it(`gives what the CPU gives on ${emulated.gpus} GPUs, collectives ${emulated.collectives}`, () => {
      assert.deepEqual(runEmulated(everything.replace("DEVICE", '"cuda"'), emulated), expected);
    });
  }

  it("is what auto takes where there is a GPU", () => {
    const kind = `const mesh = await meshwork.Mesh.open({ device: "auto" });
      console.log(JSON.stringify(mesh.engine.kind));
      await mesh.close();`;
    assert.equal(runEmulated(kind, { gpus: 1, collectives: "in-process" }), "cuda");
  });
});
