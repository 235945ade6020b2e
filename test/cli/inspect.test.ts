// `meshwork inspect` on checkpoints, model folders and single files, and on two of them.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { writeSafetensors } from "../../lib/checkpoint/safetensors.ts";
import type { TensorDifference } from "../../lib/checkpoint/compare.ts";
import { saveCheckpoint } from "../../lib/checkpoint/save.ts";
import { stateOf } from "../../lib/checkpoint/state.ts";
import { runCommand } from "../../lib/cli/verbs.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { scratchFolder } from "../errors/small.ts";

describe("meshwork inspect", () => {
  const at = scratchFolder();

  async function inspect(...args: string[]) {
    let [stdout, stderr] = ["", ""];
    const io = { stdout: { write: (t: string) => (stdout += t) }, stderr: { write: (t: string) => (stderr += t) } };
    const code = await runCommand(["inspect", ...args], { ...io, signal: new AbortController().signal });
    return { code, stdout, stderr };
  }

  beforeEach(async () => {
    await using mesh = await Mesh.open({ device: "cpu", axes: { tp: 2 } });
    const tensors = {
      w: mesh.tensor(
        [
          [1, 2, 3],
          [4, 5, 6],
        ],
        { spec: [null, "tp"] },
      ),
      b: mesh.tensor([7]),
    };
    const first = await saveCheckpoint(at("run/checkpoints"), stateOf(mesh, tensors, { step: 1 }));
    mesh.store.write(stateOf(mesh, tensors).tensors[0]!.id, Float32Array.of(1, 2, 3, 4, 9, 6));
    await saveCheckpoint(at("run/checkpoints"), stateOf(mesh, tensors, { step: 2 }), { parent: first });
    await writeSafetensors(at("one.safetensors"), [
      { name: "transformer.w", shape: [6], read: () => Float32Array.of(1, 2, 3, 4, 5, 6) },
      { name: "other", shape: [], read: () => Float32Array.of(1) },
    ]);
  });

  it("lists the newest checkpoint of a run, with its lineage", async () => {
    const { code, stdout } = await inspect(at("run"), "--verify");
    assert.equal(code, 0);
    assert.match(stdout, /step-00000002: checkpoint, 2 tensors, 28 B\nstep 2, saved from tp=2, manifest [0-9a-f]{64}/);
    assert.match(stdout, /after step 1, manifest [0-9a-f]{16}\.\.\. .*step-00000001/);
    assert.match(stdout, /w +F32 +\[2, 3\] +24 +device-0000.safetensors and 1 more/);
    const json = JSON.parse((await inspect(at("run"), "--json")).stdout);
    assert.deepEqual([json.step, json.tensors.length, json.lineage[0].step, json.files.length], [2, 2, 1, 2]);
  });

  it("lists model folders and single files", async () => {
    const { stdout } = await inspect(at("one.safetensors"));
    assert.match(stdout, /weights, 2 tensors, 28 B/);
    assert.match(stdout, /transformer\.w +F32 +\[6\] +24 +one.safetensors/);
  });

  it("compares tensor by tensor: norms, the largest element, what is missing", async () => {
    const { stdout } = await inspect(at("run/checkpoints/step-00000001"), at("run"));
    assert.match(stdout, /w +9\.53939 +12\.1244 +4\.00000 +4\.00000 +\[1, 1\] +1\n/);
    assert.match(stdout, /1 tensors are the same, 1 differ/);
    const json = JSON.parse((await inspect(at("run"), at("one.safetensors"), "--json")).stdout);
    assert.deepEqual([json.onlyA, json.onlyB], [["b"], ["other"]]);
    assert.deepEqual([json.tensors[0].largest, json.tensors[0].at], [4, [1, 1]]);
  });

  it("compares elements of any dtype by their bits, and by value where the dtypes differ", async () => {
    const bytes = (array: ArrayBufferView): Uint8Array => new Uint8Array(array.buffer);
    const file = async (name: string, add: number, half: "BF16" | "F16"): Promise<string> => {
      const [f64, i64] = [Float64Array.of(1, Number.NaN, -0), BigInt64Array.of(2n ** 53n)];
      f64[0]! += add * 2 ** -50;
      i64[0]! += BigInt(add);
      await writeSafetensors(at(name), [
        { name: "double", shape: [3], dtype: "F64", read: () => bytes(f64) },
        { name: "long", shape: [1], dtype: "I64", read: () => bytes(i64) },
        // 448 and 2^-9; then one and the next one above it.
        { name: "eighth", shape: [2], dtype: "F8_E4M3", read: () => Uint8Array.of(0x7e, add === 0 ? 1 : 0x81) },
        { name: "half", shape: [1], dtype: half, read: () => bytes(Uint16Array.of(half === "BF16" ? 0x3f80 : 0x3c00)) },
      ]);
      return at(name);
    };
    const [a, b] = [await file("a.safetensors", 0, "BF16"), await file("b.safetensors", 1, "F16")];
    const { stdout, code } = await inspect(a, b, "--json");
    assert.equal(code, 0);
    const found = new Map<string, TensorDifference>();
    for (const tensor of JSON.parse(stdout).tensors) found.set(tensor.name, tensor);
    const of = (name: string): unknown[] => {
      const { differing, largest, at: index } = found.get(name)!;
      return [differing, largest, index];
    };
    assert.deepEqual(of("double"), [1, 2 ** -50, [0]]);
    assert.deepEqual(of("long"), [1, 0, [0]]);
    assert.deepEqual(of("eighth"), [1, 2 ** -8, [1]]);
    assert.deepEqual(of("half"), [0, 0, []]);
    assert.equal(found.get("eighth")!.normA, Math.hypot(448, 2 ** -9));
    assert.match((await inspect(a, a)).stdout, /4 tensors are the same, 0 differ/);
  });

  it("compares experts that are one tensor in a checkpoint with their own ones in models' files", async () => {
    await using mesh = await Mesh.open({ device: "cpu", axes: { ep: 2 } });
    const all = mesh.fromData([1, 2, 3, 4, 5, 6], [2, 3], { spec: ["ep"] });
    await saveCheckpoint(at("experts"), stateOf(mesh, { "h.0.experts.w1.weight": all }));
    const part = (expert: number, ...values: number[]) => ({
      name: `h.0.experts.${expert}.w1.weight`,
      shape: [3],
      read: () => Float32Array.from(values),
    });
    await writeSafetensors(at("experts.safetensors"), [part(0, 1, 2, 3), part(1, 4, 9, 6)]);
    for (const args of [
      [at("experts"), at("experts.safetensors")],
      [at("experts.safetensors"), at("experts")],
    ]) {
      const { onlyA, onlyB, tensors } = JSON.parse((await inspect(...args, "--json")).stdout);
      assert.deepEqual([onlyA, onlyB, tensors.length], [[], [], 2]);
      assert.deepEqual([tensors[0].differing, tensors[1].largest, tensors[1].at], [0, 4, [1]]);
    }
  });

  it("says what is wrong with exit code 1, and 2 for wrong usage", async () => {
    const file = at("run/checkpoints/step-00000002/device-0001.safetensors");
    const bytes = readFileSync(file);
    bytes[bytes.length - 1]! ^= 1;
    writeFileSync(file, bytes);
    const bad = await inspect(at("run"), "--verify");
    assert.deepEqual([bad.code, /device-0001.safetensors, tensor "\w"/.test(bad.stderr)], [1, true]);
    assert.equal((await inspect()).code, 2);
    assert.equal((await inspect(at("nothing"))).code, 1);
    assert.match((await inspect("--help")).stdout, /DIR \[DIR\]/);
  });
});
