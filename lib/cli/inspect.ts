// `meshwork inspect`: what is in a checkpoint or in weights, as tables; or how two of them differ, tensor by tensor.
import { type Comparison, compareTensors } from "../checkpoint/compare.ts";
import { openTensors, type TensorList } from "../checkpoint/inspect.ts";
import { StoredCheckpoint } from "../checkpoint/stored.ts";
import { candidates } from "../checkpoint/folder.ts";
import { CheckpointError, UsageError } from "../core/errors.ts";
import { isJsonObject, type JsonObject } from "../core/json.ts";
import { shapeText } from "../core/shape.ts";
import type { InspectOptions } from "./inspect-flags.ts";
import { type CliIo, EXIT, type Output } from "./io.ts";
import { bytesText } from "./log.ts";
import path from "node:path";

/** A checkpoint that another one came from. */
interface Ancestor {
  readonly step: number;
  readonly digest: string;
  /** Its folder, where it is still beside the other. */
  readonly path: string | null;
}

/** Runs the verb. Exit code 1 where a digest is wrong. */
export async function runInspect(options: InspectOptions, io: CliIo): Promise<number> {
  const [first, second, ...more] = options.paths ?? [];
  if (first === undefined || more.length > 0)
    throw new UsageError("inspect takes one folder or file, or two to compare");
  await using a = await openTensors(first);
  if (options.verify) await a.verify();
  if (second === undefined) {
    const lineage = await ancestors(a);
    if (options.json) io.stdout.write(`${JSON.stringify(asJson(a, lineage))}\n`);
    else printList(a, lineage, io.stdout);
    return EXIT.done;
  }
  await using b = await openTensors(second);
  if (options.verify) await b.verify();
  const comparison = await compareTensors(a, b);
  if (options.json) io.stdout.write(`${JSON.stringify({ a: a.path, b: b.path, ...comparison })}\n`);
  else printComparison(a, b, comparison, io.stdout);
  return EXIT.done;
}

/** The line of parents, as far as their checkpoints are still there. */
async function ancestors(list: TensorList): Promise<Ancestor[]> {
  const line: Ancestor[] = [];
  const places = list.checkpoint ? await candidates(path.dirname(path.resolve(list.path))) : [];
  const byDigest = new Map<string, { place: string; record: JsonObject }>();
  for (const place of places) {
    try {
      using stored = await StoredCheckpoint.open(place);
      byDigest.set(stored.digest, { place, record: stored.record });
    } catch (cause) {
      if (!(cause instanceof CheckpointError)) throw cause;
    }
  }
  let record: JsonObject | undefined = list.checkpoint?.record;
  while (record !== undefined) {
    const { parent } = record;
    if (!isJsonObject(parent) || typeof parent.step !== "number" || typeof parent.digest !== "string") break;
    const found = byDigest.get(parent.digest);
    line.push({ step: parent.step, digest: parent.digest, path: found?.place ?? null });
    if (found !== undefined) byDigest.delete(parent.digest);
    record = found?.record;
  }
  return line;
}

function asJson(list: TensorList, lineage: readonly Ancestor[]): object {
  const { path: place, kind, tensors, checkpoint } = list;
  return { path: place, kind, tensors, ...(checkpoint ? { ...checkpoint, lineage } : {}) };
}

function printList(list: TensorList, lineage: readonly Ancestor[], out: Output): void {
  const { tensors, checkpoint } = list;
  const bytes = tensors.reduce((sum, t) => sum + t.bytes, 0);
  out.write(`${list.path}: ${list.kind}, ${tensors.length} tensors, ${bytesText(bytes)}\n`);
  if (checkpoint) {
    const { step, digest, record, files } = checkpoint;
    const mesh = isJsonObject(record.mesh) ? Object.entries(record.mesh).map(([axis, n]) => `${axis}=${n}`) : [];
    out.write(`step ${step}, saved from ${mesh.length === 0 ? "one device" : mesh.join(",")}, manifest ${digest}\n`);
    for (const line of recordLines(record)) out.write(`${line}\n`);
    for (const { step: parent, digest: own, path: place } of lineage) {
      out.write(`  after step ${parent}, manifest ${own.slice(0, 16)}...${place === null ? " (gone)" : ` ${place}`}\n`);
    }
    table(
      out,
      ["file", "bytes", "SHA-256"],
      files.map((f) => [f.name, String(f.bytes), f.sha256]),
    );
  }
  table(
    out,
    ["tensor", "dtype", "shape", "bytes", "file"],
    tensors.map((t) => [t.name, t.dtype, shapeText(t.shape), String(t.bytes), filesText(t.files)]),
  );
}

/** What `meshwork train` noted, in short; --json has it all. */
function recordLines({ data, optimizer, seed }: JsonObject): string[] {
  if (!isJsonObject(data) || !isJsonObject(optimizer) || !Array.isArray(data.files)) return [];
  const files = data.files.map((file: unknown) =>
    isJsonObject(file) ? `  data ${String(file.path)}, SHA-256 ${String(file.sha256)}` : "",
  );
  const { position, order, samples } = data;
  return [`seed ${seed}, ${optimizer.kind}, ${position} samples had of ${samples} an epoch (${order})`, ...files];
}

function filesText(files: readonly string[]): string {
  return files.length <= 1 ? (files[0] ?? "") : `${files[0]} and ${files.length - 1} more`;
}

function printComparison(a: TensorList, b: TensorList, found: Comparison, out: Output): void {
  out.write(`a: ${a.path}\nb: ${b.path}\n`);
  const differing = found.tensors.filter((t) => t.differing > 0);
  const number = (value: number): string => value.toPrecision(6);
  table(
    out,
    ["tensor", "norm of a", "of b", "of b - a", "largest", "at", "elements"],
    differing.map((t) => [
      t.name,
      number(t.normA),
      number(t.normB),
      number(t.norm),
      number(t.largest),
      shapeText(t.at),
      String(t.differing),
    ]),
  );
  for (const { name, a: own, b: other } of found.shapes) {
    out.write(`${name}: shape ${shapeText(own)} in a, ${shapeText(other)} in b\n`);
  }
  for (const name of found.onlyA) out.write(`${name}: only in a\n`);
  for (const name of found.onlyB) out.write(`${name}: only in b\n`);
  out.write(`${found.tensors.length - differing.length} tensors are the same, ${differing.length} differ\n`);
}

/** Columns, numbers to the right. */
function table(out: Output, names: readonly string[], rows: readonly (readonly string[])[]): void {
  if (rows.length === 0) return;
  const widths = names.map((name, i) => Math.max(name.length, ...rows.map((row) => row[i]!.length)));
  const right = names.map((_, i) => rows.every((row) => /^[\d.e+-]+$/.test(row[i]!)));
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, i) => (right[i] ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)))
      .join("  ")
      .trimEnd();
  out.write(`\n${[names, ...rows].map((row) => `${line(row)}\n`).join("")}`);
}
