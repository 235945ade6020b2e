// Model folders in Hugging Face's format: config.json and safetensors, read into a model and written from one.
import { expectFunction, expectObject, expectText } from "../core/check.ts";
import path from "node:path";
import {
  findWeights,
  type TensorInfo,
  type TensorSource,
  Weights,
  writeSafetensors,
} from "../checkpoint/safetensors.ts";
import { makeFolders, writeTextAtomically } from "../core/atomic-file.ts";
import { CheckpointError, FileError, systemReason } from "../core/errors.ts";
import { nearest } from "../core/nearest.ts";
import { type Shape, sameShape, shapeText, sizeOf } from "../core/shape.ts";
import { Parameter, type Stored } from "../tensor/parameter.ts";
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
 * The model of a folder's config.json, or of a changed one, with the folder's weights, or fresh ones when it has none.
 * @throws {ConfigError} for a config that is malformed or not supported.
 * @throws {CheckpointError} for a weight that is missing, unknown, or of another shape.
 */
export async function loadModel(folder: string, changed?: ModelConfig): Promise<LanguageModel> {
  const { config, json } = await readModelConfig(folder);
  const model = createModel(changed ?? config);
  const file = await findWeights(folder);
  model.source = { json, names: file === undefined ? new Map() : await loadWeights(folder, model) };
  return model;
}

/** Fills every parameter from files. Returns the names under which they, or their parts, were found. */
async function loadWeights(folder: string, model: LanguageModel): Promise<Map<Parameter, readonly string[]>> {
  await using weights = await Weights.open(folder);
  const names = placesOf(model);
  const found = new Map<Parameter, readonly TensorInfo[]>();
  for (const [parameter, places] of names) {
    const parts = parameter.parts.map((part, i) => {
      const info = places.map((list) => weights.find(list[i]!)).find((tensor) => tensor !== undefined);
      if (info === undefined) throw missing(folder, part);
      expectShape(info, part.shape);
      return info;
    });
    found.set(parameter, parts);
  }
  refuseUnknown(weights, new Set([...names.values()].flat(2)));
  for (const [parameter, parts] of found) {
    const first = await weights.read(parts[0]!.name);
    if (parts.length === 1) {
      parameter.load(first, parts[0]!.shape);
      continue;
    }
    const whole = new Float32Array(sizeOf(parameter.shape));
    for (const [i, { name }] of parts.entries()) {
      whole.set(i === 0 ? first : await weights.read(name), (i * whole.length) / parts.length);
    }
    parameter.load(whole, parameter.stored.shape);
  }
  return new Map([...found].map(([parameter, parts]) => [parameter, parts.map(({ name }) => name)]));
}

/** The names of each parameter's parts: its own first, then those of modules that it is tied to. */
function placesOf(model: LanguageModel): Map<Parameter, (readonly string[])[]> {
  const own = (parameter: Parameter): readonly string[] => parameter.parts.map(({ name }) => name);
  const places = new Map(model.parameters().map((parameter) => [parameter, [own(parameter)]]));
  for (const [modulePath, module] of model.namedModules()) {
    for (const [name, value] of Object.entries(module)) {
      if (!(value instanceof Parameter)) continue;
      const place = modulePath === "" ? name : `${modulePath}.${name}`;
      if (place !== value.path) places.get(value)?.push([place]);
    }
  }
  return places;
}

function missing(folder: string, { name, shape }: Stored): CheckpointError {
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

/** The tensors of a model's folder, under the names it was read with: each is read when its turn comes. */
export function fileTensors(model: LanguageModel, read: ReadParameter): TensorSource[] {
  return model.parameters().flatMap((parameter) => {
    const { parts } = parameter;
    const names = model.source?.names.get(parameter) ?? parts.map(({ name }) => name);
    let whole: Float32Array | undefined;
    return parts.map(({ shape }, i) => ({
      name: names[i]!,
      shape,
      read: async () => {
        whole ??= await read(parameter);
        const size = sizeOf(shape);
        const part = parts.length === 1 ? whole : whole.subarray(i * size, (i + 1) * size);
        if (i === parts.length - 1) whole = undefined;
        return part;
      },
    }));
  });
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
  await writeSafetensors(path.join(folder, "model.safetensors"), fileTensors(model, read));
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
