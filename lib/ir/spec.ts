// How a value is split over a mesh: PartitionSpec for users, ValueSpec inside the compiler, and the arithmetic of
// shards.
import type { Shape } from "../core/shape.ts";

/**
 * For each tensor dim, the mesh axes that split it, nesting in listed order; null or a missing entry: not split.
 * `[["dp", "fsdp"], null, "tp"]` splits dim 0 over dp and each part over fsdp, and dim 2 over tp.
 */
export type PartitionSpec<Axis extends string = string> = readonly (Axis | readonly Axis[] | null)[];

/** How partial results combine. */
export type ReduceKind = "sum" | "max" | "min";

/**
 * The compiler's spec. An axis written with a trailing `*` ("dp*") splits samples of a microbatch: there the owner of
 * the remainder rotates with the microbatch, so that over a step every rank gets its share. "cp@2" is "cp" after two
 * shifts round the ring: each rank holds the part of the rank two before it.
 */
export interface ValueSpec {
  /** For each dim, the axes that split it, outermost first. */
  readonly dims: readonly (readonly string[])[];
  /** Axes over whose ranks the value is the sum (max, min) of the ranks' tensors. */
  readonly partial: Readonly<Record<string, ReduceKind>>;
  /**
   * Set for rows that were dispatched to experts, and what belongs to them: they lie in an order of the device's own,
   * and over these axes with the ranks that have their experts. Such values cannot be resharded along their rows.
   */
  readonly routed?: readonly string[];
}

/** Sizes of a mesh's axes, in device order (the last varies fastest). */
export type MeshAxes = readonly { readonly name: string; readonly size: number }[];

/** Where a device stands: its coordinate on each axis; and the microbatch, which turns the remainders of "*" splits. */
export interface Place {
  readonly coordinates: Readonly<Record<string, number>>;
  readonly microbatch: number;
}

/** Axis name without the marks of rotation and of shifts. */
export function axisName(axis: string): string {
  const mark = axis.search(/[*@]/);
  return mark < 0 ? axis : axis.slice(0, mark);
}

/** How often parts were shifted round the ring: 2 for "cp@2", 0 for "cp". */
export function shiftsOf(axis: string): number {
  const mark = axis.indexOf("@");
  return mark < 0 ? 0 : Number(axis.slice(mark + 1));
}

/** The axis after so many shifts from where each rank holds its own part. */
export function shifted(axis: string, shifts: number): string {
  return shifts === 0 ? axisName(axis) : `${axisName(axis)}@${shifts}`;
}

/** The spec of a whole value on every device. */
export function replicated(rank: number): ValueSpec {
  return { dims: Array.from({ length: rank }, () => []), partial: {} };
}

/** A user's spec as the compiler's, for a tensor of the given rank. */
export function toValueSpec(spec: PartitionSpec | undefined, rank: number): ValueSpec {
  const dims = Array.from({ length: rank }, (_, d) => {
    const entry = spec?.[d];
    return entry === undefined || entry === null ? [] : typeof entry === "string" ? [entry] : [...entry];
  });
  return { dims, partial: {} };
}

/** True when nothing is split and nothing partial. */
export function isReplicated(spec: ValueSpec): boolean {
  return spec.dims.every((axes) => axes.length === 0) && Object.keys(spec.partial).length === 0;
}

/** True when both dims' axes are the same, in order. */
export function sameAxes(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((x, i) => x === b[i]);
}

/** True when both specs say the same. */
export function sameSpec(a: ValueSpec, b: ValueSpec): boolean {
  const ka = Object.keys(a.partial);
  return (
    a.dims.length === b.dims.length &&
    a.dims.every((axes, d) => sameAxes(axes, b.dims[d]!)) &&
    ka.length === Object.keys(b.partial).length &&
    ka.every((axis) => a.partial[axis] === b.partial[axis]) &&
    a.routed?.join() === b.routed?.join()
  );
}

/** Text of a spec: `[dp*, -, tp] +sum(tp)`. */
export function specText(spec: ValueSpec): string {
  const dims = spec.dims.map((axes) => (axes.length === 0 ? "-" : axes.join(".")));
  const partial = Object.entries(spec.partial).map(([axis, kind]) => ` +${kind}(${axis})`);
  const routed = spec.routed ? ` routed(${spec.routed.join()})` : "";
  return `[${dims.join(", ")}]${partial.join("")}${routed}`;
}

/** Half-open interval of indices. */
export interface Interval {
  readonly start: number;
  readonly stop: number;
}

function splitOnce(n: number, parts: number, rank: number, turn: number): Interval {
  const base = Math.floor(n / parts);
  const extra = n - base * parts;
  // Ranks turn, turn + 1, ... (mod parts) hold one element more, `extra` of them; parts stay in rank order.
  let start = 0;
  for (let r = 0; r < rank; r++) start += base + ((r - turn + parts) % parts < extra ? 1 : 0);
  return { start, stop: start + base + ((rank - turn + parts) % parts < extra ? 1 : 0) };
}

/**
 * The part of a dim of size n that a place holds: the first n mod k ranks hold one element more, parts may be empty;
 * with several axes, each part is split again. For a "*" axis the remainder's first owner is the microbatch's number,
 * so that owners rotate (outer axis first).
 */
export function shardInterval(
  n: number,
  axes: readonly string[],
  sizes: Readonly<Record<string, number>>,
  place: Place,
): Interval {
  let start = 0;
  let length = n;
  let turns = place.microbatch;
  for (const axis of axes) {
    const name = axisName(axis);
    const parts = sizes[name] ?? 1;
    const turn = axis.endsWith("*") ? turns % parts : 0;
    if (axis.endsWith("*")) turns = Math.floor(turns / parts);
    const rank = ((place.coordinates[name] ?? 0) - shiftsOf(axis) + parts) % parts;
    const part = splitOnce(length, parts, rank, turn);
    start += part.start;
    length = part.stop - part.start;
  }
  return { start, stop: start + length };
}

/** Local shape of a value of the given global shape at a place. */
export function localShape(
  shape: Shape,
  spec: ValueSpec,
  sizes: Readonly<Record<string, number>>,
  place: Place,
): number[] {
  return shape.map((n, d) => {
    const axes = spec.dims[d]!;
    if (axes.length === 0) return n;
    const { start, stop } = shardInterval(n, axes, sizes, place);
    return stop - start;
  });
}
