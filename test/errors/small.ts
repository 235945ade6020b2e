// What these tests share: a small model, a step on it, and ways to say which error is meant.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { MeshworkError } from "../../lib/core/errors.ts";
import { type ConfigJson, parseModelConfig } from "../../lib/nn/config.ts";
import type { LanguageModel } from "../../lib/nn/language-model.ts";
import { createModel } from "../../lib/nn/load.ts";
import { adamw } from "../../lib/optim/optimizer.ts";
import type { Mesh } from "../../lib/tensor/mesh.ts";
import { type TrainStep, type TrainStepOptions, trainStep } from "../../lib/train/step.ts";

type Kind = new (message: string) => MeshworkError;

/** config.json of a model of 16 tokens and 8 positions. */
export const smallConfig: ConfigJson = {
  model_type: "gpt2",
  vocab_size: 16,
  n_positions: 8,
  n_embd: 8,
  n_layer: 1,
  n_head: 2,
};

/** Samples and tokens of the steps here. */
export const [samples, tokens] = [4, 8];

export function smallModel(): LanguageModel {
  return createModel(parseModelConfig(smallConfig));
}

/** Options of a step on the model; `changes` may be of any kind. */
export function smallOptions(model: LanguageModel, changes: object = {}): TrainStepOptions<"inputs" | "targets"> {
  return {
    loss: ({ inputs, targets }) => model.loss(inputs, targets),
    optimizer: adamw({ learningRate: 1e-3 }),
    batchSize: samples,
    batch: model.batchFields(tokens),
    ...changes,
  };
}

export function smallStep(mesh: Mesh, changes: object = {}): Promise<TrainStep<"inputs" | "targets">> {
  const model = smallModel();
  return trainStep(mesh, model, smallOptions(model, changes));
}

/** A batch that is as it should be. */
export function smallBatch() {
  const ids = Int32Array.from({ length: samples * tokens }, (_, i) => (i * 5) % 16);
  return { inputs: ids, targets: ids.map((id) => (id + 5) % 16) };
}

/** Fails unless the call throws, or rejects with, an error of this kind and message. */
export async function refuses(what: string, call: () => unknown, kind: Kind, message: RegExp): Promise<void> {
  const error = await failure(call);
  assert.ok(error instanceof kind, `${what}: ${error}`);
  assert.match(error.message, message, what);
}

/** What the call throws or rejects with; undefined where it does not. */
export async function failure(call: () => unknown): Promise<unknown> {
  try {
    await call();
    return undefined;
  } catch (error) {
    return error ?? "nothing";
  }
}

/** Values that are wrong nearly everywhere. */
export const hostile: readonly unknown[] = [
  null,
  Number.NaN,
  -1,
  1.5,
  "2",
  {},
  [[]],
  10n,
  Number.POSITIVE_INFINITY,
  2 ** 53,
  Symbol("s"),
  () => 1,
];

/** Fails where a call throws anything but meshwork's own errors. It may succeed. */
export async function tolerates(what: string, call: () => unknown): Promise<void> {
  const error = await failure(call);
  assert.ok(error === undefined || error instanceof MeshworkError, `${what}: ${error}`);
}

/** A folder of its own for each test of a suite. */
export function scratchFolder(): (name: string) => string {
  let folder = "";
  beforeEach(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), "meshwork-errors-"));
  });
  afterEach(() => rmSync(folder, { recursive: true }));
  return (name) => path.join(folder, name);
}
