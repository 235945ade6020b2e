// A run's folder: settings in run.json, a metrics.jsonl that grows, and the model as a Hugging Face folder.
import { type FileHandle, mkdir, open, readFile, rm, rmdir, stat } from "node:fs/promises";
import path from "node:path";
import { type TensorSource, writeSafetensors } from "../checkpoint/safetensors.ts";
import { makeFolders, writeTextAtomically } from "../core/atomic-file.ts";
import { FileError, isSystemError, systemReason } from "../core/errors.ts";
import { isJsonObject, type JsonObject } from "../core/json.ts";

/** Where a run goes. */
export interface RunFolderOptions {
  /** The folder asked for; made where it is missing, its run files are replaced where it is not. */
  readonly out?: string | undefined;
  /** Names the folder when none is asked for: `runs/<date>-<name>`. */
  readonly name: string;
  /** The time in that name. */
  readonly now?: Date;
}

/** A model to save. */
export interface SavedModel {
  readonly config: JsonObject;
  readonly tensors: Iterable<TensorSource>;
  /** The tokenizer's files: name to content. */
  readonly tokenizerFiles?: ReadonlyMap<string, string> | undefined;
}

/** A run's folder, open until closed. One in which nothing was written is as it was before, or gone, once closed. */
export class RunFolder implements AsyncDisposable {
  readonly path: string;
  /** The Hugging Face folder in it. */
  readonly modelPath: string;
  readonly #metrics: LineWriter;
  #resumedAt: number | undefined;
  /** Files and folders that this run made, outermost first. */
  readonly #made: readonly string[];
  #used = false;

  private constructor(folder: string, metrics: LineWriter, made: readonly string[]) {
    this.path = folder;
    this.#made = made;
    this.modelPath = path.join(folder, "model");
    this.#metrics = metrics;
  }

  /** Makes the folder. @throws {FileError} where it cannot be made or written to, before any work is done. */
  static async create(options: RunFolderOptions): Promise<RunFolder> {
    const made: string[] = [];
    const folder = options.out ?? (await freshFolder(options.name, options.now ?? new Date(), made));
    try {
      made.push(...(await makeFolders(path.join(folder, "model"))));
      const file = path.join(folder, "metrics.jsonl");
      const known = await stat(file).then(
        () => true,
        () => false,
      );
      const handle = await open(file, "a");
      if (!known) made.push(file);
      return new RunFolder(folder, new LineWriter(file, handle), made);
    } catch (cause) {
      await removeMade(made);
      throw fileError(folder, cause);
    }
  }

  /** Writes run.json: settings, versions, machine, seed, digests of the data. */
  async writeRecord(record: Readonly<Record<string, unknown>>): Promise<void> {
    await this.#begin();
    await writeTextAtomically(path.join(this.path, "run.json"), `${JSON.stringify(record, undefined, 2)}\n`);
  }

  /**
   * Goes on with the run in the folder: what its metrics say of steps up to this one stays. Before anything is written.
   */
  resumeAt(step: number): void {
    this.#resumedAt = step;
  }

  /** Clears what an earlier run left, before this one's first file. */
  async #begin(): Promise<void> {
    if (this.#used) return;
    this.#used = true;
    await this.#metrics.clear(this.#resumedAt);
  }

  /** Adds a line to metrics.jsonl, numbers in full precision. Written soon, or with `flush`. */
  metric(event: object): void {
    void this.#begin();
    this.#metrics.add(JSON.stringify(event));
  }

  /** Writes what is waiting. @throws {FileError} where this or an earlier write failed. */
  flush(): Promise<void> {
    return this.#metrics.flush();
  }

  /**
   * Saves the model: weights, config.json and tokenizer, each file whole or not at all.
   * @throws {FileError} where the disk refuses.
   */
  async saveModel({ config, tensors, tokenizerFiles }: SavedModel): Promise<void> {
    await this.#begin();
    // One that an earlier run left would otherwise stay beside another model's weights.
    for (const name of TOKENIZER_FILES) await rm(path.join(this.modelPath, name), { force: true });
    await writeSafetensors(path.join(this.modelPath, "model.safetensors"), tensors);
    for (const [name, content] of tokenizerFiles ?? []) {
      await writeTextAtomically(path.join(this.modelPath, path.basename(name)), content);
    }
    // Last, so that a folder with a config is complete.
    const text = `${JSON.stringify(config, undefined, 2)}\n`;
    await writeTextAtomically(path.join(this.modelPath, "config.json"), text);
  }

