// Devices and buffers: collectives on memory of the devices against those on arrays, and single kernels.
import assert from "node:assert/strict";
import { type Buffer, type Collective, DeviceError, DTypeError, Mesh, MeshError, ShapeError } from "../../lib/index.ts";
import { ProgramError } from "../../lib/index.ts";
import { testDevice } from "../device.ts";

describe("buffers", function () {
  this.timeout(60_000);
  let mesh: Mesh<"dp" | "tp">;
  before(async () => {
    mesh = await Mesh.open({ device: testDevice, axes: { dp: 2, tp: 2 }, threads: 1 });
  });
  after(() => mesh.close());

  const filled = async (n: (rank: number) => number): Promise<Buffer[]> => {
    const buffers = Array.from({ length: 4 }, (_, rank) => mesh.device(rank).allocate("f32", n(rank)));
    for (const [rank, buffer] of buffers.entries()) {
      await buffer.write(Float32Array.from({ length: buffer.length }, (_, i) => ((rank + 2) * (i + 3)) % 17));
    }
    return buffers;
  };
  const read = (buffers: readonly Buffer[]) => Promise.all(buffers.map(async (b) => [...(await b.read())]));
  const arraysOf = async (buffers: readonly Buffer[]) =>
    (await read(buffers)).map((values) => Float32Array.from(values));

  it("know their device", () => {
    const device = mesh.device(3);
    assert.deepEqual([device.rank, device.kind, device.coordinates], [3, testDevice, { dp: 1, tp: 1 }]);
    assert.throws(() => mesh.device(4), MeshError);
    using buffer = device.allocate("bf16", 5);
    assert.deepEqual([buffer.length, buffer.bytes, buffer.dtype, buffer.device], [5, 10, "bf16", device]);
  });

  it("begin zeroed, and give back what was written", async () => {
    using buffer = mesh.device(1).allocate("i32", 4);
    assert.deepEqual([...(await buffer.read())], [0, 0, 0, 0]);
    await buffer.write(Int32Array.of(1, -2, 3, 4));
    assert.deepEqual([...(await buffer.read())], [1, -2, 3, 4]);
    await assert.rejects(buffer.write(Float32Array.of(1, 2, 3, 4)), DTypeError);
    await assert.rejects(buffer.write(Int32Array.of(1)), ShapeError);
    buffer[Symbol.dispose]();
    await assert.rejects(buffer.read(), DeviceError);
  });

  it("are exchanged as arrays are", async () => {
    for (const axes of [["tp"], ["dp", "tp"]] as const) {
      const group = mesh.group(...axes);
      const equal = await filled(() => 7);
      const arrays = await arraysOf(equal);
      const both = async (onBuffers: Promise<Buffer[]>, onArrays: Promise<Float32Array[]>) => {
        assert.deepEqual(
          await read(await onBuffers),
          (await onArrays).map((a) => [...a]),
        );
      };
      await both(group.allReduce(equal, "max"), group.allReduce(arrays, "max"));
      await both(group.reduceScatter(equal), group.reduceScatter(arrays));
      await both(group.broadcast(equal, 1), group.broadcast(arrays, 1));
      const uneven = await filled((rank) => (rank * 3) % 5);
      const cut = await arraysOf(uneven);
      await both(group.allGather(uneven), group.allGather(cut));
      await both(group.allToAll(uneven), group.allToAll(cut));
      assert.deepEqual(await arraysOf(equal), arrays, "the operands are as they were");
    }
  });

  it("are exchanged by loaded collectives, also in place", async () => {
    const inputs = await filled(() => 6);
    const expected = await mesh.group("tp").allReduce(await arraysOf(inputs));
    const twice = await mesh.group("tp").allReduce(expected);
    using sum: Collective = mesh.group("tp").collective("all_reduce", { inputs, outputs: inputs });
    assert.ok((await sum.run()) >= 0);
    assert.deepEqual(await arraysOf(inputs), expected);
    await sum.run();
    assert.deepEqual(await arraysOf(inputs), twice);
    assert.throws(
      () => mesh.group("tp").collective("all_gather", { inputs, outputs: inputs }),
      /device 0 gets 12 elements, but its output has 6/,
    );
    const elsewhere = [inputs[1]!, inputs[0]!, ...inputs.slice(2)];
    assert.throws(() => mesh.group("tp").collective("all_reduce", { inputs: elsewhere, outputs: inputs }), MeshError);
  });

  it("are operands of single kernels", async () => {
    const device = mesh.device(2);
    const [x, y] = [device.allocate("f32", 12), device.allocate("f32", 4)];
    await x.write(Float32Array.from({ length: 12 }, (_, i) => i));
    const attributes = { kind: 0 };
    using sum = device.kernel("reduce", {
      inputs: [{ buffer: x, shape: [3, 4] }],
      outputs: [{ buffer: y, shape: [1, 4] }],
      attributes,
    });
    await sum.run();
    assert.deepEqual([...(await y.read())], [12, 15, 18, 21]);
    // The transposed view of a part.
    using part = device.kernel("copy", {
      inputs: [{ buffer: x, shape: [2, 2], strides: [1, 4], offset: 5 }],
      outputs: [{ buffer: y, shape: [2, 2] }],
      times: 3,
    });
    await part.run();
    assert.deepEqual([...(await y.read())], [5, 9, 6, 10]);
  });

  it("are refused by kernels that do not take them", () => {
    const device = mesh.device(0);
    const [x, y] = [device.allocate("f32", 12), device.allocate("f32", 4)];
    const [inputs, outputs] = [[{ buffer: x, shape: [3, 4] }], [{ buffer: y, shape: [1, 4] }]];
    const kernel = (options: object) => () => device.kernel("reduce", { inputs, outputs, ...options });
    assert.throws(kernel({}), /reduce needs its attribute kind/);
    assert.throws(kernel({ attributes: { kind: 0, axis: 1 } }), /reduce has no attribute axis/);
    assert.throws(kernel({ attributes: { kind: 9 } }), ProgramError);
    assert.throws(kernel({ attributes: { kind: 0 }, outputs: [{ buffer: y, shape: [4, 4] }] }), ProgramError);
    assert.throws(() => mesh.device(1).kernel("copy", { inputs, outputs }), /is on .*:0, the kernel on .*:1/);
    assert.throws(() => device.kernel("all_reduce", { inputs, outputs }), /use mesh.group/);
  });
});
