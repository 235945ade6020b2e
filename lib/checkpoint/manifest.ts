// The text of a manifest; native/io/manifest.cc reads it.
import { createHash } from "node:crypto";
import { ConfigError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import type { ShardResult } from "../runtime/host-memory.ts";
import { type ShardPlan, storedName } from "./shards.ts";
import { parseStrictJson } from "./strict-json.ts";

/** The version of the format that is written, and the only one that is read. */
export const formatVersion = 1;
export const manifestName = "manifest.json";

/** A manifest, with the digest by which later checkpoints name it as their parent. */
export interface ManifestText {
  readonly text: string;
  readonly sha256: string;
}

/** Writes a manifest, a line for each file and tensor, its digest last. */
export function manifestText(
  step: number,
  record: string,
  plan: ShardPlan,
  files: readonly ShardResult[],
): ManifestText {
  const fileLines = plan.files.map(({ name }, i) => {
    const { bytes, sha256 } = files[i]!;
    return JSON.stringify({ name, bytes, sha256 });
  });
  const tensorLines = plan.tensors.map((tensor) =>
    JSON.stringify({
      name: tensor.name,
      role: tensor.role,
      dtype: storedName(tensor.dtype),
      shape: tensor.shape,
      stored: tensor.stored,
      cuts: tensor.cuts,
      files: tensor.cells.map(({ file }) => file),
      crc32c: tensor.cells.map(({ file, index }) => files[file]!.crc32c[index]),
    }),
  );
  const body = [
    `{"format":"meshwork checkpoint"`,
    `"version":${formatVersion}`,
    `"step":${step}`,
    `"record":${record}`,
    `"files":[\n${fileLines.join(",\n")}]`,
    `"tensors":[\n${tensorLines.join(",\n")}]`,
    "",
  ].join(",\n");
  const sha256 = createHash("sha256").update(body).digest("hex");
  return { text: `${body}"digest":"${sha256}"\n}\n`, sha256 };
}

/** A record as JSON. Throws ConfigError for what JSON does not keep: deep nesting, zero characters, huge integers. */
export function recordText(record: JsonObject): string {
  const wellFormed = (_: string, value: unknown) =>
    typeof value === "string" ? value.replace(/\p{Surrogate}/gu, "\ufffd") : value;
  const text = JSON.stringify(record, wellFormed);
  try {
    parseStrictJson(text);
  } catch (cause) {
    throw new ConfigError(`a checkpoint's record cannot be kept: ${String(cause)}`, { cause });
  }
  if (text.includes("\\u0000")) throw new ConfigError("a checkpoint's record has a zero character in a text");
  return text;
}
