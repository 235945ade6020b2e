// Tensors of anything that holds weights, by name: checkpoints, model folders, single files; and how two of them
// differ.
import { stat } from "node:fs/promises";
import path from "node:path";
import { CheckpointError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import { type Shape, sizeOf } from "../core/shape.ts";
import { candidates } from "./folder.ts";
import { findWeights, Weights } from "./safetensors.ts";
import type { TensorRole } from "./state.ts";
import { StoredCheckpoint } from "./stored.ts";
import { type StoredDType, storedBytes } from "./stored-dtype.ts";

/** A tensor that is listed. */
export interface ListedTensor {
  readonly name: string;
  readonly dtype: StoredDType;
  /** As models' files have it. */
  readonly shape: Shape;
  readonly bytes: number;
  /** The file or files that hold it. */
  readonly files: readonly string[];
  /** Of checkpoints: whose it is, and where each of its dims, as they are on the devices, is cut. */
  readonly role?: TensorRole;
  readonly cuts?: readonly (readonly number[])[];
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

/** Opens a run or folder of checkpoints (its newest), a checkpoint, a model folder or a .safetensors file. */
export async function openTensors(place: string): Promise<TensorList> {
  const found = await stat(place).catch(() => undefined);
  if (found === undefined) throw new CheckpointError(`${place}: no such file or folder`, { details: { file: place } });
  if (found.isFile()) {
    if (place.endsWith(".safetensors")) return listWeights(place, await Weights.open(place));
    throw new CheckpointError(`${place}: no .safetensors file`, { details: { file: place } });
  }
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
      role: tensor.role,
      cuts: tensor.cuts,
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
