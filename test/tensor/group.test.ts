// Collectives on arrays against sums in JavaScript: every dtype, groups within a mesh, uneven and empty parts.
import assert from "node:assert/strict";
import { type DeviceArray, DTypeError, Mesh, MeshError, ShapeError } from "../../lib/index.ts";

const makers = {
  f32: (values: number[]) => Float32Array.from(values),
  f64: (values: number[]) => Float64Array.from(values),
  i32: (values: number[]) => Int32Array.from(values),
} as const;

describe("groups", function () {
  this.timeout(20_000);
  let mesh: Mesh<"dp" | "tp">;
  before(async () => {
    mesh = await Mesh.open({ axes: { dp: 2, tp: 3 }, threads: 1 });
  });
  after(() => mesh.close());

  const brought = (n: (rank: number) => number) =>
    Array.from({ length: 6 }, (_, r) => Array.from({ length: n(r) }, (_, i) => ((r + 2) * (i + 3)) % 17));
  const lists = (arrays: readonly DeviceArray[]) => arrays.map((a) => [...a]);
  /** Cut of n elements into k parts. */
  const cut = (values: readonly number[], k: number, i: number) => {
    const size = (j: number) => Math.floor(values.length / k) + (j < values.length % k ? 1 : 0);
    let start = 0;
    for (let j = 0; j < i; j++) start += size(j);
    return values.slice(start, start + size(i));
  };

  for (const [dtype, make] of Object.entries(makers)) {
    it(`exchange ${dtype}`, async () => {
      for (const axes of [["tp"], ["dp"], ["dp", "tp"]] as const) {
        const group = mesh.group(...axes);
        for (const n of [7, 2, 0]) {
          const values = brought(() => n);
          const arrays = values.map((v) => make(v));
          const sums = group.ranks.map((ranks) =>
            values[0]!.map((_, i) => ranks.reduce((s, r) => s + values[r]![i]!, 0)),
          );
          const most = group.ranks.map((ranks) =>
            values[0]!.map((_, i) => Math.max(...ranks.map((r) => values[r]![i]!))),
          );
          assert.deepEqual(lists(await group.allReduce(arrays)), sums);
          assert.deepEqual(lists(await group.allReduce(arrays, "max")), most);
          const own = (r: number) => group.ranks[r]!.indexOf(r);
          const parts = sums.map((s, r) => cut(s, group.size, own(r)));
          assert.deepEqual(lists(await group.reduceScatter(arrays)), parts);
          const first = values.map((_, r) => values[group.ranks[r]!.at(-1)!]!);
          assert.deepEqual(lists(await group.broadcast(arrays, group.size - 1)), first);
        }
        const values = brought((r) => (r * 3) % 5);
        const arrays = values.map((v) => make(v));
        const joined = group.ranks.map((ranks) => ranks.flatMap((r) => values[r]!));
        assert.deepEqual(lists(await group.allGather(arrays)), joined);
        const swapped = group.ranks.map((ranks, r) =>
          ranks.flatMap((from) => cut(values[from]!, group.size, ranks.indexOf(r))),
        );
        assert.deepEqual(lists(await group.allToAll(arrays)), swapped);
      }
    });
  }

  it("reduce bf16 by its bits, and run in turn with other work", async () => {
    const ones = Array.from({ length: 6 }, () => Uint16Array.of(0x3f80, 0x4000)); // 1, 2
    const [sum, item] = await Promise.all([
      mesh.group("tp").allReduce(ones),
      mesh
        .full([64, 64], 2)
        .matmul(mesh.ones([64, 64]))
        .sum()
        .item(),
    ]);
    assert.deepEqual(lists(sum)[0], [0x4040, 0x40c0]); // 3, 6
    assert.equal(item, 64 * 64 * 128);
  });

  it("leave the arguments as they are", async () => {
    const arrays = brought(() => 3).map(makers.f32);
    const before = lists(arrays);
    await mesh.group("tp").allReduce(arrays);
    assert.deepEqual(lists(arrays), before);
  });

  it("refuse what does not fit, in the caller's terms", () => {
    const group = mesh.group("tp");
    const arrays = brought(() => 3).map(makers.f32);
    assert.throws(() => group.allReduce(arrays.slice(1)), ShapeError);
    assert.throws(
      () => group.allReduce([...arrays.slice(1), new Float32Array(4)]),
      /device 3 brings 3 elements, device 5/,
    );
    assert.throws(() => group.broadcast(arrays, 3), ShapeError);
    assert.throws(() => mesh.group(), MeshError);
    assert.throws(() => mesh.group("tp", "tp"), MeshError);
    return assert.rejects(
      group.allGather<DeviceArray>([...arrays.slice(1), new Float64Array(3)]),
      (e) => e instanceof DTypeError && /f32, f64/.test(e.message),
    );
  });
});
