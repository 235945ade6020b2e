// Checkpoints of plain tensors: saved and loaded under other layouts to the bit, kept, passed over, refused.
import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { Checkpointer } from "../../lib/checkpoint/checkpointer.ts";
import { loadCheckpoint, openCheckpoint } from "../../lib/checkpoint/load.ts";
import { saveCheckpoint } from "../../lib/checkpoint/save.ts";
import { stateOf } from "../../lib/checkpoint/state.ts";
import { toNumbers } from "../../lib/checkpoint/stored-dtype.ts";
import { StoredCheckpoint } from "../../lib/checkpoint/stored.ts";
import type { DType } from "../../lib/core/dtype.ts";
import { AbortedError, CheckpointError, ConfigError } from "../../lib/core/errors.ts";
import type { PartitionSpec } from "../../lib/ir/spec.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";
import { scratchFolder } from "../errors/small.ts";

const shapes: Readonly<Record<string, readonly number[]>> = {
  matrix: [7, 5],
  cube: [3, 4, 6],
  scalar: [],
  none: [0, 4],
  'a long/strange "name" é': [11],
};

/** Tensors of all the shapes, filled with numbers that no two share. */
function tensorsOn(mesh: Mesh<string>, spec: (name: string) => PartitionSpec, first: number, dtype: DType = "f32") {
  let next = first;
  const made = Object.entries(shapes).map(([name, shape]): [string, Tensor] => {
    const count = shape.reduce((a, b) => a * b, 1);
    const values = Array.from({ length: count }, () => next++ / 8);
    return [name, mesh.fromData(values, shape, { dtype, spec: spec(name) })];
  });
  return Object.fromEntries(made);
}

async function valuesOf(tensors: Readonly<Record<string, Tensor>>): Promise<number[][]> {
  return Promise.all(Object.values(tensors).map(async (t) => [...(await t.data())]));
}

const layouts: readonly [axes: Record<string, number>, spec: (name: string) => PartitionSpec][] = [
  [{}, () => []],
  [{ tp: 2 }, (name) => (name === "scalar" ? [] : ["tp"])],
  [{ tp: 3, dp: 2 }, (name) => (name === "matrix" ? ["dp", "tp"] : name === "cube" ? [null, "tp", "dp"] : [])],
  [{ dp: 2, fsdp: 2 }, (name) => (name === "scalar" ? [] : [["dp", "fsdp"]])],
  [{ tp: 8 }, (name) => (name === "cube" ? [null, null, "tp"] : name === "scalar" ? [] : ["tp"])],
];

