// How two lists of tensors differ, tensor by tensor: by bits, or by value where dtypes differ.
import { setImmediate } from "node:timers/promises";
import { type Shape, sizeOf } from "../core/shape.ts";
import type { ListedTensor, TensorList } from "./inspect.ts";
import { bitsOf, toNumbers } from "./stored-dtype.ts";

/** How a tensor of two lists differs. */
export interface TensorDifference {
  readonly name: string;
  readonly shape: Shape;
  readonly normA: number;
  readonly normB: number;
  /** Norm of b - a. */
  readonly norm: number;
  /**
   * The largest |b - a| and its index; 0 and an empty one where there is none. A NaN on one side is larger than all.
   */
  readonly largest: number;
  readonly at: readonly number[];
  /** Elements of other bits; between two dtypes those of other values, where two NaNs are the same. */
  readonly differing: number;
}

/** How two lists differ. */
export interface Comparison {
  readonly onlyA: readonly string[];
  readonly onlyB: readonly string[];
  /** In both, of shapes with different numbers of elements. */
  readonly shapes: readonly { readonly name: string; readonly a: Shape; readonly b: Shape }[];
  readonly tensors: readonly TensorDifference[];
}

const PREFIX = "transformer.";

/** The name without the prefix that some model files have. */
function bare(name: string): string {
  return name.startsWith(PREFIX) ? name.slice(PREFIX.length) : name;
}

/** A tensor, or the part of one expert of a tensor that holds those of all. */
interface Piece {
  readonly name: string;
  readonly shape: Shape;
  readonly tensor: ListedTensor;
  /** Which part, of how many. */
  readonly index: number;
  readonly count: number;
}

/**
 * Tensors as pieces, those of all experts of a layer split where the other list has one for each, as models' files do.
 */
function piecesOf({ tensors }: TensorList, other: TensorList): Piece[] {
  const names = new Set(other.tensors.map(({ name }) => bare(name)));
  return tensors.flatMap((tensor): Piece[] => {
    const { name, shape } = tensor;
    const [, before, after] = /^(.*\bexperts)\.(?!\d)(.+)$/.exec(name) ?? [];
    const parts = Array.from({ length: shape[0] ?? 0 }, (_, e) => `${before}.${e}.${after}`);
    if (before === undefined || parts.length === 0 || !parts.every((part) => names.has(bare(part)))) {
      return [{ name, shape, tensor, index: 0, count: 1 }];
    }
    return parts.map((part, index) => ({ name: part, shape: shape.slice(1), tensor, index, count: parts.length }));
  });
}

/** Reads pieces of a list; a tensor whose pieces follow each other is read once. */
function readerOf(list: TensorList): (piece: Piece) => Promise<Uint8Array> {
  let last: { readonly name: string; readonly bytes: Uint8Array } | undefined;
  return async ({ tensor: { name }, index, count }) => {
    if (last?.name !== name) last = { name, bytes: await list.read(name) };
    const size = last.bytes.length / count;
    return last.bytes.subarray(index * size, (index + 1) * size);
  };
}

/** Compares tensor by tensor; names may have the `transformer.` prefix on one side. */
export async function compareTensors(a: TensorList, b: TensorList): Promise<Comparison> {
  const [piecesA, piecesB] = [piecesOf(a, b), piecesOf(b, a)];
  const [readA, readB] = [readerOf(a), readerOf(b)];
  const namesB = new Map(piecesB.map((piece) => [bare(piece.name), piece]));
  const namesA = new Set(piecesA.map(({ name }) => bare(name)));
  const shapes: { name: string; a: Shape; b: Shape }[] = [];
  const tensors: TensorDifference[] = [];
  for (const piece of piecesA) {
    const other = namesB.get(bare(piece.name));
    if (other === undefined) continue;
    if (sizeOf(piece.shape) !== sizeOf(other.shape)) {
      shapes.push({ name: piece.name, a: piece.shape, b: other.shape });
      continue;
    }
    tensors.push(difference(piece, other, { a: await readA(piece), b: await readB(other) }));
    await setImmediate();
  }
  return {
    onlyA: piecesA.map(({ name }) => name).filter((name) => !namesB.has(bare(name))),
    onlyB: piecesB.map(({ name }) => name).filter((name) => !namesA.has(bare(name))),
    shapes,
    tensors,
  };
}

function difference(
  { name, shape, tensor: { dtype } }: Piece,
  { tensor: { dtype: otherDType } }: Piece,
  bytes: { readonly a: Uint8Array; readonly b: Uint8Array },
): TensorDifference {
  const [a, b] = [toNumbers(dtype, bytes.a), toNumbers(otherDType, bytes.b)];
  const bits = dtype === otherDType ? ([bitsOf(dtype, bytes.a), bitsOf(dtype, bytes.b)] as const) : undefined;
  let [sumA, sumB, sum, largest, at, differing] = [0, 0, 0, 0, -1, 0];
  for (let i = 0; i < a.length; i++) {
    const [x, y] = [a[i]!, b[i]!];
    sumA += x * x;
    sumB += y * y;
    const same = x === y || (Number.isNaN(x) && Number.isNaN(y));
    if (bits ? bits[0][i] === bits[1][i] : same) continue;
    const distance = same ? 0 : Math.abs(y - x);
    differing++;
    sum += distance * distance;
    if (at < 0 || (!(distance <= largest) && !Number.isNaN(largest))) [largest, at] = [distance, i];
  }
  const [normA, normB, norm] = [Math.sqrt(sumA), Math.sqrt(sumB), Math.sqrt(sum)];
  return { name, shape, normA, normB, norm, largest, at: at < 0 ? [] : indexOf(at, shape), differing };
}

function indexOf(flat: number, shape: Shape): number[] {
  let rest = flat;
  return shape
    .toReversed()
    .map((size) => {
      const index = rest % size;
      rest = Math.floor(rest / size);
      return index;
    })
    .reverse();
}
