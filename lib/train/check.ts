// Checks of a step's options and of the batches it is given, before anything is compiled or run.
import {
  expectDType,
  expectFunction,
  expectInteger,
  expectNotNegative,
  expectObject,
  expectSizes,
} from "../core/check.ts";
import { describe } from "../core/describe.ts";
import { ConfigError, DataError, DTypeError, PlanError, ShapeError } from "../core/errors.ts";
import { shapeText, sizeOf } from "../core/shape.ts";
import { recomputePolicies } from "../passes/remat.ts";
import { expectMesh, type Mesh } from "../tensor/mesh.ts";
import type { ForwardOptions } from "./forward.ts";
import type { Placeable } from "./placement.ts";
import type { TrainStepOptions } from "./step.ts";
import type { BatchField } from "./trace.ts";
import { defaultZero } from "./zero.ts";

/** A batch's arrays by name. */
type BatchArrays = Readonly<Record<string, ArrayLike<number>>>;

/** A description of a batch's arrays. */
type BatchFields = Readonly<Record<string, BatchField>>;

/** Throws ConfigError, PlanError, ... naming the option that makes no sense. */
export function checkTrainOptions(mesh: Mesh, model: Placeable, options: TrainStepOptions): void {
  expectMesh("trainStep's mesh", mesh);
  expectPlaceable(model);
  expectObject("trainStep's options", options);
  expectFunction("loss", options.loss);
  expectObject("optimizer", options.optimizer);
  expectFunction("optimizer.update", options.optimizer.update);
  checkForwardOptions(options.batch, options);
  const {
    schedule = "1f1b",
    virtualStages,
    recompute,
    compareRecompute = false,
    memory,
    clipNorm = 0,
    seed = 0,
    zero = defaultZero,
    bucketBytes,
    regather = "segment",
    prefetch,
    stageOf,
  } = options;
  if (virtualStages !== undefined) expectInteger("virtualStages", virtualStages, 1);
  if (recompute !== undefined && !recomputePolicies.includes(recompute)) {
    throw new ConfigError(`recompute must be ${recomputePolicies.join(", ")}, not ${describe(recompute)}`);
  }
  if (typeof compareRecompute !== "boolean") {
    throw new ConfigError(`compareRecompute must be true or false, not ${describe(compareRecompute)}`);
  }
  if (memory !== undefined) expectNotNegative("memory", memory);
  if (typeof schedule !== "string") throw new ConfigError(`schedule must be a name, not ${describe(schedule)}`);
  expectNotNegative("clipNorm", clipNorm);
  expectInteger("seed", seed, 0);
  expectInteger("zero", zero, 1, 3);
  if (!["segment", "step"].includes(regather)) {
    throw new ConfigError(`regather must be "segment" or "step", not ${describe(regather)}`);
  }
  if (prefetch !== undefined) expectInteger("prefetch", prefetch, 0);
  if (bucketBytes !== undefined) expectInteger("bucketBytes", bucketBytes, 0);
  if (stageOf !== undefined) expectFunction("stageOf", stageOf);
}

/** Throws ConfigError for what has no parameters to place. */
export function expectPlaceable(model: Placeable): void {
  expectObject("the model", model);
  expectFunction("the model's parameters()", model.parameters);
}

/** The part that all steps share. */
export function checkForwardOptions(fields: BatchFields, options: ForwardOptions): void {
  expectObject("a step's options", options);
  const { batchSize, microbatches, precision = "f32", sequenceParallel = "auto" } = options;
  if (batchSize === 0) throw new PlanError("the batch is empty: batchSize must be 1 or more");
  expectInteger("batchSize", batchSize, 1, 2 ** 31 - 1);
  if (microbatches !== undefined) expectInteger("microbatches", microbatches, 1);
  if ((microbatches ?? 1) > batchSize) {
    throw new PlanError(
      `a batch of ${batchSize} samples cannot be cut into ${microbatches} microbatches: one would be empty`,
    );
  }
  if (!["f32", "bf16", "fp16"].includes(precision)) {
    throw new ConfigError(`precision must be f32, bf16 or fp16, not ${describe(precision)}`);
  }
  if (!["auto", "on", "off"].includes(sequenceParallel)) {
    throw new ConfigError(`sequenceParallel must be auto, on or off, not ${describe(sequenceParallel)}`);
  }
  expectObject("batch", fields);
  for (const [name, field] of Object.entries(fields)) {
    expectObject(`batch.${name}`, field);
    const { dtype, shape, below, sequence } = field;
    expectDType(`the dtype of batch.${name}`, dtype);
    expectSizes(`the shape of batch.${name}`, shape);
    if (sequence !== undefined) expectInteger(`batch.${name}.sequence`, sequence, 0, shape.length - 1);
    if (below === undefined) continue;
    if (dtype !== "i32") throw new DTypeError(`batch.${name}: "below" bounds i32 arrays, not ${dtype}`);
    expectInteger(`batch.${name}.below`, below, 1, 2 ** 31);
  }
}

