// Collectives on one array or buffer a device: the ranks of a group exchange, each device gets one.
import { expectInteger, expectList, expectObject } from "../core/check.ts";
import { describe } from "../core/describe.ts";
import { type CollectivePart, type CollectiveRequest, LoadedCollective } from "../compile/collective.ts";
import type { DType, StorageArray } from "../core/dtype.ts";
import { DTypeError, MeshError, ShapeError } from "../core/errors.ts";
import type { ReduceKind } from "../ir/spec.ts";
import { reduceKinds } from "../ops/reduction.ts";
import { Buffer } from "./buffer.ts";
import type { Mesh } from "./mesh.ts";

/** Elements of one device: Float32Array f32, Float64Array f64, Int32Array i32, Uint16Array the bits of bf16. */
export type DeviceArray = Float32Array | Float64Array | Int32Array | Uint16Array;

/** What a device brings to a collective: an array, or a buffer in its memory. */
export type CollectiveOperand = DeviceArray | Buffer;

/** A collective on buffers, one of each list a device, in device order. */
export interface CollectiveOptions {
  readonly inputs: readonly Buffer[];
  /** As long as the results; all_reduce and broadcast may have their inputs here: in place. */
  readonly outputs: readonly Buffer[];
  /** all_reduce and reduce_scatter: "sum" by default. */
  readonly kind?: ReduceKind;
  /** broadcast: index in the group of the rank that gives; 0 by default. */
  readonly root?: number;
  /** How often a run does it in a row; once by default. */
  readonly times?: number;
}

/** Name of a collective. */
export type CollectiveName = CollectiveRequest["op"];

/**
 * The groups of devices that differ only in their coordinates on some axes. Every method takes one array or one Buffer
 * for each device of the mesh, in device order, runs the collective on all groups at once (on the devices, not in
 * JavaScript), and resolves with one new array or Buffer a device. Throws ShapeError for lengths that do not fit,
 * DTypeError for several element types.
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
  allReduce<T extends CollectiveOperand>(operands: readonly T[], kind: ReduceKind = "sum"): Promise<T[]> {
    return this.#run("all_reduce", operands, kind);
  }

  /** The ranks' elements one after the other, on every rank. Lengths may differ. */
  allGather<T extends CollectiveOperand>(operands: readonly T[]): Promise<T[]> {
    return this.#run("all_gather", operands);
  }

  /**
   * The sum (max, min), of which rank i of k gets part i; the first n mod k parts hold one element more. Equal lengths.
   */
  reduceScatter<T extends CollectiveOperand>(operands: readonly T[], kind: ReduceKind = "sum"): Promise<T[]> {
    return this.#run("reduce_scatter", operands, kind);
  }

  /** Part i of each goes to rank i, which joins them in rank order. The first n mod k parts hold one element more. */
  allToAll<T extends CollectiveOperand>(operands: readonly T[]): Promise<T[]> {
    return this.#run("all_to_all", operands);
  }

  /** What the rank with index `root` in its group has, on every rank. Equal lengths. */
  broadcast<T extends CollectiveOperand>(operands: readonly T[], root = 0): Promise<T[]> {
    return this.#run("broadcast", operands, "sum", root);
  }

  /**
   * Loads a collective on buffers that are there already, to be run many times. Throws ShapeError for outputs that are
   * not as long as its results.
   */
  collective(op: CollectiveName, options: CollectiveOptions): Collective {
    if (!ops.has(op)) throw new MeshError(`a collective is one of ${[...ops].join(", ")}, not ${describe(op)}`);
    expectObject(`the options of ${op}`, options);
    const { inputs, outputs, kind = "sum", root = 0, times = 1 } = options;
    expectInteger("times", times, 1, 2 ** 20);
    const request = { ...this.#request(op, inputs, kind, root), dtype: dtypeOf(op, inputs), times };
    this.#expectDevices(op, outputs);
    for (const list of [inputs, outputs]) this.#expectBuffers(op, list);
    outputs.forEach(({ length, dtype }, rank) => {
      const wanted = request.parts[rank]!.output;
      if (dtype !== request.dtype) throw new DTypeError(`${op}: an output is ${dtype}, the inputs ${request.dtype}`);
      if (length === wanted) return;
      throw new ShapeError(`${op}: device ${rank} gets ${wanted} elements, but its output has ${length}`);
    });
    return new Collective(this.#mesh, request, inputs, outputs);
  }

  #run<T extends CollectiveOperand>(
    op: CollectiveName,
    operands: readonly T[],
    kind: ReduceKind = "sum",
    root = 0,
  ): Promise<T[]> {
    return this.#exchange(operands, this.#request(op, operands, kind, root));
  }

  async #exchange<T extends CollectiveOperand>(operands: readonly T[], untyped: UntypedRequest): Promise<T[]> {
    const request = { ...untyped, dtype: dtypeOf(untyped.op, operands) };
    const made: Buffer[] = [];
    const buffer = (length: number, rank: number): Buffer => {
      made.push(this.#mesh.device(rank).allocate(request.dtype, length));
      return made.at(-1)!;
    };
    try {
      const inputs = operands.map((o, rank) => (o instanceof Buffer ? o : buffer(o.length, rank)));
      this.#expectBuffers(request.op, inputs);
      const outputs = request.parts.map(({ output }, rank) => buffer(output, rank));
      using loaded = new Collective(this.#mesh, request, inputs, outputs);
      await Promise.all(operands.map((o, rank) => (o instanceof Buffer ? undefined : inputs[rank]!.write(o))));
      await loaded.run();
      if (!operands.every((o) => o instanceof Buffer)) {
        const read = await Promise.all(outputs.map((output) => output.read()));
        return read.map((result, rank) => likeOf(operands[rank]!, result));
      }
      made.length = 0; // the caller's from here on
      return outputs.map((output, rank) => likeOf(operands[rank]!, output));
    } finally {
      for (const each of made) each[Symbol.dispose]();
    }
  }

  /** The collective that these operands ask for, but for their element type. */
  #request(op: CollectiveName, operands: readonly CollectiveOperand[], kind: ReduceKind, root: number): UntypedRequest {
    this.#expectDevices(op, operands);
    operands.forEach(storedAs);
    if (!reduceKinds.includes(kind)) {
      throw new ShapeError(`${op}: a reduction is one of ${reduceKinds.join(", ")}, not ${describe(kind)}`);
    }
    if (!Number.isInteger(root) || root < 0 || root >= this.size) {
      throw new ShapeError(`${op}: root ${describe(root)} is no index in a group of ${this.size}`);
    }
    const lengths = operands.map(({ length }) => length);
    if (op !== "all_gather" && op !== "all_to_all") this.#expectEqual(op, lengths);
    return { op, axes: this.axes, kind, root, parts: lengths.map((_, rank) => this.#part(op, lengths, rank)) };
  }

  /** What a device brings and gets, in elements. */
  #part(op: CollectiveName, lengths: readonly number[], rank: number): CollectivePart {
    const group = this.ranks[rank]!;
    const [input, own] = [lengths[rank]!, group.indexOf(rank)];
    switch (op) {
      case "all_gather": {
        const counts = group.map((r) => lengths[r]!);
        return { input, output: total(counts), counts };
      }
      case "reduce_scatter": {
        const counts = parts(input, this.size);
        return { input, output: counts[own]!, counts };
      }
      case "all_to_all": {
        const joinCounts = group.map((r) => parts(lengths[r]!, this.size)[own]!);
        return { input, output: total(joinCounts), counts: parts(input, this.size), joinCounts };
      }
      default:
        return { input, output: input };
    }
  }

  #expectDevices(op: string, operands: readonly CollectiveOperand[]): void {
    expectList(`${op}'s operands`, operands);
    if (operands.length === this.#mesh.devices) return;
    throw new ShapeError(
      `${op} takes one array or buffer for each of the ${this.#mesh.devices} devices, got ${operands.length}`,
    );
  }

  #expectBuffers(op: string, buffers: readonly Buffer[]): void {
    buffers.forEach((buffer, rank) => {
      if (!(buffer instanceof Buffer)) throw new DTypeError(`${op} takes Buffers, not ${describe(buffer)}`);
      if (buffer.device.mesh === this.#mesh && buffer.device.rank === rank) return;
      throw new MeshError(`${op}: buffer ${rank} is on ${buffer.device} of ${buffer.device.mesh.name}`);
    });
  }

  #expectEqual(op: string, lengths: readonly number[]): void {
    lengths.forEach((length, rank) => {
      const first = this.ranks[rank]![0]!;
      if (length === lengths[first]!) return;
      throw new ShapeError(
        `${op}: device ${first} brings ${lengths[first]!} elements, device ${rank} of the same group ${length}`,
      );
    });
  }
}

