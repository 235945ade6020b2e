// How a tensor is cut into cells: the same on the devices of a mesh and in a checkpoint's files.
import type { Shape } from "../core/shape.ts";

/** A rectangle of a tensor: its first element and its size, for each dim. */
export interface Block {
  readonly start: readonly number[];
  readonly shape: readonly number[];
}

/** The cuts of each dim (0 and the dim's size left out) that a tensor's shards make; empty shards count for nothing. */
export function cutsOf(shape: Shape, shards: readonly Block[]): number[][] {
  const whole = shards.filter((shard) => !isEmpty(shard));
  return shape.map((_, d) => {
    const starts = new Set(whole.map(({ start }) => start[d]!));
    starts.delete(0);
    return [...starts].sort((a, b) => a - b);
  });
}

/** The cells between cuts, row-major. */
export function cellsOf(shape: Shape, cuts: readonly (readonly number[])[]): Block[] {
  let cells: Block[] = [{ start: [], shape: [] }];
  shape.forEach((size, d) => {
    const edges = [0, ...cuts[d]!, size];
    cells = cells.flatMap((cell) =>
      edges.slice(1).map((stop, i) => ({
        start: [...cell.start, edges[i]!],
        shape: [...cell.shape, stop - edges[i]!],
      })),
    );
  });
  return cells;
}

/** True for a block without elements. */
export function isEmpty(block: Block): boolean {
  return block.shape.includes(0);
}

/** Number of elements. */
export function elementsOf(block: Block): number {
  return block.shape.reduce((product, size) => product * size, 1);
}

/** What two blocks have in common; null where that is nothing. */
export function intersection(a: Block, b: Block): Block | null {
  const start = a.start.map((s, d) => Math.max(s, b.start[d]!));
  const shape = start.map((s, d) => Math.min(a.start[d]! + a.shape[d]!, b.start[d]! + b.shape[d]!) - s);
  return shape.some((size) => size <= 0) ? null : { start, shape };
}

/**
 * A copy of what two blocks of a tensor have in common, each row-major in its own memory: where it begins in both, the
 * elements in a row, and count, stride there and stride here of each outer dim. Null where they have nothing in common.
 */
export function copyBetween(from: Block, to: Block): CopyPlan | null {
  const common = intersection(from, to);
  if (common === null) return null;
  const rank = common.shape.length;
  let run = 1;
  let inner = rank;
  // Dims that both blocks hold in full make longer rows of the next one.
  while (inner > 0) {
    inner--;
    run *= common.shape[inner]!;
    if (common.shape[inner] !== from.shape[inner] || common.shape[inner] !== to.shape[inner]) break;
  }
  const [source, target] = [stridesOf(from), stridesOf(to)];
  const offset = (block: Block, strides: readonly number[]) =>
    common.start.reduce((sum, s, d) => sum + (s - block.start[d]!) * strides[d]!, 0);
  const dims = common.shape.slice(0, inner).map((count, d) => [count, source[d]!, target[d]!] as const);
  return { source: offset(from, source), target: offset(to, target), run, dims: dims.filter(([count]) => count > 1) };
}

/** See copyBetween(); all in elements. */
export interface CopyPlan {
  readonly source: number;
  readonly target: number;
  readonly run: number;
  readonly dims: readonly (readonly [count: number, sourceStride: number, targetStride: number])[];
}

function stridesOf({ shape }: Block): number[] {
  const strides = new Array<number>(shape.length).fill(1);
  for (let d = shape.length - 2; d >= 0; d--) strides[d] = strides[d + 1]! * shape[d + 1]!;
  return strides;
}
