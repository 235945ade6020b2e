// Folders of checkpoints: `step-00000100`, ..., a file `latest` with the name of one, and leftovers of interrupted
// saves.
import { readdir, readFile, stat } from "node:fs/promises";
import path from "node:path";
import { CheckpointError, isSystemError, systemReason } from "../core/errors.ts";
import { manifestName } from "./manifest.ts";

export const latestName = "latest";
const NAME = /^step-(\d{8,15})(?:\.(\d{1,6}))?$/;
/** Names of what is not (or no longer) a checkpoint: being written, or being removed. */
export const temporaryPrefix = ".tmp-";

/** A checkpoint's folder, by its name. */
export interface CheckpointName {
  readonly name: string;
  readonly step: number;
  /** Above 0 where a step was saved again, as happens after a rollback. */
  readonly again: number;
}

/** Reads a folder's name; undefined for names of other things. */
export function parseName(name: string): CheckpointName | undefined {
  const found = NAME.exec(name);
  return found === null ? undefined : { name, step: Number(found[1]), again: Number(found[2] ?? 0) };
}

/** What is in a folder of checkpoints: newest first, and leftovers. Nothing where it does not exist. */
export async function listFolder(folder: string): Promise<{ checkpoints: CheckpointName[]; leftovers: string[] }> {
  const names = await readdir(folder).catch((cause: unknown) => {
    if (isSystemError(cause) && cause.code === "ENOENT") return [];
    throw new CheckpointError(`${folder}: ${systemReason(cause)}`, { cause, details: { file: folder } });
  });
  const checkpoints = names.flatMap((name) => parseName(name) ?? []);
  checkpoints.sort((a, b) => b.step - a.step || b.again - a.again);
  return { checkpoints, leftovers: names.filter((name) => name.startsWith(temporaryPrefix)) };
}

/** A name for a step that none of the given checkpoints has. */
export function freshName(step: number, checkpoints: readonly CheckpointName[]): string {
  const taken = checkpoints.filter((c) => c.step === step).map(({ again }) => again);
  const base = `step-${String(step).padStart(8, "0")}`;
  return taken.length === 0 ? base : `${base}.${Math.max(...taken) + 1}`;
}

/** The name in `latest`; undefined where there is none that makes sense. */
export async function readLatest(folder: string): Promise<string | undefined> {
  const text = await readFile(path.join(folder, latestName), "utf8").catch(() => "");
  return parseName(text.trim())?.name;
}

/**
 * Checkpoints to try, the best first: the one folder that was named; or of a run's folder or its `checkpoints`, the one
 * `latest` names, then the others from the newest on.
 */
export async function candidates(folder: string): Promise<string[]> {
  if (parseName(path.basename(path.resolve(folder))) || (await exists(path.join(folder, manifestName))))
    return [folder];
  const inner = path.join(folder, "checkpoints");
  const root = (await exists(inner)) ? inner : folder;
  const { checkpoints } = await listFolder(root);
  const latest = await readLatest(root);
  const names = checkpoints.map(({ name }) => name);
  const ordered = [...new Set([...(latest === undefined ? [] : [latest]), ...names])];
  return ordered.map((name) => path.join(root, name));
}

function exists(file: string): Promise<boolean> {
  return stat(file).then(
    () => true,
    () => false,
  );
}