/** A loaded collective. Use group.collective(). */
export class Collective implements Disposable {
  readonly #loaded: LoadedCollective;

  constructor(mesh: Mesh, request: CollectiveRequest, inputs: readonly Buffer[], outputs: readonly Buffer[]) {
    const handles = inputs.map((input, rank) => ({ input: input.handle, output: outputs[rank]!.handle }));
    this.#loaded = new LoadedCollective(mesh.engine, mesh.layout, request, handles);
  }

  /** Runs it `times` times on all groups. Resolves with the seconds of the run by the devices' clock. */
  run(): Promise<number> {
    return this.#loaded.run();
  }

  [Symbol.dispose](): void {
    this.#loaded[Symbol.dispose]();
  }
}

type UntypedRequest = Omit<CollectiveRequest, "dtype">;

const ops: ReadonlySet<unknown> = new Set<CollectiveName>([
  "all_reduce",
  "all_gather",
  "reduce_scatter",
  "all_to_all",
  "broadcast",
]);

function total(counts: readonly number[]): number {
  return counts.reduce((a, b) => a + b, 0);
}

/** Lengths of the k parts of n elements: the first ones hold one more. */
function parts(n: number, k: number): number[] {
  return Array.from({ length: k }, (_, i) => Math.floor(n / k) + (i < n % k ? 1 : 0));
}

function dtypeOf(op: string, operands: readonly CollectiveOperand[]): DType {
  const found = new Set(operands.map(storedAs));
  const [dtype] = found;
  if (found.size === 1 && dtype !== undefined) return dtype;
  throw new DTypeError(`${op}: the devices' elements are of one type, got ${[...found].join(", ") || "none"}`);
}

function storedAs(operand: CollectiveOperand): DType {
  if (operand instanceof Buffer) return operand.dtype;
  if (operand instanceof Float32Array) return "f32";
  if (operand instanceof Float64Array) return "f64";
  if (operand instanceof Int32Array) return "i32";
  if (operand instanceof Uint16Array) return "bf16";
  throw new DTypeError("a collective takes Buffers, Float32Array, Float64Array, Int32Array or Uint16Array (bf16)");
}

/** The result, typed as the argument; its dtype was the argument's all the way. */
function likeOf<T extends CollectiveOperand>(like: T, result: StorageArray | Buffer): T {
  if (result.constructor !== like.constructor) throw new DTypeError("a collective changed the type of its data");
  return result as T;
}
