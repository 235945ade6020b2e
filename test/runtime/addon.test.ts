// The runtime through the addon: runs on one and several devices, and typed errors.
import assert from "node:assert/strict";
import * as addon from "../../lib/runtime/addon.ts";
import { actions, instruction, program } from "./program.ts";

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
});
