// Sequences split over the axis cp: their zig-zag order, how inputs are laid out for it, and the inputs that tell it.
import { PlanError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { MeshLayout } from "../ir/mesh.ts";
import { shardInterval } from "../ir/spec.ts";
import { type Sequences, sequenceInput } from "../passes/sequence.ts";
import type { StepInput } from "./step.ts";

/** The axis that splits sequences. */
export const sequenceAxis = "cp";

/**
 * How a batch's array is laid out in staging memory: all samples' tokens of the first rank, then those of the next.
 */
export interface SequenceLayout {
  /** Dim of a sample that runs along the sequence. */
  readonly dim: number;
  /** Tokens of each rank. */
  readonly counts: readonly number[];
  /** The position of each token, rank after rank. */
  readonly positions: Int32Array;
}

/** Tokens of a sequence that each rank holds, as specs split a dim. */
function countsOf(length: number, ranks: number): number[] {
  return Array.from({ length: ranks }, (_, c) => {
    const place = { coordinates: { [sequenceAxis]: c }, microbatch: 0 };
    const { start, stop } = shardInterval(length, [sequenceAxis], { [sequenceAxis]: ranks }, place);
    return stop - start;
  });
}

/**
 * The zig-zag order of a sequence over ranks: the positions of the first rank's tokens, then of the next one's. A
 * rank with n tokens holds the next ceil(n / 2) from the front and the next floor(n / 2) from the back, so that in
 * causal attention all ranks see about equally much, whatever the length.
 */
export function zigzag(length: number, ranks: number): Int32Array {
  const order = new Int32Array(length);
  let [at, front, back] = [0, 0, length];
  for (const count of countsOf(length, ranks)) {
    const head = Math.ceil(count / 2);
    back -= count - head;
    for (let i = 0; i < count; i++) order[at++] = i < head ? front + i : back + i - head;
    front += head;
  }
  return order;
}

/** The place of each position in an order. */
function inverse(order: Int32Array): Int32Array {
  const places = new Int32Array(order.length);
  order.forEach((position, place) => {
    places[position] = place;
  });
  return places;
}

/** The sequences of a step's inputs; null where cp splits none. Throws PlanError for sequences of several lengths. */
export function sequencesOf(inputs: readonly StepInput[], layout: MeshLayout): Sequences | null {
  const along = inputs.filter((i) => i.sequence !== undefined);
  const [first] = along;
  if (first === undefined || layout.size(sequenceAxis) === 1) return null;
  const length = first.shape[first.sequence!]!;
  const other = along.find((i) => i.shape[i.sequence!] !== length);
  if (other !== undefined) {
    throw new PlanError(
      `input ${first.name} has sequences of ${length}, input ${other.name} of ${other.shape[other.sequence!]}: ` +
        `axis ${sequenceAxis} splits sequences of one length; mark those of one as no sequence`,
    );
  }
  return { inputs: new Map(along.map((i) => [i.name, i.sequence! + 1])), length };
}

/** The inputs of a step with those that tell the order of its sequences, and how the permuted ones are laid out. */
export function withSequenceInputs(
  inputs: readonly StepInput[],
  sequences: Sequences | null,
  layout: MeshLayout,
): StepInput[] {
  if (sequences === null) return [...inputs];
  const { length } = sequences;
  const ranks = layout.size(sequenceAxis);
  const positions = zigzag(length, ranks);
  const counts = countsOf(length, ranks);
  const told = { dtype: "i32", shape: [length], batch: false } as const;
  return [
    ...inputs.map((i) => (i.sequence === undefined ? i : { ...i, layout: { dim: i.sequence, counts, positions } })),
    { ...told, name: sequenceInput.positions, axes: [[sequenceAxis]], values: positions },
    { ...told, name: sequenceInput.allPositions, values: positions },
    { ...told, name: sequenceInput.places, values: inverse(positions) },
  ];
}

/** Elements of a sample before the sequence dim, and of each of its tokens. */
function aroundSequence(shape: readonly number[], dim: number): { readonly outer: number; readonly inner: number } {
  return { outer: sizeOf(shape.slice(0, dim)), inner: sizeOf(shape.slice(dim + 1)) };
}

/** Where the samples of one rank begin in an array laid out by ranks, and how long each is, in elements. */
export function rankPart(
  { dim, counts }: SequenceLayout,
  sample: readonly number[],
  samples: number,
  rank: number,
): { readonly start: number; readonly row: number } {
  const { outer, inner } = aroundSequence(sample, dim);
  const before = counts.slice(0, rank).reduce((a, b) => a + b, 0);
  return { start: samples * outer * before * inner, row: outer * counts[rank]! * inner };
}

/** Writes an array of whole samples, row-major, in the order of a layout. `shape` has the samples first. */
export function layOut(
  { dim, counts, positions }: SequenceLayout,
  shape: readonly number[],
  from: ArrayLike<number>,
  to: { [index: number]: number },
): void {
  const { outer, inner } = aroundSequence(shape.slice(1), dim);
  const length = shape[dim + 1]!;
  let [at, first] = [0, 0];
  for (const count of counts) {
    for (let row = 0; row < shape[0]! * outer; row++) {
      for (let i = first; i < first + count; i++) {
        const source = (row * length + positions[i]!) * inner;
        for (let k = 0; k < inner; k++) to[at++] = from[source + k]!;
      }
    }
    first += count;
  }
}