/** Takes a batch's arrays in the order of their fields. Throws DataError or ShapeError naming array and position. */
export function checkBatch(fields: BatchFields, batch: BatchArrays, batchSize: number): BatchArrays {
  if (typeof batch !== "object" || batch === null) {
    throw new DataError(`a batch is an object of arrays, not ${describe(batch)}`);
  }
  return Object.fromEntries(
    Object.entries(fields).map(([name, field]) => {
      const values = batch[name];
      if (values === undefined) throw new DataError(`the batch lacks "${name}"`);
      checkArray(name, field, values, batchSize);
      return [name, values];
    }),
  );
}

function checkArray(name: string, field: BatchField, values: ArrayLike<number>, batchSize: number): void {
  const isArray = Array.isArray(values) || (ArrayBuffer.isView(values) && !(values instanceof DataView));
  if (!isArray || values instanceof BigInt64Array || values instanceof BigUint64Array) {
    throw new DataError(`the batch's "${name}" must be an array of numbers, not ${describe(values)}`);
  }
  const shape = [batchSize, ...field.shape];
  if (values.length !== sizeOf(shape)) {
    const elements = `${sizeOf(shape)} elements, row after row`;
    throw new ShapeError(`the batch's "${name}" of shape ${shapeText(shape)} takes ${elements}; got ${values.length}`);
  }
  const bad = field.dtype === "i32" ? badInteger(field, values) : badNumber(values);
  if (bad >= 0) throw new DataError(...refusal(name, field, values, bad));
}

/** Position of the first element that is no number; NaN and infinities are. */
function badNumber(values: ArrayLike<number>): number {
  if (ArrayBuffer.isView(values)) return -1;
  for (let i = 0; i < values.length; i++) if (typeof values[i] !== "number") return i;
  return -1;
}

/** Position of the first element that is no 32-bit integer, or outside the field's bound. */
function badInteger({ below, ignore }: BatchField, values: ArrayLike<number>): number {
  if (below === undefined && values instanceof Int32Array) return -1;
  const [from, to] = below === undefined ? [-(2 ** 31), 2 ** 31] : [0, below];
  for (let i = 0; i < values.length; i++) {
    const value = values[i]!;
    if (!(value >= from && value < to && Number.isInteger(value)) && (value !== ignore || ignore === undefined))
      return i;
  }
  return -1;
}

function refusal(
  name: string,
  field: BatchField,
  values: ArrayLike<number>,
  position: number,
): ConstructorParameters<typeof DataError> {
  const { below, ignore, shape } = field;
  const size = Math.max(1, sizeOf(shape));
  const sample = Math.floor(position / size);
  const place = size === 1 ? `sample ${sample}` : `sample ${sample}, element ${position % size}`;
  const other = ignore === undefined ? "" : `, or ${ignore}`;
  const range = below === undefined ? "" : ` from 0 to ${below - 1}${other}`;
  const expected = field.dtype === "i32" ? `a whole number${range}` : "a number";
  const value: unknown = values[position];
  return [
    `the batch's "${name}" holds ${describe(value)} at position ${position} (${place}); ${expected} is expected`,
    {
      details: {
        name,
        position,
        value: typeof value === "number" ? value : String(value),
        ...(below ? { below } : {}),
      },
    },
  ];
}
