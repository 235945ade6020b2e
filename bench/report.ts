// Tables for people and rows for files; the machine and the commit they belong to.
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { info } from "../lib/runtime/addon.ts";

/** One measurement. */
export type Row = Readonly<Record<string, string | number>>;

/** A titled table; how its numbers came about stands in the note. */
export interface Table {
  readonly title: string;
  readonly note: string;
  readonly rows: readonly Row[];
}

/** What the numbers were measured on. */
export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly kernels: string;
  readonly memoryGiB: number;
  readonly os: string;
  readonly node: string;
  readonly commit: string;
  /** Processes that wanted a core in the minute before: above the cores, times are too long. */
  readonly load: number;
}

const root = fileURLToPath(new URL("..", import.meta.url));

function git(...args: readonly string[]): string {
  try {
    return execFileSync("git", args, { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
  } catch {
    return "";
  }
}

/** This machine, this commit. */
export function machine(): Machine {
  const { kernels, cores } = info();
  const changed = git("status", "--porcelain", "--untracked-files=no") === "" ? "" : " with changes";
  return {
    cpu: os.cpus()[0]?.model.trim() ?? "unknown",
    cores,
    kernels,
    memoryGiB: Math.round(os.totalmem() / 2 ** 30),
    os: `${os.type()} ${os.release()}`,
    node: process.version,
    commit: (git("rev-parse", "--short", "HEAD") || "unknown") + changed,
    load: Number(os.loadavg()[0]!.toFixed(2)),
  };
}

/** A number with three digits that count. */
export function digits(value: number): number {
  return Number(value.toPrecision(3));
}

/** The table as aligned text. */
export function tableText({ title, note, rows }: Table): string {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const cells = rows.map((row) => names.map((name) => String(row[name] ?? "")));
  const widths = names.map((name, i) => Math.max(name.length, ...cells.map((line) => line[i]!.length)));
  const right = names.map((name) => rows.every((row) => typeof (row[name] ?? 0) === "number"));
  const line = (texts: readonly string[]): string =>
    texts
      .map((text, i) => (right[i] ? text.padStart(widths[i]!) : text.padEnd(widths[i]!)))
      .join("  ")
      .trimEnd();
  return [`## ${title}`, note, "", line(names), ...cells.map(line), ""].join("\n");
}

/** Writes the tables to bench/results/<date>-<machine>.json and returns its path in the repository. */
export function save(on: Machine, tables: readonly Table[]): string {
  const date = new Date().toISOString().slice(0, 10);
  const name = `${on.cpu} ${on.cores} cores`.toLowerCase().replace(/[^a-z0-9]+/g, "-");
  const file = path.join("bench", "results", `${date}-${name}.json`);
  mkdirSync(path.join(root, "bench", "results"), { recursive: true });
  writeFileSync(path.join(root, file), `${JSON.stringify({ date, machine: on, tables }, null, 2)}\n`);
  return file;
}
