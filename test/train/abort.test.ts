// Steps that are given up while they run: all of a step happens or nothing of it, and the mesh goes on.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { AbortedError } from "../../lib/core/errors.ts";
import { parseModelConfig } from "../../lib/nn/config.ts";
import { createModel } from "../../lib/nn/load.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { trainStep } from "../../lib/train/step.ts";
import { smallConfig, smallOptions } from "../errors/small.ts";

const steps = 6;
// Large enough that a step takes some milliseconds.
const [samples, tokens] = [8, 64];
const config = parseModelConfig({ ...smallConfig, n_positions: tokens, n_embd: 64, n_layer: 4 });
const ids = Int32Array.from({ length: samples * tokens }, (_, i) => (i * 5) % 16);
const batch = { inputs: ids, targets: ids.map((id) => (id + 5) % 16) };

async function lossesOf(axes: Readonly<Record<string, number>>, disturbed: boolean): Promise<[number[], number]> {
  await using mesh = await Mesh.open({ axes, threads: 1 });
  const model = createModel(config);
  const options = smallOptions(model, { batchSize: samples, batch: model.batchFields(tokens) });
  using step = await trainStep(mesh, model, options);
  const losses: number[] = [];
  let aborted = 0;
  for (let attempt = 0; losses.length < steps; attempt++) {
    const done = step.step;
    const abort = new AbortController();
    const running = step.run(batch, { signal: abort.signal });
    // From at once to some time behind the end.
    if (disturbed && attempt % 8 !== 7) {
      if (attempt % 8 > 0) await sleep((attempt % 8) / 2);
      abort.abort(new Error("enough"));
    }
    try {
      losses.push((await running).loss);
      assert.equal(step.step, done + 1);
    } catch (error) {
      assert.ok(error instanceof AbortedError && error.cause instanceof Error, String(error));
      assert.match(error.message, /given up/);
      assert.equal(step.step, done);
      aborted++;
    }
    assert.equal(mesh.engine.busy, false);
  }
  return [losses, aborted];
}

describe("a step that is given up while it runs", function () {
  this.timeout(60_000);

  for (const axes of [{}, { dp: 2 }, { pp: 2, tp: 2 }]) {
    it(`changes nothing, or all that a step changes, on ${JSON.stringify(axes)}`, async () => {
      const [undisturbed] = await lossesOf(axes, false);
      const [losses, aborted] = await lossesOf(axes, true);
      assert.deepEqual(losses, undisturbed);
      assert.ok(aborted > 0);
    });
  }

  it("may wait behind others, which go on", async () => {
    await using mesh = await Mesh.open({ threads: 1 });
    const model = createModel(config);
    using step = await trainStep(
      mesh,
      model,
      smallOptions(model, { batchSize: samples, batch: model.batchFields(tokens) }),
    );
    // On a busy machine two steps may be over before this thread gives the second up: it is tried again then.
    for (let given = 0, attempt = 0; given === 0; attempt++) {
      assert.ok(attempt < 100, "no step was given up");
      const abort = new AbortController();
      const first = step.run(batch);
      const second = step.run(batch, { signal: abort.signal });
      const third = step.run(batch);
      abort.abort();
      await second.catch((error: unknown) => {
        assert.ok(error instanceof AbortedError, String(error));
        given++;
      });
      assert.ok((await third).loss < (await first).loss);
    }
  });
});
