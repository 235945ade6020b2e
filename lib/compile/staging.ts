// Where a step's inputs lie in its staging memory.
import { dtypeSize } from "../core/dtype.ts";
import { sizeOf } from "../core/shape.ts";
import type { StagingEntry } from "./step.ts";

/** Staging offsets of a list of arrays, 64-byte aligned. */
export function stagingLayout(entries: readonly Omit<StagingEntry, "offset" | "bytes">[]): {
  entries: StagingEntry[];
  bytes: number;
} {
  let offset = 0;
  const out = entries.map((e) => {
    const bytes = sizeOf(e.shape) * dtypeSize(e.dtype);
    const entry = { ...e, offset, bytes };
    offset += Math.ceil(bytes / 64) * 64;
    return entry;
  });
  return { entries: out, bytes: offset };
}
