// Loading: the newest checkpoint that is whole, verified in host memory first, then cut to the devices' shards.
import { expectObject, expectSignal, expectText } from "../core/check.ts";
import { dtypeCode } from "../core/dtype.ts";
import { AbortedError, CheckpointError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import { nearest } from "../core/nearest.ts";
import { sameShape, shapeText } from "../core/shape.ts";
import type { HostMemory } from "../runtime/host-memory.ts";
import { candidates } from "./folder.ts";
import { copyBetween } from "./grid.ts";
import { deviceDType } from "./shards.ts";
import { type CheckpointState, expectState, optionalNames, type StateTensor, type TensorRole } from "./state.ts";
import { type LoadedCells, StoredCheckpoint, type StoredTensor } from "./stored.ts";
import { storedBytes } from "./stored-dtype.ts";

/** Options of loadCheckpoint(). */
export interface LoadOptions {
  readonly signal?: AbortSignal | undefined;
  /** Told of each checkpoint that is damaged and passed over for an older one. */
  readonly onWarning?: ((text: string) => void) | undefined;
  /** "parameter" leaves the optimizer's state as it is. Default: everything. */
  readonly only?: TensorRole | undefined;
}

/** What was loaded. */
export interface LoadedCheckpoint {
  readonly path: string;
  readonly step: number;
  /** What the saved state had as its record, with the mesh it was saved from and its parent. */
  readonly record: JsonObject;
  /** SHA-256 of the manifest. */
  readonly digest: string;
  /** Bytes read from the disk: each byte of the tensors and headers once. */
  readonly bytesRead: number;
}

/**
 * Loads a checkpoint into tensors of the same names and shapes, under whatever mesh, specs and float dtypes they have.
 * `folder` is one checkpoint, or a folder of them (a run's too), of which the newest good one is taken. All digests are
 * compared before anything is changed.
 * @throws {CheckpointError} naming file and tensor, where there is no good one or it does not fit.
 */
export async function loadCheckpoint(
  folder: string,
  state: CheckpointState,
  options: LoadOptions = {},
): Promise<LoadedCheckpoint> {
  const { loaded, memory } = await loadThrough(undefined, folder, state, options);
  memory[Symbol.dispose]();
  return loaded;
}

/**
 * Loads a checkpoint by way of host memory that is there already, where it has exactly the bytes that are needed, else
 * of new memory; gives the one that was used. See loadCheckpoint().
 */
export async function loadThrough(
  given: HostMemory | undefined,
  folder: string,
  state: CheckpointState,
  options: LoadOptions = {},
): Promise<{ loaded: LoadedCheckpoint; memory: HostMemory }> {
  expectState(state);
  const { checkpoint, cells, pairs } = await openNewest(folder, options, async (found) => {
    const pairs = matchTensors(found, state, options.only);
    const tensors = pairs.map(({ from }) => from);
    const cells = await found.read({ tensors, signal: options.signal, memory: given });
    return { checkpoint: found, cells, pairs };
  });
  using _ = checkpoint;
  const { memory, bytesRead } = cells;
  try {
    await memory.restore(
      state.mesh.engine,
      pairs.flatMap(({ from, to }) => blocksOf(checkpoint, from, state, to, cells)),
    );
  } catch (cause) {
    if (memory !== given) memory[Symbol.dispose]();
    throw cause;
  }
  const { folder: path, step, record, digest } = checkpoint;
  return { loaded: { path, step, record, digest, bytesRead }, memory };
}

/** Opens the newest checkpoint of a folder for which `use` does not fail with CheckpointError; close it after use. */
async function openNewest<T>(
  folder: string,
  options: LoadOptions,
  use: (checkpoint: StoredCheckpoint) => Promise<T>,
): Promise<T> {
  expectText("the folder of checkpoints", folder);
  expectObject("options of loading", options);
  const { signal, onWarning } = options;
  expectSignal(signal);
  const places = await candidates(folder);
  if (places.length === 0) {
    throw new CheckpointError(`${folder}: no checkpoint is there`, { details: { file: folder } });
  }
  let failed: CheckpointError | undefined;
  for (const place of places) {
    if (signal?.aborted) throw new AbortedError("loading was stopped", { cause: signal.reason });
    let checkpoint: StoredCheckpoint | undefined;
    try {
      checkpoint = await StoredCheckpoint.open(place);
      return await use(checkpoint);
    } catch (cause) {
      checkpoint?.[Symbol.dispose]();
      // One that does not fit the model is no reason to take an older one.
      if (!(cause instanceof CheckpointError) || cause.details.fits === false) throw cause;
      failed ??= cause;
      if (places.length > 1) onWarning?.(`a damaged checkpoint is passed over: ${cause.message}`);
    }
  }
  throw failed!;
}

/**
 * Opens the newest checkpoint whose digests are right, reading all of it. Close it after use.
 * @throws {CheckpointError} naming file and tensor, where there is none.
 */
export function openCheckpoint(folder: string, options: LoadOptions = {}): Promise<StoredCheckpoint> {
  return openNewest(folder, options, async (checkpoint) => {
    await checkpoint.verify(options.signal);
    return checkpoint;
  });
}

interface Pair {
  readonly from: StoredTensor;
  readonly to: StateTensor;
}

function matchTensors(checkpoint: StoredCheckpoint, state: CheckpointState, only: TensorRole | undefined): Pair[] {
  const stored = new Map(checkpoint.tensors.map((tensor) => [tensor.name, tensor]));
  const wanted = state.tensors.filter(({ role }) => only === undefined || role === only);
  const known = new Set(wanted.map(({ name }) => name));
  for (const tensor of checkpoint.tensors) {
    if (known.has(tensor.name) || optionalNames.has(tensor.name)) continue;
    if (only !== undefined && tensor.role !== only) continue;
    const close = known.size === 0 ? "" : `; the nearest is "${nearest(tensor.name, known)}"`;
    throw misfit(checkpoint, tensor.name, `the model has none of this name${close}`);
  }
  return wanted.flatMap((to) => {
    const from = stored.get(to.name);
    if (from === undefined && optionalNames.has(to.name)) return [];
    if (from === undefined) throw misfit(checkpoint, to.name, "it is missing");
    const { shape, dtype } = state.mesh.store.type(to.id);
    if (!sameShape(from.shape, shape)) {
      throw misfit(checkpoint, to.name, `its shape is ${shapeText(from.shape)}; the model's ${shapeText(shape)}`);
    }
    const own = deviceDType(from.dtype);
    const floats = ["f32", "f64", "bf16", "f16"];
    if (own === undefined || (own !== dtype && !(floats.includes(own) && floats.includes(dtype)))) {
      throw misfit(checkpoint, to.name, `its dtype ${from.dtype} does not become ${dtype}`);
    }
    return [{ from, to }];
  });
}

function misfit({ folder }: StoredCheckpoint, tensor: string, reason: string): CheckpointError {
  return new CheckpointError(`${folder}, tensor "${tensor}": ${reason}`, {
    details: { file: folder, tensor, fits: false },
  });
}

/** What each device needs of each cell, as the engine's restore() takes it. */
function blocksOf(
  checkpoint: StoredCheckpoint,
  from: StoredTensor,
  state: CheckpointState,
  to: StateTensor,
  { targets }: LoadedCells,
): number[] {
  const { store } = state.mesh;
  const { dtype } = store.type(to.id);
  const source = deviceDType(from.dtype)!;
  const cells = checkpoint.cells(from);
  const words: number[] = [];
  for (const holder of store.holders(to.id)) {
    cells.forEach((cell, i) => {
      const plan = copyBetween(cell, holder);
      if (plan === null) return;
      const begin = targets[from.firstCell + i]! + plan.source * storedBytes(from.dtype);
      words.push(holder.buffer, dtypeCode(source), dtypeCode(dtype), begin, plan.target, plan.run, plan.dims.length);
      for (const dim of plan.dims) words.push(...dim);
    });
  }
  return words;
}
