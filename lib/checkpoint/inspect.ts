// Tensors of anything that holds weights, by name: checkpoints, model folders, single files; and how two of them
// differ.
import { stat } from "node:fs/promises";
import path from "node:path";
import { setImmediate } from "node:timers/promises";
import { CheckpointError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import { type Shape, sizeOf } from "../core/shape.ts";
import { candidates } from "./folder.ts";
import { findWeights, Weights } from "./safetensors.ts";
import { StoredCheckpoint } from "./stored.ts";
import { bitsOf, type StoredDType, storedBytes, toNumbers } from "./stored-dtype.ts";

/** A tensor that is listed. */
export interface ListedTensor {
  readonly name: string;
  readonly dtype: StoredDType;
  /** As models' files have it. */
  readonly shape: Shape;
  readonly bytes: number;
  /** The file or files that hold it. */
  readonly files: readonly string[];
}

/** Something with tensors, open. Close it after use. */
export interface TensorList extends AsyncDisposable {
  readonly path: string;
  readonly kind: "checkpoint" | "weights";
  readonly tensors: readonly ListedTensor[];
  /** Of checkpoints: step, digest, files with their digests, what the writer noted. */
  readonly checkpoint?: {
    readonly step: number;
    readonly digest: string;
    readonly files: readonly { readonly name: string; readonly bytes: number; readonly sha256: string }[];
    readonly record: JsonObject;
  };
  /** Bytes as stored, row-major. */
  read(name: string): Promise<Uint8Array>;
  /** Compares all digests; nothing where there are none. Rejects with CheckpointError naming file and tensor. */
  verify(): Promise<void>;
}

/** How a tensor of two lists differs. */
export interface TensorDifference {
  readonly name: string;
  readonly shape: Shape;
  readonly normA: number;
  readonly normB: number;
  /** Norm of b - a. */
  readonly norm: number;
  /** The largest |b - a| and its index; 0 and an empty one where there is none. A NaN on one side is larger than all. */
  readonly largest: number;
  readonly at: readonly number[];
  /** Elements of other bits; between two dtypes those of other values, where two NaNs are the same. */
  readonly differing: number;
}

/** How two lists differ. */
export interface Comparison {
  readonly onlyA: readonly string[];
  readonly onlyB: readonly string[];
  /** In both, of shapes with different numbers of elements. */
  readonly shapes: readonly { readonly name: string; readonly a: Shape; readonly b: Shape }[];
  readonly tensors: readonly TensorDifference[];
}

/** Opens a run or folder of checkpoints (its newest), a checkpoint, a model folder or a .safetensors file. */
export async function openTensors(place: string): Promise<TensorList> {
  const found = await stat(place).catch(() => undefined);
  if (found === undefined) throw new CheckpointError(`${place}: no such file or folder`, { details: { file: place } });
  if (found.isFile()) return listWeights(place, await Weights.open(place));
  const [newest] = await candidates(place);
  if (newest !== undefined) return listCheckpoint(newest);
  for (const folder of [place, path.join(place, "model")]) {
    if ((await findWeights(folder)) !== undefined) return listWeights(folder, await Weights.open(folder));
  }
  throw new CheckpointError(`${place}: neither a checkpoint nor weights are there`, { details: { file: place } });
}

async function listCheckpoint(folder: string): Promise<TensorList> {
  const stored = await StoredCheckpoint.open(folder);
  const byName = new Map(stored.tensors.map((tensor) => [tensor.name, tensor]));
  const { step, digest, files, record } = stored;
  return {
    path: folder,
    kind: "checkpoint",
    tensors: stored.tensors.map((tensor) => ({
      name: tensor.name,
      dtype: tensor.dtype,
      shape: tensor.stored,
      bytes: sizeOf(tensor.shape) * storedBytes(tensor.dtype),
      files: [...new Set(tensor.files)],
    })),
    checkpoint: { step, digest, files, record },
    read: (name) => stored.readStored(byName.get(name)!),
    verify: () => stored.verify(),
    [Symbol.asyncDispose]: async () => stored[Symbol.dispose](),
  };
}

function listWeights(place: string, weights: Weights): TensorList {
  return {
    path: place,
    kind: "weights",
    tensors: [...weights.tensors.values()].map(({ name, dtype, shape, file }) => ({
      name,
      dtype,
      shape,
      bytes: sizeOf(shape) * storedBytes(dtype),
      files: [path.basename(file)],
    })),
    read: (name) => weights.readStored(name),
    verify: async () => undefined,
    [Symbol.asyncDispose]: async () => weights[Symbol.dispose](),
  };
}

const PREFIX = "transformer.";

/** The name without the prefix that some model files have. */
function bare(name: string): string {
  return name.startsWith(PREFIX) ? name.slice(PREFIX.length) : name;
}

/** Compares tensor by tensor; names may have the `transformer.` prefix on one side. */
export async function compareTensors(a: TensorList, b: TensorList): Promise<Comparison> {
  const namesB = new Map(b.tensors.map((tensor) => [bare(tensor.name), tensor]));
  const namesA = new Set(a.tensors.map(({ name }) => bare(name)));
  const shapes: { name: string; a: Shape; b: Shape }[] = [];
  const tensors: TensorDifference[] = [];
  for (const tensor of a.tensors) {
    const other = namesB.get(bare(tensor.name));
    if (other === undefined) continue;
    if (sizeOf(tensor.shape) !== sizeOf(other.shape)) {
      shapes.push({ name: tensor.name, a: tensor.shape, b: other.shape });
      continue;
    }
    const bytes = { a: await a.read(tensor.name), b: await b.read(other.name) };
    tensors.push(difference(tensor, other.dtype, bytes));
    await setImmediate();
  }
  return {
    onlyA: a.tensors.map(({ name }) => name).filter((name) => !namesB.has(bare(name))),
    onlyB: b.tensors.map(({ name }) => name).filter((name) => !namesA.has(bare(name))),
    shapes,
    tensors,
  };
}

function difference(
  { name, shape, dtype }: ListedTensor,
  otherDType: StoredDType,
  bytes: { readonly a: Uint8Array; readonly b: Uint8Array },
): TensorDifference {
  const [a, b] = [toNumbers(dtype, bytes.a), toNumbers(otherDType, bytes.b)];
  const bits = dtype === otherDType ? ([bitsOf(dtype, bytes.a), bitsOf(dtype, bytes.b)] as const) : undefined;
  let [sumA, sumB, sum, largest, at, differing] = [0, 0, 0, 0, -1, 0];
  for (let i = 0; i < a.length; i++) {
    const [x, y] = [a[i]!, b[i]!];
    sumA += x * x;
    sumB += y * y;
    const same = x === y || (Number.isNaN(x) && Number.isNaN(y));
    if (bits ? bits[0][i] === bits[1][i] : same) continue;
    const distance = same ? 0 : Math.abs(y - x);
    differing++;
    sum += distance * distance;
    if (at < 0 || (!(distance <= largest) && !Number.isNaN(largest))) [largest, at] = [distance, i];
  }
  const [normA, normB, norm] = [Math.sqrt(sumA), Math.sqrt(sumB), Math.sqrt(sum)];
  return { name, shape, normA, normB, norm, largest, at: at < 0 ? [] : indexOf(at, shape), differing };
}

function indexOf(flat: number, shape: Shape): number[] {
  let rest = flat;
  return shape
    .toReversed()
    .map((size) => {
      const index = rest % size;
      rest = Math.floor(rest / size);
      return index;
    })
    .reverse();
}
