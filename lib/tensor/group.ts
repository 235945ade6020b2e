// Collectives on plain arrays: each device brings one, the ranks of a group exchange, each device gets one.
import { describe } from "../core/describe.ts";
import { expectList } from "../core/check.ts";
import type { CollectivePart, CollectiveRequest } from "../compile/collective.ts";
import { LoadedCollective } from "../compile/collective.ts";
import type { DType, StorageArray } from "../core/dtype.ts";
import { DTypeError, MeshError, ShapeError } from "../core/errors.ts";
import type { ReduceKind } from "../ir/spec.ts";
import type { Mesh } from "./mesh.ts";

/** Elements of one device: Float32Array f32, Float64Array f64, Int32Array i32, Uint16Array the bits of bf16. */
export type DeviceArray = Float32Array | Float64Array | Int32Array | Uint16Array;

/**
 * The groups of devices that differ only in their coordinates on some axes. Every method takes one array for each
 * device of the mesh, in device order, runs the collective on all groups at once (on the devices, not in JavaScript),
 * and resolves with one new array a device. Throws ShapeError for lengths that do not fit, DTypeError for arrays of
 * several types.
 */
export class Group {
  readonly axes: readonly string[];
  /** Ranks of each device's group, ascending. */
  readonly ranks: readonly (readonly number[])[];
  readonly #mesh: Mesh;

  /** Use mesh.group(). Throws MeshError for an axis the mesh lacks. */
  constructor(mesh: Mesh, axes: readonly string[]) {
    for (const axis of axes) {
      if (!mesh.layout.axes.includes(axis)) {
        throw new MeshError(
          `${mesh.name} has no axis "${String(axis)}"; it has ${mesh.layout.axes.join(", ") || "none"}`,
        );
      }
    }
    if (axes.length === 0 || new Set(axes).size !== axes.length) {
      throw new MeshError(`a group is made by one or more different axes, got [${axes.join(", ")}]`);
    }
    this.axes = [...axes];
    this.#mesh = mesh;
    this.ranks = Array.from({ length: mesh.devices }, (_, rank) => mesh.layout.group(rank, axes));
  }

  /** Devices in each group. */
  get size(): number {
    return this.ranks[0]!.length;
  }

  /** The elementwise sum (max, min) over the group, on every rank, added in rank order. Equal lengths. */
  allReduce<T extends DeviceArray>(arrays: readonly T[], kind: ReduceKind = "sum"): Promise<T[]> {
    this.#expectEqual("allReduce", arrays);
    return this.#run("all_reduce", arrays, (n) => ({ input: n, output: n }), kind);
  }

