// Training steps that make no sense: refused before anything runs, by kinds of their own, in the caller's terms.
import assert from "node:assert/strict";
import { AbortedError, ConfigError, DataError, MeshError, PlanError, ShapeError } from "../../lib/core/errors.ts";
import { adamw, sgd } from "../../lib/optim/optimizer.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { lossStep } from "../../lib/train/forward.ts";
import { Placement } from "../../lib/train/placement.ts";
import { trainStep } from "../../lib/train/step.ts";
import {
  hostile,
  refuses,
  samples,
  smallBatch,
  smallModel,
  smallOptions,
  smallStep,
  tolerates,
  tokens,
} from "./small.ts";

/** The small model's arrays, of which none says where its sequence is. */
const unmarked = Object.fromEntries(
  Object.entries(smallModel().batchFields(tokens)).map(([name, field]) => [name, { ...field, sequence: undefined }]),
);

/** Opens a mesh, tries to make a step there, and closes it. */
async function stepOn(axes: Readonly<Record<string, number>>, changes: object = {}): Promise<void> {
  await using mesh = await Mesh.open({ axes, threads: 1 });
  (await smallStep(mesh, changes))[Symbol.dispose]();
}

describe("errors of training steps", function () {
  this.timeout(20_000);
  it("devices without work", async () => {
    const cases: readonly (readonly [Readonly<Record<string, number>>, object, RegExp])[] = [
      [{ dp: 5 }, {}, /dp=5: devices with dp=4 would have no work in the whole step; use dp=4 or less/],
      [{ dp: 5 }, { microbatches: 4 }, /use dp=4 or less/],
      [{ dp: 2 }, { batchSize: 1 }, /use dp=1 or less/],
      [{ tp: 70 }, {}, /devices with tp=\d+ would have no work in the whole step; use tp=\d+ or less/],
      [{ cp: 9 }, {}, /devices with cp=\d would have no work in the whole step; use cp=\d or less/],
      [{ cp: 2 }, { batch: unmarked }, /axis cp splits nothing in this step; .*"sequence"/],
      [{ mine: 2 }, {}, /axis mine splits nothing in this step; leave it out/],
      [{ pp: 7 }, { microbatches: 1 }, /blocks cannot fill 7 pipeline stages; use at most \d/],
      [{ pp: 2 }, { stageOf: () => 0 }, /no module is assigned to stage 1 of 2/],
      [{ pp: 2 }, { stageOf: () => 2 }, /is assigned to stage 2; stages are 0 to 1/],
    ];
    for (const [axes, changes, message] of cases) {
      await refuses(JSON.stringify(axes), () => stepOn(axes, changes), PlanError, message);
    }
  });

  it("a batch smaller than twice the stages is cut into fewer microbatches by default", () =>
    stepOn({ pp: 2 }, { batchSize: 2 }));

  it("what is not supported yet", async () => {
    await refuses(
      "more stages than blocks",
      () => stepOn({ pp: 2 }, { schedule: "interleaved-1f1b", virtualStages: 9 }),
      PlanError,
      /blocks cannot fill 18 pipeline stages; use at most \d/,
    );
    await refuses(
      "stages of a schedule that has its own number",
      () => stepOn({ pp: 2 }, { schedule: "zb-v", virtualStages: 2 }),
      ConfigError,
      /virtual stages are interleaved-1f1b's/,
    );
    await refuses("a typo", () => stepOn({ pp: 2 }, { schedule: "gpip" }), PlanError, /no schedule is named "gpip"/);
    await refuses(
      "f8",
      () => stepOn({}, { precision: "f8" }),
      ConfigError,
      /precision must be f32, bf16 or fp16, not "f8"/,
    );
  });

  it("an empty batch, or one too small to be cut", async () => {
    await refuses("0", () => stepOn({}, { batchSize: 0 }), PlanError, /the batch is empty/);
    await refuses(
      "-1",
      () => stepOn({}, { batchSize: -1 }),
      ConfigError,
      /batchSize must be a whole number from 1 .*not -1/,
    );
    await refuses("5 parts", () => stepOn({}, { microbatches: 5 }), PlanError, /4 samples cannot be cut into 5 micro/);
    await refuses("2^31 parts", () => stepOn({}, { microbatches: 2 ** 31 }), PlanError, /one would be empty/);
  });

  it("more memory than there is", async () => {
    const huge = { batchSize: 2 ** 30, microbatches: 1 };
    await refuses(
      "a device",
      () => stepOn({}, huge),
      PlanError,
      /would take \d+ GiB; 128 GiB are the most|needs .* memory/,
    );
    const many = { batchSize: 2 ** 24, microbatches: 1 };
    await refuses("all", () => stepOn({}, many), PlanError, /GiB/);
  });

  it("losses that are no scalar, no tensor, or of no parameter", async () => {
    await using mesh = await Mesh.open({ threads: 1 });
    const model = smallModel();
    const make = (loss: unknown) => () =>
      Reflect.apply(trainStep, null, [mesh, model, smallOptions(model, { loss: () => loss })]);
    const nll = ({ inputs }: Record<string, never>) => model.call(inputs!);
    const matrix = smallOptions(model, { loss: nll });
    await refuses(
      "logits",
      () => trainStep(mesh, model, matrix),
      ShapeError,
      /must be one number, not of shape \[4, 8, 16\]/,
    );
    for (const value of [undefined, null, 1, "x"]) {
      await refuses(String(value), make(value), ConfigError, /the loss must be a tensor or named terms/);
    }
    await refuses("a term", make({ a: 1 }), ConfigError, /loss term a must have tensors sum and count/);
    await refuses("no terms", make({}), PlanError, /the loss has no term/);
    const constant = smallOptions(model, { loss: ({ targets }: { targets: never }) => lossOfNothing(targets) });
    await refuses(
      "no parameter",
      () => trainStep(mesh, model, constant),
      PlanError,
      /depends on no trainable parameter/,
    );
  });

  it("parameters of another model", async () => {
    await using mesh = await Mesh.open({ threads: 1 });
    const options = smallOptions(smallModel());
    await refuses(
      "a loss",
      () => trainStep(mesh, smallModel(), options),
      PlanError,
      /reads parameter \S+, which is none of/,
    );
  });

  it("hostile options", async () => {
    await using mesh = await Mesh.open({ threads: 1 });
    const model = smallModel();
    const make = (...args: unknown[]) => Reflect.apply(trainStep, null, args);
    for (const value of hostile) {
      for (const key of [
        ...["loss", "optimizer", "batchSize", "microbatches", "schedule", "precision", "clipNorm", "seed", "stageOf"],
      ]) {
        const options = smallOptions(model, { [key]: value });
        await tolerates(`${key} ${String(value)}`, async () => (await make(mesh, model, options))[Symbol.dispose]());
      }
      await tolerates(`mesh ${String(value)}`, () => make(value, model, smallOptions(model)));
      await tolerates(`model ${String(value)}`, () => make(mesh, value, smallOptions(model)));
      await tolerates(`options ${String(value)}`, () => make(mesh, model, value));
      for (const key of ["dtype", "shape", "below"]) {
        const batch = { ...model.batchFields(tokens), inputs: { ...model.batchFields(tokens).inputs, [key]: value } };
        const call = async () => (await make(mesh, model, smallOptions(model, { batch })))[Symbol.dispose]();
        await tolerates(`${key} of a field ${String(value)}`, call);
      }
      if (typeof value === "symbol") continue;
      await tolerates("adamw", () => Reflect.apply(adamw, null, [{ learningRate: value }]));
      await tolerates("sgd", () => Reflect.apply(sgd, null, [{ learningRate: value }]));
    }
    await refuses("a mesh", () => make({}, model, smallOptions(model)), MeshError, /must be a Mesh, not an object/);
  });

  it("batches of the wrong length, kind or names", async () => {
    await using mesh = await Mesh.open({ axes: { dp: 2 }, threads: 1 });
    using step = await smallStep(mesh);
    const good = smallBatch();
    const run =
      (changes: object, ...more: unknown[]) =>
      () =>
        Reflect.apply(step.run, step, [{ ...good, ...changes }, ...more]);
    const short = good.inputs.subarray(1);
    await refuses("short", run({ inputs: short }), ShapeError, /"inputs" of shape \[4, 8\] takes 32 elements.* got 31/);
    await refuses("empty", run({ targets: [] }), ShapeError, /"targets" of shape .* got 0/);
    await refuses("a missing array", run({ targets: undefined }), DataError, /the batch lacks "targets"/);
    await refuses(
      "no batch",
      () => Reflect.apply(step.run, step, [null]),
      DataError,
      /a batch is an object of arrays, not null/,
    );
    for (const value of hostile) {
      await refuses(String(value), run({ inputs: value }), Array.isArray(value) ? ShapeError : DataError, /"inputs"/);
    }
    const big = new BigInt64Array(samples * tokens);
    await refuses("big integers", run({ inputs: big }), DataError, /must be an array of numbers/);
    for (const learningRate of [Number.NaN, -1, "1"]) {
      await refuses(
        "a rate",
        run({}, { learningRate }),
        ConfigError,
        /learningRate must be a number that is not negative/,
      );
    }
    const aborted = AbortSignal.abort();
    await refuses("aborted", run({}, { signal: aborted }), AbortedError, /its signal is aborted/);
    assert.equal(step.step, 0);
    assert.ok(Number.isFinite((await step.run(good)).loss));
  });

  it("ids outside the vocabulary, with value and position", async () => {
    await using mesh = await Mesh.open({ threads: 1 });
    using step = await smallStep(mesh);
    const model = smallModel();
    const good = smallBatch();
    for (const [id, at, place] of [
      [16, 0, "sample 0, element 0"],
      [-1, 9, "sample 1, element 1"],
      [-100, 31, "sample 3, element 7"],
      [2 ** 31 - 1, 8, "sample 1, element 0"],
    ] as const) {
      const inputs = good.inputs.with(at, id);
      const message = new RegExp(
        `"inputs" holds ${id} at position ${at} \\(${place}\\); a whole number from 0 to 15 is`,
      );
      await refuses(`id ${id}`, () => step.run({ ...good, inputs }), DataError, message);
    }
    const numbers = [...good.inputs];
    for (const value of [1.5, Number.NaN, "3"]) {
      const inputs = Reflect.apply(Array.prototype.with, numbers, [3, value]);
      await refuses(String(value), () => step.run({ ...good, inputs }), DataError, /at position 3/);
    }
    const targets = good.targets.with(5, 16);
    await refuses(
      "a target",
      () => step.run({ ...good, targets }),
      DataError,
      /"targets" holds 16 .*from 0 to 15, or -100/,
    );
    assert.equal(step.step, 0);
    await step.run({ ...good, targets: good.targets.with(5, -100) });
    const placement = await Placement.of(mesh, model);
    using evaluation = await lossStep(
      placement,
      (batch) => model.loss(batch.inputs!, batch.targets!),
      { ...model.batchFields(tokens) },
      { batchSize: samples },
    );
    await refuses("evaluation", () => evaluation.run({ ...good, targets }), DataError, /"targets" holds 16/);
  });
});

/** A scalar that no parameter has a part in. */
function lossOfNothing(targets: ReturnType<Mesh["tensor"]>) {
  return targets.cast("f32").sum();
}
