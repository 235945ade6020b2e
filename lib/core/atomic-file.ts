// Files that are written whole or not at all: a temporary beside the target, fsync, rename, fsync of the folder.
import { randomBytes } from "node:crypto";
import { type FileHandle, mkdir, open, rename, stat, unlink } from "node:fs/promises";
import path from "node:path";
import { FileError, isSystemError, MeshworkError, systemReason } from "./errors.ts";

/**
 * Writes a file by `write`; a crash at any moment leaves the old content or the new, whole.
 * @throws {FileError} where the disk refuses; the temporary file is removed. Errors of `write` itself pass through.
 */
export async function writeFileAtomically(file: string, write: (handle: FileHandle) => Promise<void>): Promise<void> {
  const temporary = `${file}.tmp-${process.pid}-${randomBytes(4).toString("hex")}`;
  try {
    const handle = await open(temporary, "wx");
    try {
      await write(handle);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, file);
    await syncFolder(path.dirname(file));
  } catch (cause) {
    await unlink(temporary).catch(() => undefined);
    if (cause instanceof MeshworkError) throw cause;
    throw new FileError(`${file}: cannot be written: ${systemReason(cause)}`, { cause, details: { path: file } });
  }
}

/** Writes a text file whole. */
export function writeTextAtomically(file: string, text: string): Promise<void> {
  return writeFileAtomically(file, (handle) => handle.writeFile(text));
}

/**
 * Makes a folder and those above it that are missing, so that they last, and gives them, outermost first; errors of
 * the system pass through. Node's own recursive mkdir never ends where a file system denies a folder with ENOENT, as
 * /proc does.
 */
export async function makeFolders(folder: string): Promise<string[]> {
  const missing: string[] = [];
  const made: string[] = [];
  for (let at = path.resolve(folder); !(await exists(at)); at = path.dirname(at)) missing.unshift(at);
  for (const each of missing) {
    try {
      await mkdir(each);
    } catch (cause) {
      if (!isSystemError(cause) || cause.code !== "EEXIST") throw cause;
      continue;
    }
    made.push(each);
    await syncIfReadable(path.dirname(each));
  }
  return made;
}

/** A folder that others own may let us make folders in it and not read it: there it is left to the system. */
async function syncIfReadable(folder: string): Promise<void> {
  try {
    await syncFolder(folder);
  } catch (cause) {
    if (!isSystemError(cause) || (cause.code !== "EACCES" && cause.code !== "EPERM")) throw cause;
  }
}

async function exists(file: string): Promise<boolean> {
  try {
    await stat(file);
    return true;
  } catch (cause) {
    if (isSystemError(cause) && cause.code === "ENOENT") return false;
    throw cause;
  }
}

/** Makes a rename in a folder last. Some systems cannot open folders: there it is left to them. */
async function syncFolder(folder: string): Promise<void> {
  if (process.platform === "win32") return;
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Writes all bytes, however many calls that takes. */
export async function writeAll(handle: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    const { bytesWritten } = await handle.write(bytes, at, Math.min(bytes.length - at, WRITE_BYTES));
    at += bytesWritten;
  }
}

/** One call's bytes; the system takes less than 2 GiB at once. */
const WRITE_BYTES = 1 << 28;
