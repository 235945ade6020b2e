// Saving: a snapshot of the devices, shards beside a manifest in a temporary folder, a rename, and `latest` last.
import { expectObject, expectText } from "../core/check.ts";
import { randomBytes } from "node:crypto";
import path from "node:path";
import { makeFolders } from "../core/atomic-file.ts";
import { AbortedError, FileError, systemReason } from "../core/errors.ts";
import { HostMemory, runFolderSteps, type ShardResult } from "../runtime/host-memory.ts";
import { freshName, latestName, listFolder, temporaryPrefix } from "./folder.ts";
import { manifestName, manifestText, recordText } from "./manifest.ts";
import { planShards, type ShardPlan } from "./shards.ts";
import { type CheckpointState, expectState } from "./state.ts";

/** A checkpoint that is on the disk. */
export interface SavedCheckpoint {
  readonly path: string;
  readonly step: number;
  /** Of its files. */
  readonly bytes: number;
  /** SHA-256 of its manifest. */
  readonly digest: string;
}

/** The checkpoint that a run was at before this one. */
export interface Parent {
  readonly step: number;
  readonly digest: string;
}

/** A state that has been copied: the devices may go on. */
export interface Snapshot {
  readonly step: number;
  readonly plan: ShardPlan;
  readonly memory: HostMemory;
  /** The record as JSON. */
  readonly record: string;
}

/** Options of saveCheckpoint(). */
export interface SaveOptions {
  readonly signal?: AbortSignal | undefined;
  readonly parent?: Parent | undefined;
}

/**
 * Saves a state to a new folder `step-...` in a folder of checkpoints, which is made where it is missing; what was
 * there before stays whole until this is on the disk. Resolves when it is.
 * @throws {FileError} where the disk refuses, {AbortedError} after the signal; nothing of it is left then.
 */
export async function saveCheckpoint(
  folder: string,
  state: CheckpointState,
  options: SaveOptions = {},
): Promise<SavedCheckpoint> {
  expectText("the folder of checkpoints", folder);
  expectState(state);
  expectObject("saveCheckpoint's options", options);
  throwIfAborted(options.signal);
  const snapshot = await takeSnapshot(state, options.parent);
  try {
    return await writeSnapshot(folder, snapshot, options.signal);
  } finally {
    snapshot.memory[Symbol.dispose]();
  }
}

/** Copies a state from its devices, in turn with the runs, into `memory` where it fits exactly. */
export async function takeSnapshot(state: CheckpointState, parent?: Parent, memory?: HostMemory): Promise<Snapshot> {
  const plan = planShards(state);
  const { layout } = state.mesh;
  const record = recordText({
    mesh: Object.fromEntries(layout.axes.map((axis) => [axis, layout.size(axis)])),
    parent: parent === undefined ? null : { step: parent.step, digest: parent.digest },
    ...state.record,
  });
  const own = memory?.bytes === plan.bytes ? memory : new HostMemory(plan.bytes);
  try {
    await own.snapshot(state.mesh.engine, plan.copies);
  } catch (cause) {
    if (own !== memory) own[Symbol.dispose]();
    throw cause;
  }
  return { step: state.step, plan, memory: own, record };
}

/** Writes a snapshot; see saveCheckpoint(). */
export async function writeSnapshot(
  folder: string,
  snapshot: Snapshot,
  signal?: AbortSignal,
): Promise<SavedCheckpoint> {
  throwIfAborted(signal);
  const { step, plan, memory } = snapshot;
  await makeRoot(folder);
  const { checkpoints, leftovers } = await listFolder(folder);
  const name = freshName(step, checkpoints);
  const temporary = path.join(folder, `${temporaryPrefix}${name}-${process.pid}-${randomBytes(4).toString("hex")}`);
  const stop = (): void => memory.stop();
  signal?.addEventListener("abort", stop);
  try {
    await removeAll(folder, leftovers);
    await runFolderSteps([{ kind: "makeFolder", path: temporary }]);
    const shards = plan.files.map((file) => ({ ...file, path: path.join(temporary, file.name) }));
    const results = await memory.writeShards(shards);
    throwIfAborted(signal);
    return await putInPlace(folder, name, temporary, snapshot, results);
  } catch (cause) {
    await runFolderSteps([{ kind: "remove", path: temporary }]).catch(() => undefined);
    throw cause;
  } finally {
    signal?.removeEventListener("abort", stop);
  }
}

async function putInPlace(
  folder: string,
  name: string,
  temporary: string,
  { step, plan, record }: Snapshot,
  results: readonly ShardResult[],
): Promise<SavedCheckpoint> {
  const { text, sha256 } = manifestText(step, record, plan, results);
  const place = path.join(folder, name);
  await runFolderSteps([
    { kind: "write", path: path.join(temporary, manifestName), content: text },
    { kind: "syncFolder", path: temporary },
    { kind: "rename", path: temporary, to: place },
    { kind: "syncFolder", path: folder },
  ]);
  await pointLatest(folder, name);
  const bytes = results.reduce((sum, file) => sum + file.bytes, 0);
  return { path: place, step, bytes, digest: sha256 };
}

/** Makes `latest` name a checkpoint, at once for all who read it. */
export async function pointLatest(folder: string, name: string): Promise<void> {
  const next = path.join(folder, `${temporaryPrefix}${latestName}-${process.pid}-${randomBytes(4).toString("hex")}`);
  try {
    await runFolderSteps([
      { kind: "write", path: next, content: `${name}\n` },
      { kind: "rename", path: next, to: path.join(folder, latestName) },
      { kind: "syncFolder", path: folder },
    ]);
  } catch (cause) {
    await runFolderSteps([{ kind: "remove", path: next }]).catch(() => undefined);
    throw cause;
  }
}

/** Removes checkpoints or leftovers: renamed first, so that no half of a checkpoint keeps its name. */
export async function removeAll(folder: string, names: readonly string[]): Promise<void> {
  for (const name of names) {
    const place = path.join(folder, name);
    const away = name.startsWith(temporaryPrefix) ? place : path.join(folder, `${temporaryPrefix}old-${name}`);
    if (away !== place) await runFolderSteps([{ kind: "rename", path: place, to: away }]);
    await runFolderSteps([{ kind: "remove", path: away }]);
  }
}

async function makeRoot(folder: string): Promise<void> {
  try {
    await makeFolders(folder);
  } catch (cause) {
    const reason = `${folder}: cannot be made: ${systemReason(cause)}`;
    throw new FileError(reason, { cause, details: { path: folder } });
  }
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new AbortedError("the checkpoint was not saved: stopped", { cause: signal.reason });
}
