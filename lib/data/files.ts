// Finds and reads data files: paths, folders and globs to an ordered list; each file whole, with its SHA-256.
import { createHash } from "node:crypto";
import { type FileHandle, open, readdir, stat } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { glob, isDynamicPattern } from "tinyglobby";
import { DataError, systemReason } from "../core/errors.ts";

/** What a file holds, told by its extension: text unless .jsonl, .u16 or .u32. */
export type DataKind = "text" | "jsonl" | "u16" | "u32";

/** A data file as found; `named` when the user named this very file. */
export interface DataFile {
  readonly path: string;
  readonly kind: DataKind;
  readonly named: boolean;
}

/** A file's identity, for run.json. */
export interface FileDigest {
  readonly path: string;
  readonly bytes: number;
  readonly sha256: string;
}

const KINDS: ReadonlyMap<string, DataKind> = new Map([
  [".jsonl", "jsonl"],
  [".u16", "u16"],
  [".u32", "u32"],
]);

const READ_BYTES = 1 << 24;

function dataFile(file: string, named: boolean): DataFile {
  return { path: file, kind: KINDS.get(path.extname(file).toLowerCase()) ?? "text", named };
}

/** Order by UTF-16 units, which no locale changes. */
function byName(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/**
 * The files that paths, folders and globs name: in the order given, sorted by name within a folder or glob. Folders are
 * searched through; names that begin with a dot and node_modules are left out there.
 * @throws {DataError} where a path does not exist, is no regular file, or a folder or glob has no file.
 */
export async function findFiles(paths: readonly string[]): Promise<DataFile[]> {
  const found: DataFile[] = [];
  for (const given of paths) found.push(...(await expand(given)));
  if (found.length === 0) throw new DataError("no data: no path was given");
  return found;
}

async function expand(given: string): Promise<DataFile[]> {
  const stats = await stat(given).catch((cause: unknown) => {
    if (isDynamicPattern(given)) return undefined;
    throw new DataError(`data ${given}: ${systemReason(cause)}`, { cause, details: { path: given } });
  });
  if (stats?.isFile()) return [dataFile(given, true)];
  if (stats !== undefined && !stats.isDirectory()) {
    throw new DataError(`data ${given}: neither a regular file nor a folder`, { details: { path: given } });
  }
  const names = stats === undefined ? await glob(given, { onlyFiles: true }) : await walk(given);
  if (names.length === 0) {
    const what = stats === undefined ? "no file matches this pattern" : "the folder has no files";
    throw new DataError(`data ${given}: ${what}`, { details: { path: given } });
  }
  return names.sort(byName).map((name) => dataFile(name, false));
}

async function walk(folder: string): Promise<string[]> {
  const files: string[] = [];
  const folders = [folder];
  for (let next = folders.pop(); next !== undefined; next = folders.pop()) {
    const entries = await readdir(next, { withFileTypes: true }).catch((cause: unknown) => {
      throw new DataError(`data ${next}: ${systemReason(cause)}`, { cause, details: { path: next } });
    });
    for (const entry of entries) {
      if (entry.name.startsWith(".") || entry.name === "node_modules") continue;
      const full = path.join(next, entry.name);
      if (entry.isDirectory()) folders.push(full);
      // A link to a file counts; a link to a folder does not, as it might lead in a circle.
      else if (entry.isFile() || (entry.isSymbolicLink() && (await isFile(full)))) files.push(full);
    }
  }
  return files;
}

function isFile(file: string): Promise<boolean> {
  return stat(file).then(
    (found) => found.isFile(),
    () => false,
  );
}

/**
 * The demo's data: the .d.ts files of the installed @types/node package, 2.6 MB of text under the MIT license.
 * @throws {DataError} where the package is not installed.
 */
export async function defaultDataFiles(): Promise<DataFile[]> {
  let folder: string;
  try {
    folder = path.dirname(createRequire(import.meta.url).resolve("@types/node/package.json"));
  } catch (cause) {
    throw new DataError("no data: --data is needed, as the default text (the @types/node package) is not installed", {
      cause,
    });
  }
  const shown = path.relative(process.cwd(), folder);
  const names = (await walk(shown === "" ? "." : shown)).filter((name) => name.endsWith(".d.ts"));
  return names.sort(byName).map((name) => dataFile(name, false));
}

/**
 * Reads a whole file.
 * @throws {DataError} where it cannot be read, changes its size meanwhile, or is larger than a buffer can be.
 */
export async function readWhole(file: string): Promise<{ bytes: Uint8Array; digest: FileDigest }> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(file, "r");
    const { size } = await handle.stat();
    const bytes = Buffer.allocUnsafeSlow(size);
    const hash = createHash("sha256");
    for (let at = 0; at < size; ) {
      const { bytesRead } = await handle.read(bytes, at, Math.min(READ_BYTES, size - at), at);
      if (bytesRead === 0) throw new DataError(`data ${file}: became shorter while it was read`);
      hash.update(bytes.subarray(at, at + bytesRead));
      at += bytesRead;
    }
    return { bytes, digest: { path: file, bytes: size, sha256: hash.digest("hex") } };
  } catch (cause) {
    if (cause instanceof DataError) throw cause;
    throw new DataError(`data ${file}: ${systemReason(cause)}`, { cause, details: { path: file } });
  } finally {
    await handle?.close();
  }
}
