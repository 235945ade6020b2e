// Model folders in Hugging Face's format: config.json and safetensors, read into a model and written from one.
import { expectFunction, expectObject, expectText } from "../core/check.ts";
import path from "node:path";
import { findWeights, type TensorInfo, Weights, writeSafetensors } from "../checkpoint/safetensors.ts";
import { makeFolders, writeTextAtomically } from "../core/atomic-file.ts";
import { CheckpointError, FileError, systemReason } from "../core/errors.ts";
import { nearest } from "../core/nearest.ts";
import { type Shape, sameShape, shapeText } from "../core/shape.ts";
import { Parameter } from "../tensor/parameter.ts";
import { type ConfigJson, type ModelConfig, readModelConfig } from "./config.ts";
import { configJson } from "./config-json.ts";
import { GPT2 } from "./gpt2.ts";
import type { LanguageModel } from "./language-model.ts";
import { Llama } from "./llama.ts";

/** Stored with some models, recomputed by all: masks, rotary frequencies. */
const DERIVED = [/(^|\.)attn\.(masked_)?bias$/, /(^|\.)rotary_emb\.inv_freq$/];
const PREFIX = "transformer.";

/** Gives a parameter's values, row-major in float32. */
export type ReadParameter = (parameter: Parameter) => Float32Array | Promise<Float32Array>;

/** A new model with fresh weights. Throws ConfigError for an architecture that is not supported. */
export function createModel(config: ModelConfig): LanguageModel {
  expectObject("a model's config", config);
  return config.architecture === "gpt2" ? new GPT2(config) : new Llama(config);
}

/**
 * The model of a folder's config.json, with the folder's weights, or fresh ones when it has none.
 * @throws {ConfigError} for a config that is malformed or not supported.
 * @throws {CheckpointError} for a weight that is missing, unknown, or of another shape.
 */
export async function loadModel(folder: string): Promise<LanguageModel> {
  const { config, json } = await readModelConfig(folder);
  const model = createModel(config);
  const file = await findWeights(folder);
  model.source = { json, names: file === undefined ? new Map() : await loadWeights(folder, model) };
  return model;
}

/** Fills every parameter from files. Returns the names under which they were found. */
async function loadWeights(folder: string, model: LanguageModel): Promise<Map<Parameter, string>> {
  await using weights = await Weights.open(folder);
  const names = placesOf(model);
  const found = new Map<Parameter, TensorInfo>();
  for (const [parameter, places] of names) {
    const info = places.map((name) => weights.find(name)).find((tensor) => tensor !== undefined);
    if (info === undefined) throw missing(folder, parameter);
    expectShape(info, parameter.stored.shape);
    found.set(parameter, info);
  }
  refuseUnknown(weights, new Set([...names.values()].flat()));
  for (const [parameter, info] of found) parameter.load(await weights.read(info.name), info.shape);
  return new Map([...found].map(([parameter, { name }]) => [parameter, name]));
}

/** Each parameter's names: its own first, then those of modules that it is tied to. */
function placesOf(model: LanguageModel): Map<Parameter, string[]> {
  const places = new Map(model.parameters().map((parameter) => [parameter, [parameter.stored.name]]));
  for (const [modulePath, module] of model.namedModules()) {
    for (const [name, value] of Object.entries(module)) {
      if (!(value instanceof Parameter)) continue;
      const place = modulePath === "" ? name : `${modulePath}.${name}`;
      if (place !== value.path) places.get(value)?.push(place);
    }
  }
  return places;
}

function missing(folder: string, { stored: { name, shape } }: Parameter): CheckpointError {
  return new CheckpointError(`${folder}, tensor "${name}": it is missing; shape ${shapeText(shape)} is expected`, {
    details: { folder, tensor: name, expected: shape },
  });
}

function expectShape({ name, shape, file }: TensorInfo, expected: Shape): void {
  if (sameShape(shape, expected)) return;
  throw new CheckpointError(
    `${file}, tensor "${name}": its shape is ${shapeText(shape)}; config.json says ${shapeText(expected)}`,
    { details: { file, tensor: name, found: shape, expected } },
  );
}

function refuseUnknown(weights: Weights, known: ReadonlySet<string>): void {
  for (const { name, shape, file } of weights.tensors.values()) {
    const bare = name.startsWith(PREFIX) ? name.slice(PREFIX.length) : name;
    if (known.has(name) || known.has(bare) || DERIVED.some((pattern) => pattern.test(name))) continue;
    throw new CheckpointError(
      `${file}, tensor "${name}" of shape ${shapeText(shape)}: the model has none of this name; ` +
        `the nearest is "${nearest(bare, known)}"`,
      { details: { file, tensor: name, found: shape } },
    );
  }
}

/**
 * Writes a folder that loadModel() and Hugging Face's libraries read: config.json (as it was read, if it was) and
 * model.safetensors in float32, under the names the model was read with. What is tied is stored once.
 * @throws {FileError} where the disk refuses.
 */
export async function saveModel(folder: string, model: LanguageModel, read: ReadParameter): Promise<void> {
  expectText("the folder of a model", folder);
  expectObject("a model to save", model);
  expectFunction("the model's parameters()", model.parameters);
  expectFunction("what reads a parameter", read);
  await makeFolder(folder);
  const tensors = model.parameters().map((parameter) => ({
    name: model.source?.names.get(parameter) ?? parameter.stored.name,
    shape: parameter.stored.shape,
    read: () => read(parameter),
  }));
  await writeSafetensors(path.join(folder, "model.safetensors"), tensors);
  const json: ConfigJson = model.source?.json ?? configJson(model.config);
  await writeTextAtomically(path.join(folder, "config.json"), `${JSON.stringify(json, null, 2)}\n`);
}

async function makeFolder(folder: string): Promise<void> {
  try {
    await makeFolders(folder);
  } catch (cause) {
    throw new FileError(`${folder}: ${systemReason(cause)}`, { cause, details: { path: folder } });
  }
}