  /** The ranks' arrays one after the other, on every rank. Lengths may differ. */
  allGather<T extends DeviceArray>(arrays: readonly T[]): Promise<T[]> {
    this.#expectDevices("allGather", arrays);
    arrays.forEach(storedAs);
    return this.#run("all_gather", arrays, (n, rank) => {
      const counts = this.ranks[rank]!.map((r) => arrays[r]!.length);
      return { input: n, output: total(counts), counts };
    });
  }

  /**
   * The sum (max, min), of which rank i of k gets part i; the first n mod k parts hold one element more. Equal lengths.
   */
  reduceScatter<T extends DeviceArray>(arrays: readonly T[], kind: ReduceKind = "sum"): Promise<T[]> {
    this.#expectEqual("reduceScatter", arrays);
    const part = (n: number, rank: number): CollectivePart => {
      const counts = parts(n, this.size);
      return { input: n, output: counts[this.ranks[rank]!.indexOf(rank)]!, counts };
    };
    return this.#run("reduce_scatter", arrays, part, kind);
  }

  /**
   * Part i of each array goes to rank i, which joins them in rank order. The first n mod k parts hold one element more.
   */
  allToAll<T extends DeviceArray>(arrays: readonly T[]): Promise<T[]> {
    this.#expectDevices("allToAll", arrays);
    arrays.forEach(storedAs);
    return this.#run("all_to_all", arrays, (n, rank) => {
      const group = this.ranks[rank]!;
      const own = group.indexOf(rank);
      const joinCounts = group.map((r) => parts(arrays[r]!.length, this.size)[own]!);
      return { input: n, output: total(joinCounts), counts: parts(n, this.size), joinCounts };
    });
  }

  /** The array of the rank with index `root` in its group, on every rank. Equal lengths. */
  broadcast<T extends DeviceArray>(arrays: readonly T[], root = 0): Promise<T[]> {
    if (!Number.isInteger(root) || root < 0 || root >= this.size) {
      throw new ShapeError(`broadcast: root ${describe(root)} is no index in a group of ${this.size}`);
    }
    this.#expectEqual("broadcast", arrays);
    return this.#run("broadcast", arrays, (n) => ({ input: n, output: n }), "sum", root);
  }

  async #run<T extends DeviceArray>(
    op: CollectiveRequest["op"],
    arrays: readonly T[],
    part: (length: number, rank: number) => CollectivePart,
    kind: ReduceKind = "sum",
    root = 0,
  ): Promise<T[]> {
    const dtype = dtypeOf(op, arrays);
    const { engine, layout } = this.#mesh;
    const request = { op, axes: this.axes, dtype, kind, root, parts: arrays.map((a, rank) => part(a.length, rank)) };
    using loaded = new LoadedCollective(engine, layout, request);
    await Promise.all(arrays.map((array, rank) => loaded.write(rank, array)));
    await loaded.run();
    const results = await Promise.all(arrays.map((_, rank) => loaded.read(rank)));
    return results.map((result, rank) => likeOf(arrays[rank]!, result));
  }

  #expectDevices(op: string, arrays: readonly DeviceArray[]): void {
    expectList(`${op}'s arrays`, arrays);
    if (arrays.length !== this.#mesh.devices) {
      throw new ShapeError(`${op} takes one array for each of the ${this.#mesh.devices} devices, got ${arrays.length}`);
    }
  }

  #expectEqual(op: string, arrays: readonly DeviceArray[]): void {
    this.#expectDevices(op, arrays);
    arrays.forEach(storedAs);
    arrays.forEach((array, rank) => {
      const first = this.ranks[rank]![0]!;
      if (array.length === arrays[first]!.length) return;
      throw new ShapeError(
        `${op}: device ${first} brings ${arrays[first]!.length} elements, device ${rank} of the same group ${array.length}`,
      );
    });
  }
}

function total(counts: readonly number[]): number {
  return counts.reduce((a, b) => a + b, 0);
}

/** Lengths of the k parts of n elements: the first ones hold one more. */
function parts(n: number, k: number): number[] {
  return Array.from({ length: k }, (_, i) => Math.floor(n / k) + (i < n % k ? 1 : 0));
}

function dtypeOf(op: string, arrays: readonly DeviceArray[]): DType {
  const found = new Set(arrays.map(storedAs));
  const [dtype] = found;
  if (found.size === 1 && dtype !== undefined) return dtype;
  throw new DTypeError(`${op}: the devices' arrays are of one type, got ${[...found].join(", ") || "none"}`);
}

function storedAs(array: DeviceArray): DType {
  if (array instanceof Float32Array) return "f32";
  if (array instanceof Float64Array) return "f64";
  if (array instanceof Int32Array) return "i32";
  if (array instanceof Uint16Array) return "bf16";
  throw new DTypeError("a collective takes Float32Array, Float64Array, Int32Array or Uint16Array (bf16)");
}

/** The result, typed as the argument; its dtype was the argument's all the way. */
function likeOf<T extends DeviceArray>(like: T, result: StorageArray): T {
  if (result.constructor !== like.constructor) throw new DTypeError("a collective changed the type of its data");
  return result as T;
}
