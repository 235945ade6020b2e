// Memory of one device: what collectives and single kernels work on.
import { expectDType, expectInteger } from "../core/check.ts";
import { describe } from "../core/describe.ts";
import { type DType, type StorageArray, dtypeSize, newStorage, storageView } from "../core/dtype.ts";
import { DeviceError, DTypeError, ShapeError } from "../core/errors.ts";
import { align } from "../passes/memory.ts";
import type { Engine } from "../runtime/engine.ts";
import type { Device } from "./device.ts";

/** Elements in a device's memory, until it is disposed of or the mesh is closed. Use device.allocate(). */
export class Buffer implements Disposable {
  readonly device: Device;
  readonly dtype: DType;
  /** Elements. */
  readonly length: number;
  readonly #engine: Engine;
  readonly #handle: number;
  #live = true;

  constructor(device: Device, dtype: DType, length: number) {
    expectDType("the dtype of a buffer", dtype);
    expectInteger("the length of a buffer", length, 0, 2 ** 48);
    this.device = device;
    this.dtype = dtype;
    this.length = length;
    this.#engine = device.mesh.engine;
    this.#handle = this.#engine.allocate(device.rank, Math.max(64, align(length * dtypeSize(dtype))));
  }

  get bytes(): number {
    return this.length * dtypeSize(this.dtype);
  }

  /** The engine's number for it. */
  get handle(): number {
    if (!this.#live) throw new DeviceError(`a buffer on ${this.device} was used after it was disposed of`);
    return this.#handle;
  }

  /**
   * Copies elements in, in the dtype's storage (bf16, f16: Uint16Array of bits; bool: Uint8Array), in turn with the
   * runs. They are taken at the call. Rejects with ShapeError or DTypeError for an array that is not as long or of
   * another type.
   */
  async write(values: StorageArray): Promise<void> {
    if (!ArrayBuffer.isView(values) || values.constructor !== newStorage(this.dtype, 0).constructor) {
      const wanted = newStorage(this.dtype, 0).constructor.name;
      throw new DTypeError(`a buffer of ${this.dtype} is written from a ${wanted}, not ${describe(values)}`);
    }
    if (values.length !== this.length) {
      throw new ShapeError(`a buffer of ${this.length} elements cannot be written from ${values.length}`);
    }
    if (this.length > 0) await this.#engine.writeQueued(this.handle, values);
  }

  /** Copies the elements out, as they are after all runs that were begun before. */
  async read(): Promise<StorageArray> {
    const bytes = await this.#engine.readQueued(this.handle, this.bytes);
    return storageView(this.dtype, bytes.buffer, bytes.byteOffset, this.length);
  }

  [Symbol.dispose](): void {
    if (!this.#live) return;
    this.#live = false;
    this.#engine.free(this.#handle);
  }
}