  /**
   * Writes what is waiting and closes the metrics; removes what this run made if it wrote nothing, as when it was
   * refused.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#metrics.close();
    if (!this.#used) await removeMade(this.#made);
  }
}

const TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json"];

function fileError(file: string, cause: unknown): FileError {
  return new FileError(`${file}: cannot be written: ${systemReason(cause)}`, { cause, details: { path: file } });
}

/** `20261121-004805` in local time. */
function dateText(now: Date): string {
  const two = (value: number) => String(value).padStart(2, "0");
  const date = `${now.getFullYear()}${two(now.getMonth() + 1)}${two(now.getDate())}`;
  return `${date}-${two(now.getHours())}${two(now.getMinutes())}${two(now.getSeconds())}`;
}

/** Makes a new folder under runs/; two runs of one second get names of their own. */
async function freshFolder(name: string, now: Date, made: string[]): Promise<string> {
  const base = path.join("runs", `${dateText(now)}-${name.replace(/[^\w.-]+/g, "-")}`);
  try {
    made.push(...(await makeFolders("runs")));
    for (let attempt = 1; ; attempt++) {
      const folder = attempt === 1 ? base : `${base}-${attempt}`;
      try {
        await mkdir(folder);
        made.push(folder);
        return folder;
      } catch (cause) {
        if (!isSystemError(cause) || cause.code !== "EEXIST") throw cause;
      }
    }
  } catch (cause) {
    throw fileError(base, cause);
  }
}

/** Removes the given files and empty folders, innermost first; what others have put into them meanwhile stays. */
async function removeMade(made: readonly string[]): Promise<void> {
  for (const each of made.toReversed()) {
    const removed = each.endsWith(".jsonl") ? rm(each, { force: true }) : rmdir(each);
    await removed.catch(() => undefined);
  }
}

const FLUSH_LINES = 64;
const FLUSH_MS = 1000;

/** Bytes of the lines up to the last one about a step, and those about it or earlier ones that follow. */
function linesUpTo(text: string, step: number): number {
  const lines = text.split("\n").slice(0, -1);
  const events = lines.map(eventOf);
  let end = events.findLastIndex((event) => event?.type === "step" && event.step === step) + 1;
  while (end < lines.length && belongsTo(events[end], step)) end++;
  return lines.slice(0, end).reduce((bytes, line) => bytes + Buffer.byteLength(line) + 1, 0);
}

function belongsTo(event: JsonObject | undefined, step: number): boolean {
  if (event === undefined || event.type === "done" || event.type === "sample") return false;
  return typeof event.step !== "number" || event.step <= step;
}

/** A line's object; undefined for what a crash has left of one. */
function eventOf(line: string): JsonObject | undefined {
  try {
    const event: unknown = JSON.parse(line);
    return isJsonObject(event) ? event : undefined;
  } catch {
    return undefined;
  }
}

/** Appends lines in batches, in order. */
class LineWriter {
  readonly #file: string;
  readonly #handle: FileHandle;
  #waiting: string[] = [];
  #lastFlush = performance.now();
  #writing: Promise<void> = Promise.resolve();
  #failure: unknown;

  constructor(file: string, handle: FileHandle) {
    this.#file = file;
    this.#handle = handle;
  }

  /** Empties the file, or keeps the lines of steps up to one, before anything that is added from now on. */
  clear(keptSteps: number | undefined): Promise<void> {
    this.#writing = this.#writing
      .then(async () => {
        // A device has no size, and cannot be truncated.
        if ((await this.#handle.stat()).size === 0) return;
        const kept = keptSteps === undefined ? 0 : linesUpTo(await readFile(this.#file, "utf8"), keptSteps);
        await this.#handle.truncate(kept);
      })
      .catch((cause: unknown) => {
        this.#failure ??= cause;
      });
    return this.#writing;
  }

  add(line: string): void {
    this.#waiting.push(`${line}\n`);
    const due = performance.now() - this.#lastFlush > FLUSH_MS;
    if (due || this.#waiting.length >= FLUSH_LINES) this.#write();
  }

  async flush(): Promise<void> {
    this.#write();
    await this.#writing;
    const failure = this.#failure;
    // Told once: closing afterwards adds no second error.
    this.#failure = undefined;
    if (failure !== undefined) throw fileError(this.#file, failure);
  }

  async close(): Promise<void> {
    try {
      await this.flush();
    } finally {
      await this.#handle.close();
    }
  }

  #write(): void {
    this.#lastFlush = performance.now();
    const text = this.#waiting.join("");
    this.#waiting = [];
    if (text === "") return;
    this.#writing = this.#writing
      .then(() => this.#handle.appendFile(text))
      .catch((cause: unknown) => {
        this.#failure ??= cause;
      });
  }
}