describe("a checkpoint", function () {
  // Every save waits for the disk.
  this.timeout(60_000);
  const at = scratchFolder();

  it("loads under every other layout to the bit, each byte read once", async () => {
    for (const [i, [axes, spec]] of layouts.entries()) {
      await using mesh = await Mesh.open({ device: "cpu", axes });
      const tensors = tensorsOn(mesh, spec, 100 * i);
      const expected = await valuesOf(tensors);
      const saved = await saveCheckpoint(at(`from${i}`), stateOf(mesh, tensors, { step: i, record: { i } }));
      for (const [otherAxes, otherSpec] of layouts) {
        await using other = await Mesh.open({ device: "cpu", axes: otherAxes });
        const targets = tensorsOn(other, otherSpec, -1000);
        const loaded = await loadCheckpoint(at(`from${i}`), stateOf(other, targets));
        assert.deepEqual(await valuesOf(targets), expected);
        assert.deepEqual([loaded.step, loaded.record.i, loaded.path], [i, i, saved.path]);
        assert.equal(loaded.bytesRead, saved.bytes);
      }
      using stored = await StoredCheckpoint.open(saved.path);
      for (const [t, tensor] of stored.tensors.entries()) {
        assert.deepEqual(
          Array.from(toNumbers(tensor.dtype, await stored.readStored(tensor))),
          expected[t],
          tensor.name,
        );
      }
    }
  });

  it("loads under other dtypes, rounded as the devices round", async () => {
    await using mesh = await Mesh.open({ device: "cpu", axes: { tp: 2 } });
    const f32 = tensorsOn(mesh, (name) => (name === "scalar" ? [] : ["tp"]), 3);
    await saveCheckpoint(at("precision"), stateOf(mesh, f32));
    for (const dtype of ["f64", "bf16"] as const) {
      const others = tensorsOn(mesh, () => [], 0, dtype);
      await loadCheckpoint(at("precision"), stateOf(mesh, others));
      const expected = await Promise.all(Object.values(f32).map(async (t) => [...(await t.cast(dtype).data())]));
      assert.deepEqual(await valuesOf(others), expected);
    }
    const integers = tensorsOn(mesh, () => [], 0, "i32");
    await assert.rejects(loadCheckpoint(at("precision"), stateOf(mesh, integers)), /dtype F32 does not become i32/);
  });

  it("names what does not fit the model", async () => {
    await using mesh = await Mesh.open({ device: "cpu", axes: {} });
    await saveCheckpoint(at("fit"), stateOf(mesh, { a: mesh.tensor([1, 2]), b: mesh.tensor([3]) }));
    const load = (tensors: Record<string, Tensor>): Promise<unknown> =>
      loadCheckpoint(at("fit"), stateOf(mesh, tensors));
    await assert.rejects(load({ a: mesh.tensor([0, 0]), c: mesh.tensor([0]) }), /tensor "b": the model has none/);
    await assert.rejects(load({ a: mesh.tensor([0, 0]), b: mesh.tensor([0]), c: mesh.tensor([0]) }), (error) => {
      return error instanceof CheckpointError && error.details.tensor === "c" && /it is missing/.test(error.message);
    });
    await assert.rejects(load({ a: mesh.tensor([0]), b: mesh.tensor([0]) }), /its shape is \[2\]; the model's \[1\]/);
    assert.throws(() => stateOf(mesh, { sum: mesh.tensor([1]).add(1) }), ConfigError);
  });

  it("keeps the newest, and those of round steps", async () => {
    await using mesh = await Mesh.open({ device: "cpu", axes: { tp: 2 } });
    const tensors = { w: mesh.tensor([1, 2, 3], { spec: ["tp"] }) };
    await using checkpointer = new Checkpointer(at("keep"), { keep: 2, keepEvery: 4 });
    for (let step = 1; step <= 9; step++) {
      const { saved } = await checkpointer.save(stateOf(mesh, tensors, { step }));
      await saved;
    }
    await checkpointer.flush();
    const names = readdirSync(at("keep")).sort();
    assert.deepEqual(names, ["latest", "step-00000004", "step-00000008", "step-00000009"]);
    assert.equal(readFileSync(at("keep/latest"), "utf8"), "step-00000009\n");
    using stored = await StoredCheckpoint.open(at("keep/step-00000009"));
    assert.equal((stored.record.parent as { step: number }).step, 8);
    // The same step again, as after a rollback: the new one replaces the old.
    await checkpointer.save(stateOf(mesh, tensors, { step: 9 }));
    await checkpointer.flush();
    assert.deepEqual(readdirSync(at("keep")).sort(), [...names.slice(0, 3), "step-00000009.1"]);
    await checkpointer.discardAfter(at("keep/step-00000008"));
    assert.deepEqual(readdirSync(at("keep")).sort(), names.slice(0, 3));
  });

  it("copies at the call: later steps do not change it", async () => {
    await using mesh = await Mesh.open({ device: "cpu", axes: { tp: 2 } });
    const w = mesh.tensor([1, 2, 3, 4], { spec: ["tp"] });
    await using checkpointer = new Checkpointer(at("copy"));
    const state = stateOf(mesh, { w }, { step: 1 });
    await checkpointer.prepare(state);
    const pending = await checkpointer.save(state);
    mesh.store.write(state.tensors[0]!.id, Float32Array.of(9, 9, 9, 9));
    await pending.saved;
    await checkpointer.load(state);
    assert.deepEqual([...(await w.data())], [1, 2, 3, 4]);
  });

  it("passes over a damaged one with a warning, and says so when all are", async () => {
    await using mesh = await Mesh.open({ device: "cpu", axes: {} });
    const w = mesh.tensor([1]);
    for (const step of [1, 2, 3]) {
      mesh.store.write(stateOf(mesh, { w }).tensors[0]!.id, Float32Array.of(step));
      await saveCheckpoint(at("bad"), stateOf(mesh, { w }, { step }));
    }
    const damage = (step: number): void => {
      const file = at(`bad/step-0000000${step}/device-0000.safetensors`);
      const bytes = readFileSync(file);
      bytes[bytes.length - 1]! ^= 1;
      writeFileSync(file, bytes);
    };
    damage(3);
    const warnings: string[] = [];
    const load = (): Promise<unknown> =>
      loadCheckpoint(at("bad"), stateOf(mesh, { w }), { onWarning: (text) => warnings.push(text) });
    await load();
    assert.deepEqual([...(await w.data())], [2]);
    assert.match(warnings[0]!, /passed over: .*step-00000003\/device-0000.safetensors, tensor "w": its bytes are not/);
    damage(2);
    damage(1);
    await assert.rejects(load(), /step-00000003/);
    assert.deepEqual([...(await w.data())], [2], "nothing was changed");
    await assert.rejects(openCheckpoint(at("bad/step-00000001")), CheckpointError);
    await assert.rejects(openCheckpoint(at("nowhere")), /no checkpoint is there/);
  });

  it("stops on a signal and leaves nothing of itself", async () => {
    await using mesh = await Mesh.open({ device: "cpu", axes: {} });
    const state = stateOf(mesh, { w: mesh.tensor([1, 2, 3]) });
    const controller = new AbortController();
    const saving = saveCheckpoint(at("stop"), state, { signal: controller.signal });
    controller.abort();
    await assert.rejects(saving, AbortedError);
    const left = await readdirOrNothing(at("stop"));
    assert.deepEqual(left, []);
  });
});

async function readdirOrNothing(folder: string): Promise<string[]> {
  try {
    return readdirSync(path.resolve(folder));
  } catch {
    return [];
  }
}
