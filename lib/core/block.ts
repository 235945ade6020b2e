// Copies rectangular blocks between a whole array and a part of it, row-major on both sides.
import type { StorageArray } from "./dtype.ts";
import { type Shape, rowMajorStrides, sizeOf } from "./shape.ts";

/** Calls `run(whole offset, part offset, length)` for each contiguous run of a block that starts at `start`. */
function eachRun(
  whole: Shape,
  start: Shape,
  part: Shape,
  run: (whole: number, part: number, length: number) => void,
): void {
  const count = sizeOf(part);
  if (count === 0) return;
  const strides = rowMajorStrides(whole);
  let inner = part.length;
  let length = 1;
  while (inner > 0) {
    inner--;
    length *= part[inner]!;
    if (part[inner] !== whole[inner]) break;
  }
  const index = new Array<number>(inner).fill(0);
  let base = start.reduce((sum, s, d) => sum + s * strides[d]!, 0);
  for (let done = 0; done < count; done += length) {
    run(base, done, length);
    for (let d = inner - 1; d >= 0; d--) {
      base += strides[d]!;
      if (++index[d]! < part[d]!) break;
      base -= index[d]! * strides[d]!;
      index[d] = 0;
    }
  }
}

/** Copies the block of `whole` (of shape `shape`) that starts at `start` into `part` (of shape `partShape`). */
export function extractBlock(
  whole: StorageArray,
  shape: Shape,
  start: Shape,
  part: StorageArray,
  partShape: Shape,
): void {
  eachRun(shape, start, partShape, (w, p, n) => part.set(whole.subarray(w, w + n), p));
}

/** The reverse of extractBlock. */
export function insertBlock(
  part: StorageArray,
  partShape: Shape,
  whole: StorageArray,
  shape: Shape,
  start: Shape,
): void {
  eachRun(shape, start, partShape, (w, p, n) => whole.set(part.subarray(p, p + n), w));
}
