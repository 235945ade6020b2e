// The runtime through the addon: runs on one and several devices, and typed errors.
import assert from "node:assert/strict";
import { AbortedError, CollectiveTimeoutError, DeviceError } from "../../lib/core/errors.ts";
import { elementOps } from "../../lib/ops/kernels.ts";
import * as addon from "../../lib/runtime/addon.ts";
import { actions, instruction, longPrograms, program } from "./program.ts";

const f32 = 0;

/** y (64 bytes on) = all_reduce of x (at 0) over all devices, 4 floats each. */
function allReduce(devices: number): Int32Array[] {
  const group = Array.from({ length: devices }, (_, d) => d);
  return group.map((d) =>
    program({
      arenaBytes: 128,
      views: [{ dtype: f32, dims: [4] }],
      table: [0],
      groups: [group],
      labels: ["h.0.mlp"],
      segments: [instruction("all_reduce", [[0, 0, 0]], [[0, 1, 0]], [0, 0], 0)],
      actions: [actions.feed(16 * d, 0, 16), actions.run(0), actions.fetch(0, 1, 16 * d, 16)],
    }),
  );
}

function bytesOf(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

function floatsOf(bytes: Uint8Array): number[] {
  return [...new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)];
}

describe("runtime/addon", () => {
  const engines: number[] = [];
  const open = (options: Partial<addon.EngineOptions> = {}): number => {
    const engine = addon.engineOpen({ backend: "cpu", devices: 1, timeoutMs: 5000, ...options });
    engines.push(engine);
    return engine;
  };
  afterEach(() => {
    for (const engine of engines.splice(0)) addon.engineClose(engine);
  });

  for (const devices of [1, 2, 3, 5]) {
    it(`reduces over ${devices} devices, three times alike`, async () => {
      const engine = open({ devices });
      const none = Array.from({ length: devices }, () => new Int32Array());
      const executable = addon.executableLoad(engine, allReduce(devices), none, 16 * devices, 16 * devices);
      const inputs = Float32Array.from({ length: 4 * devices }, (_, i) => i + 0.5);
      const expected = [0, 1, 2, 3].map((i) => {
        let sum = 0;
        for (let d = 0; d < devices; d++) sum += inputs[4 * d + i]!;
        return sum;
      });
      for (let repeat = 0; repeat < 3; repeat++) {
        const output = floatsOf(await addon.run(engine, executable, bytesOf(inputs)));
        assert.deepEqual(output, Array.from({ length: devices }, () => expected).flat());
      }
      const stats = addon.stats(engine);
      assert.equal(stats.runs, 3);
      assert.deepEqual(stats.devices[0]?.traffic, [{ op: "all_reduce", groupSize: devices, calls: 3, bytes: 48 }]);
    });
  }

  it("copies between devices by transfers", async () => {
    const engine = open({ devices: 2, unbuffered: true });
    const programs = [0, 1].map((d) =>
      program({
        arenaBytes: 128,
        views: [{ dtype: f32, dims: [4] }],
        actions: [
          actions.feed(16 * d, 0, 16),
          actions.transfer([0, 1 - d, 3, 0, 0], [1, 1 - d, 3, 1, 0]),
          actions.wait(0),
          actions.fetch(0, 1, 16 * d, 16),
        ],
      }),
    );
    const executable = addon.executableLoad(engine, programs, [new Int32Array(), new Int32Array()], 32, 32);
    const output = await addon.run(engine, executable, Float32Array.of(0, 1, 2, 3, 4, 5, 6, 7));
    assert.deepEqual(floatsOf(output), [4, 5, 6, 7, 0, 1, 2, 3]);
  });

  it("runs an elementwise program on bound buffers, and on others after binding", async () => {
    const engine = open();
    const [a, b] = [addon.bufferAlloc(engine, 0, 64), addon.bufferAlloc(engine, 0, 64)];
    addon.bufferWrite(engine, a, 0, Float32Array.of(1, 2, 3));
    const square = program({
      buffers: [12],
      views: [{ dtype: f32, dims: [3] }],
      segments: [instruction("elementwise", [[4, 0, 0]], [[4, 0, 0]], [1, elementOps.mul.code, 0, 0, 0, 0, 1, 1])],
      actions: [actions.run(0)],
    });
    const executable = addon.executableLoad(engine, [square], [Int32Array.of(a)], 0, 0);
    await Promise.all([
      addon.run(engine, executable, new Uint8Array()),
      addon.run(engine, executable, new Uint8Array()),
    ]);
    const target = new Float32Array(3);
    addon.bufferRead(engine, a, 0, target);
    assert.deepEqual([...target], [1, 16, 81]);
    addon.executableBind(engine, executable, [Int32Array.of(b)]);
    await addon.bufferWriteQueued(engine, b, 4, Float32Array.of(5));
    await addon.run(engine, executable, new Uint8Array());
    assert.deepEqual(floatsOf(await addon.bufferReadQueued(engine, b, 0, 12)), [0, 25, 0]);
    addon.bufferFree(engine, b);
    await assert.rejects(addon.run(engine, executable, new Uint8Array()), DeviceError);
  });

  it("gives a profile", async () => {
    const engine = open({ devices: 2 });
    const executable = addon.executableLoad(engine, allReduce(2), [new Int32Array(), new Int32Array()], 32, 32);
    addon.setProfiling(engine, true);
    await addon.run(engine, executable, new Uint8Array(32));
    const events = addon.stats(engine).profile.filter((e) => e.device === 1);
    assert.deepEqual(
      events.map((e) => [e.op, e.label]),
      [
        ["feed", "feed"],
        ["all_reduce", "h.0.mlp"],
        ["fetch", "fetch"],
      ],
    );
    for (const event of events) assert.ok(event.begin >= 0 && event.end >= event.begin);
  });

  it("names the missing rank when nothing moves any more, and then goes on", async () => {
    const engine = open({ devices: 2, timeoutMs: 100 });
    const none = [new Int32Array(), new Int32Array()];
    const [first] = allReduce(2);
    const lone = addon.executableLoad(engine, [first!, program({})], none, 32, 32);
    await assert.rejects(addon.run(engine, lone, new Uint8Array(32)), (error: unknown) => {
      assert.ok(error instanceof CollectiveTimeoutError);
      assert.match(error.message, /h\.0\.mlp.*not arrived: 1/);
      return true;
    });
    const both = addon.executableLoad(engine, allReduce(2), none, 32, 32);
    assert.equal((await addon.run(engine, both, new Uint8Array(32))).length, 32);
  });

  it("aborts runs", async () => {
    const engine = open({ devices: 2 });
    const executable = addon.executableLoad(engine, longPrograms(2), [new Int32Array(), new Int32Array()], 0, 0);
    const runs = [0, 1].map(() => addon.run(engine, executable, new Uint8Array()));
    assert.equal(addon.busy(engine), true);
    addon.abort(engine, "the user has had enough");
    for (const result of await Promise.allSettled(runs)) {
      assert.ok(result.status === "rejected" && result.reason instanceof AbortedError);
      assert.match(result.reason.message, /had enough/);
    }
    assert.equal(addon.busy(engine), false);
  });

  it("rejects runs of an engine that is closed, and nothing hangs", async () => {
    const engine = addon.engineOpen({ backend: "cpu", devices: 2 });
    const executable = addon.executableLoad(engine, longPrograms(2), [new Int32Array(), new Int32Array()], 0, 0);
    const run = addon.run(engine, executable, new Uint8Array());
    addon.engineClose(engine);
    await assert.rejects(run, AbortedError);
    assert.throws(() => addon.engineClose(engine), DeviceError);
  });

  it("counts on the null backend", async () => {
    const engine = open({ backend: "null", devices: 16 });
    const none = Array.from({ length: 16 }, () => new Int32Array());
    const executable = addon.executableLoad(engine, allReduce(16), none, 256, 256);
    assert.deepEqual([...(await addon.run(engine, executable, new Uint8Array(256).fill(1)))], Array(256).fill(0));
    const counters = addon.stats(engine).devices[15];
    assert.deepEqual(counters?.instructions, { all_reduce: 1 });
  });
});
