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

  it("loads checkpoints of the CPU under other layouts and dtypes, and saves such that the CPU loads", () => {
    const body = `
      import { mkdtempSync, rmSync } from "node:fs";
      const folder = mkdtempSync("/tmp/meshwork-cuda-checkpoint-");
      const { loadCheckpoint, Mesh, saveCheckpoint, stateOf } = meshwork;
      const shapes = { w: [7, 6], b: [5] };
      const sizes = { w: 42, b: 5 };
      const make = (mesh, specs, dtype, first) =>
        Object.fromEntries(
          Object.entries(shapes).map(([name, shape]) => {
            const values = Array.from({ length: sizes[name] }, (_, i) => first * (i + 1));
            return [name, mesh.fromData(values, shape, { spec: specs[name], dtype })];
          }),
        );
      const values = async (tensor) => [...(await tensor.cast("f32").data())];
      const read = async ({ w, b }) => [await values(w), await values(b)];
      const cpu = await Mesh.open({ device: "cpu", axes: { tp: 2 } });
      const first = make(cpu, { w: ["tp"], b: [] }, "f32", 1);
      await saveCheckpoint(folder + "/a", stateOf(cpu, first));
      const cuda = await Mesh.open({ device: "cuda", axes: { dp: 2, tp: 2 }, timeoutMs: 20000 });
      const found = [await read(first)];
      const specs = { f32: [["tp"], ["dp", "tp"], [null, "dp"]], bf16: [[null, "tp"]] };
      for (const [dtype, w] of Object.entries(specs).flatMap(([dtype, list]) => list.map((spec) => [dtype, spec]))) {
        const tensors = make(cuda, { w, b: [] }, dtype, 0);
        await loadCheckpoint(folder + "/a", stateOf(cuda, tensors));
        found.push(await read(tensors));
        const place = folder + "/" + found.length;
        await saveCheckpoint(place, stateOf(cuda, tensors));
        const back = make(cpu, { w: [null, "tp"], b: ["tp"] }, "f32", 0);
        await loadCheckpoint(place, stateOf(cpu, back));
        found.push(await read(back));
      }
      await cuda.close();
      await cpu.close();
      rmSync(folder, { recursive: true });
      console.log(JSON.stringify(found));`;
    const found = runEmulated(body, { gpus: 2, collectives: "in-process" });
    const values = [42, 5].map((n) => Array.from({ length: n }, (_, i) => i + 1));
    assert.deepEqual(
      found,
      Array.from({ length: 9 }, () => values),
    );
  });

  it("is what auto takes where there is a GPU", () => {
    const kind = `const mesh = await meshwork.Mesh.open({ device: "auto" });
      console.log(JSON.stringify(mesh.engine.kind));
      await mesh.close();`;
    assert.equal(runEmulated(kind, { gpus: 1, collectives: "in-process" }), "cuda");
  });
});
