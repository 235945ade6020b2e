// --resume: which run, which checkpoint, and the flags it was started with.
import { readdir, stat } from "node:fs/promises";
import path from "node:path";
import { candidates, listFolder } from "../checkpoint/folder.ts";
import { StoredCheckpoint } from "../checkpoint/stored.ts";
import { CheckpointError, UsageError } from "../core/errors.ts";
import { isJsonObject, type JsonObject } from "../core/json.ts";
import { type GivenFlag, kebab, parseAgain } from "./flags.ts";
import { type TrainOptions, trainFlags } from "./train-flags.ts";

/** A run to go on with. */
export interface Resumption {
  /** A run's folder, or one of its checkpoints: what loadCheckpoint() takes. */
  readonly from: string;
  /** The run's own folder. */
  readonly runFolder: string;
  /** The flags of the run, with those given now in their places. */
  readonly options: TrainOptions;
  readonly given: ReadonlyMap<string, GivenFlag>;
}

/** Flags that a checkpoint does not keep: they are about one start of the command. */
const ofOneStart = new Set(["resume", "out", "log"]);

/** Flags that say what the data's position and the model's tensors mean. */
const pinned = [
  "model",
  "layers",
  "width",
  "heads",
  "kvHeads",
  "vocab",
  "init",
  "field",
  "tokenizer",
  "order",
  "validationFraction",
  "batchSize",
  "seqLen",
  "seed",
] as const;

/** The flags that a checkpoint keeps. */
export function flagsToKeep(given: ReadonlyMap<string, GivenFlag>): JsonObject {
  return Object.fromEntries([...given].filter(([name]) => !ofOneStart.has(name)));
}

/**
 * Finds the run that --resume means.
 * @throws {CheckpointError} where there is none, {UsageError} for a flag that would make it another run.
 */
export async function findResumption(
  options: TrainOptions,
  given: ReadonlyMap<string, GivenFlag>,
): Promise<Resumption> {
  const from = typeof options.resume === "string" ? options.resume : (options.out ?? (await newestRun()));
  const { place, record } = await readNewest(from);
  const earlier = givenFlags(place, record.flags);
  const now = new Map([...given].filter(([name]) => name !== "resume"));
  const before = parseAgain(trainFlags, earlier, new Map(), place);
  const after = parseAgain(trainFlags, earlier, now, place);
  for (const name of pinned) {
    if (JSON.stringify(before[name]) === JSON.stringify(after[name])) continue;
    const was = before[name] === undefined ? "not given" : JSON.stringify(before[name]);
    throw new UsageError(`--${kebab(name)} cannot change when a run is resumed: it was ${was} in ${place}`);
  }
  return { from, runFolder: options.out ?? runOf(place), options: after, given: new Map([...earlier, ...now]) };
}

/** True where a folder holds checkpoints of an earlier run; what cannot be read is none. */
export async function hasCheckpoints(runFolder: string): Promise<boolean> {
  const listed = await listFolder(path.join(runFolder, "checkpoints")).catch(() => undefined);
  return listed !== undefined && listed.checkpoints.length > 0;
}

/** The run that a checkpoint lies in. */
function runOf(checkpoint: string): string {
  const root = path.dirname(checkpoint);
  return path.basename(root) === "checkpoints" ? path.dirname(root) : root;
}

/** The run under runs/ whose checkpoint is the newest. */
async function newestRun(): Promise<string> {
  const names = await readdir("runs").catch(() => []);
  let newest: { folder: string; time: number } | undefined;
  for (const name of names) {
    const folder = path.join("runs", name);
    const time = await stat(path.join(folder, "checkpoints", "latest")).then(
      ({ mtimeMs }) => mtimeMs,
      () => undefined,
    );
    if (time !== undefined && time > (newest?.time ?? -1)) newest = { folder, time };
  }
  if (newest !== undefined) return newest.folder;
  throw new CheckpointError("--resume: no run under runs/ has a checkpoint; name a folder");
}

/** The record of the newest checkpoint whose manifest is sound; its shards are verified when it is loaded. */
async function readNewest(from: string): Promise<{ place: string; record: JsonObject }> {
  const places = await candidates(from);
  let failed: unknown;
  for (const place of places) {
    try {
      using checkpoint = await StoredCheckpoint.open(place);
      return { place, record: checkpoint.record };
    } catch (cause) {
      if (!(cause instanceof CheckpointError)) throw cause;
      failed ??= cause;
    }
  }
  throw failed ?? new CheckpointError(`--resume ${from}: no checkpoint is there`, { details: { file: from } });
}

function givenFlags(place: string, flags: unknown): Map<string, GivenFlag> {
  if (!isJsonObject(flags)) throw noRun(place);
  return new Map(
    Object.entries(flags).map(([name, flag]): [string, GivenFlag] => {
      if (!isJsonObject(flag)) throw noRun(place);
      if (!Array.isArray(flag.words)) return [name, { json: flag.json }];
      return [name, { words: flag.words.map(String) }];
    }),
  );
}

function noRun(place: string): CheckpointError {
  return new CheckpointError(`${place}: no run of "meshwork train" wrote it, so that none can be resumed from it`, {
    details: { file: place },
  });
}
