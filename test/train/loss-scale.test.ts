// Precision fp16: losses beside float32, the loss scale as state on all devices, skipped steps, checkpoints.
import assert from "node:assert/strict";
import { loadCheckpoint } from "../../lib/checkpoint/load.ts";
import { saveCheckpoint } from "../../lib/checkpoint/save.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { type TrainStepOptions, trainStep } from "../../lib/train/step.ts";
import { testDevice } from "../device.ts";
import { scratchFolder, smallBatch, smallModel, smallOptions } from "../errors/small.ts";

describe("precision fp16", function () {
  this.timeout(60_000);
  const at = scratchFolder();
  const open = (axes: Readonly<Record<string, number>> = {}) =>
    Mesh.open({ device: testDevice, axes, threads: 1, timeoutMs: 20_000 });
  const stepOn = async (mesh: Mesh<string>, precision: TrainStepOptions["precision"] = "fp16", more: object = {}) => {
    const model = smallModel();
    const step = await trainStep(mesh, model, smallOptions(model, { precision, clipNorm: 1, ...more }));
    const id = `${model.parameters()[0]!.id}:loss_scale`;
    return { model, step, id };
  };
  const losses = async (axes: Readonly<Record<string, number>>, precision: TrainStepOptions["precision"]) => {
    await using mesh = await open(axes);
    const { step } = await stepOn(mesh, precision);
    using _ = step;
    const found = [];
    for (let k = 0; k < 3; k++) found.push(await step.run(smallBatch()));
    return found;
  };

  it("gives float32's losses and gradient norms within half a percent, on every kind of mesh", async () => {
    const expected = await losses({}, "f32");
    for (const axes of [{}, { dp: 2 }, { tp: 2 }, { pp: 2 }, { fsdp: 2 }, { pp: 2, tp: 2 }]) {
      const found = await losses(axes, "fp16");
      found.forEach((result, k) => {
        const { loss, gradNorm } = expected[k]!;
        const where = `step ${k + 1} on ${JSON.stringify(axes)}`;
        assert.ok(Math.abs(result.loss - loss) <= 5e-3 * loss, `loss ${result.loss}, not ${loss}, ${where}`);
        assert.ok(Math.abs(result.gradNorm - gradNorm) <= 5e-3 * gradNorm, `norm ${result.gradNorm}, ${where}`);
        assert.deepEqual([result.lossScale, result.nonFinite], [2 ** 16, undefined], where);
      });
    }
  });

  it("halves the scale where gradients overflow, and leaves everything else as it is", async () => {
    for (const axes of [{}, { pp: 2 }, { dp: 2, tp: 2 }]) {
      await using mesh = await open(axes);
      const { model, step, id } = await stepOn(mesh);
      using _ = step;
      await step.run(smallBatch());
      const ids = model.parameters().flatMap((p) => [p.id, `${p.id}:m`, `${p.id}:v`]);
      const before = ids.map((each) => [...mesh.store.read(each)]);
      mesh.store.write(id, Float32Array.of(2 ** 40, 7));
      const result = await step.run(smallBatch());
      assert.ok(result.nonFinite !== undefined && !Number.isFinite(result.gradNorm));
      assert.ok(Number.isFinite(result.loss));
      assert.equal(result.lossScale, 2 ** 40);
      assert.deepEqual(
        ids.map((each) => [...mesh.store.read(each)]),
        before,
      );
      for (const { rank } of mesh.store.holders(id)) {
        assert.deepEqual([...mesh.store.readShard(id, rank)], [2 ** 39, 0], `device ${rank}`);
      }
    }
  });

  it("doubles the scale after 2000 good steps in a row", async () => {
    await using mesh = await open({ pp: 2 });
    const { step, id } = await stepOn(mesh);
    using _ = step;
    mesh.store.write(id, Float32Array.of(1024, 1998));
    for (const expected of [
      [1024, 1999],
      [2048, 0],
      [2048, 1],
    ]) {
      assert.equal((await step.run(smallBatch())).nonFinite, undefined);
      assert.deepEqual([...mesh.store.read(id)], expected);
    }
  });

  it("is saved in checkpoints; steps of other precisions load them, and the other way round", async () => {
    await using mesh = await open();
    const { step, id } = await stepOn(mesh);
    using _ = step;
    mesh.store.write(id, Float32Array.of(4096, 12));
    await step.run(smallBatch());
    await saveCheckpoint(at("half"), step.state());
    await using other = await open({ dp: 2 });
    const again = await stepOn(other);
    using _again = again.step;
    await loadCheckpoint(at("half"), again.step.state());
    assert.deepEqual([...other.store.read(again.id)], [4096, 13]);
    await using third = await open({ tp: 2 });
    const wide = await stepOn(third, "f32");
    using _wide = wide.step;
    await loadCheckpoint(at("half"), wide.step.state());
    await saveCheckpoint(at("wide"), wide.step.state());
    await loadCheckpoint(at("wide"), again.step.state());
    assert.deepEqual([...other.store.read(again.id)], [4096, 13]);
  });
});
