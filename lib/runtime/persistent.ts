// Tensors that outlive runs: parameters, optimizer state, data. Each device holds its shard in a buffer of its own.
import { extractBlock, insertBlock } from "../core/block.ts";
import { type DType, type StorageArray, dtypeSize, newStorage } from "../core/dtype.ts";
import { DeviceError, ShapeError } from "../core/errors.ts";
import { type Shape, shapeText, sizeOf } from "../core/shape.ts";
import type { MeshLayout } from "../ir/mesh.ts";
import { type ValueSpec, axisName, shardInterval } from "../ir/spec.ts";
import type { Engine } from "./engine.ts";

/** How a persistent tensor is laid out. */
export interface PersistentType {
  readonly dtype: DType;
  readonly shape: Shape;
  readonly spec: ValueSpec;
  /** Coordinates along pp of the devices that hold it; all when absent. */
  readonly columns?: readonly number[];
}

interface Entry extends PersistentType {
  /** Buffer handle by device; -1 where the device holds nothing. */
  readonly buffers: number[];
}

/** The persistent tensors of one mesh, by id. */
export class PersistentStore {
  readonly #engine: Engine;
  readonly #layout: MeshLayout;
  readonly #entries = new Map<string, Entry>();

  constructor(engine: Engine, layout: MeshLayout) {
    this.#engine = engine;
    this.#layout = layout;
  }

  has(id: string): boolean {
    return this.#entries.has(id);
  }

  type(id: string): PersistentType {
    return this.#entry(id);
  }

  #entry(id: string): Entry {
    const entry = this.#entries.get(id);
    if (!entry) throw new DeviceError(`no tensor "${id}" is on this mesh`);
    return entry;
  }

  /** Start and shape of a device's shard. */
  shard(type: PersistentType, rank: number): { start: number[]; shape: number[] } {
    const place = this.#layout.place(rank);
    const parts = type.shape.map((n, d) =>
      shardInterval(n, type.spec.dims[d]!.map(axisName), this.#layout.sizes, place),
    );
    return { start: parts.map((p) => p.start), shape: parts.map((p) => p.stop - p.start) };
  }

  #holds(type: PersistentType, rank: number): boolean {
    return type.columns === undefined || type.columns.includes(this.#layout.coordinates(rank).pp ?? 0);
  }

  /** Allocates a tensor's shards (zeroed). Does nothing when it is there with the same layout. */
  allocate(id: string, type: PersistentType): void {
    if (this.#entries.has(id)) return;
    const buffers = Array.from({ length: this.#layout.devices }, (_, rank) => {
      if (!this.#holds(type, rank)) return -1;
      const bytes = sizeOf(this.shard(type, rank).shape) * dtypeSize(type.dtype);
      return this.#engine.allocate(rank, Math.max(64, Math.ceil(bytes / 64) * 64));
    });
    this.#entries.set(id, { ...type, buffers });
  }

  /** Buffer of a tensor on a device. */
  buffer(id: string, rank: number): number {
    const buffer = this.#entry(id).buffers[rank]!;
    if (buffer < 0) throw new DeviceError(`tensor "${id}" is not on device ${rank}`);
    return buffer;
  }

  /** The devices that hold a tensor, with their buffers and shards. */
  holders(id: string): { rank: number; buffer: number; start: number[]; shape: number[] }[] {
    const entry = this.#entry(id);
    return entry.buffers.flatMap((buffer, rank) => (buffer < 0 ? [] : [{ rank, buffer, ...this.shard(entry, rank) }]));
  }

  /** Writes the whole tensor: every device gets its part, at once or in turn with the runs that are on. */
  write(id: string, values: StorageArray): void {
    const entry = this.#entry(id);
    if (values.length !== sizeOf(entry.shape)) {
      throw new ShapeError(`${id} of shape ${shapeText(entry.shape)} cannot be written from ${values.length} elements`);
    }
    entry.buffers.forEach((buffer, rank) => {
      if (buffer < 0) return;
      const { start, shape } = this.shard(entry, rank);
      const part = newStorage(entry.dtype, sizeOf(shape));
      extractBlock(values, entry.shape, start, part, shape);
      if (part.length > 0) this.#engine.writeInTurn(buffer, part);
    });
  }

  /** Reads the whole tensor from the shards. */
  read(id: string): StorageArray {
    const entry = this.#entry(id);
    const whole = newStorage(entry.dtype, sizeOf(entry.shape));
    const done = new Set<string>();
    entry.buffers.forEach((buffer, rank) => {
      if (buffer < 0) return;
      const { start, shape } = this.shard(entry, rank);
      const key = start.join();
      if (sizeOf(shape) === 0 || done.has(key)) return;
      done.add(key);
      const part = newStorage(entry.dtype, sizeOf(shape));
      this.#engine.read(buffer, part);
      insertBlock(part, shape, whole, entry.shape, start);
    });
    return whole;
  }

  /** Reads one device's shard. */
  readShard(id: string, rank: number): StorageArray {
    const entry = this.#entry(id);
    const part = newStorage(entry.dtype, sizeOf(this.shard(entry, rank).shape));
    if (part.length > 0) this.#engine.read(this.buffer(id, rank), part);
    return part;
  }

  /** Frees a tensor's memory. */
  free(id: string): void {
    const entry = this.#entries.get(id);
    if (!entry) return;
    this.#entries.delete(id);
    entry.buffers.forEach((buffer) => {
      if (buffer >= 0) this.#engine.free(buffer);
    });
  }

  /** Bytes each device holds. */
  bytes(): number[] {
    const out = new Array<number>(this.#layout.devices).fill(0);
    for (const entry of this.#entries.values()) {
      entry.buffers.forEach((buffer, rank) => {
        if (buffer >= 0)
          out[rank]! += Math.max(
            64,
            Math.ceil((sizeOf(this.shard(entry, rank).shape) * dtypeSize(entry.dtype)) / 64) * 64,
          );
      });
    }
    return out;
  }
}
