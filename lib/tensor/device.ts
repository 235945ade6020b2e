// The devices of a mesh one by one: memory and single kernels, without tensors.
import { describe } from "../core/describe.ts";
import type { DType } from "../core/dtype.ts";
import { MeshError } from "../core/errors.ts";
import type { KernelName } from "../ops/kernels.ts";
import type { DeviceKind } from "../runtime/engine.ts";
import { Buffer } from "./buffer.ts";
import { Kernel, type KernelOptions } from "./kernel.ts";
import type { Mesh } from "./mesh.ts";

/** One device of a mesh. Use mesh.device(). */
export class Device {
  readonly mesh: Mesh;
  /** Its number in the mesh, from 0. */
  readonly rank: number;

  /** Throws MeshError for a rank that the mesh does not have. */
  constructor(mesh: Mesh, rank: number) {
    if (!Number.isInteger(rank) || rank < 0 || rank >= mesh.devices) {
      throw new MeshError(`${mesh.name} has the devices 0 to ${mesh.devices - 1}, not ${describe(rank)}`);
    }
    this.mesh = mesh;
    this.rank = rank;
  }

  get kind(): DeviceKind {
    return this.mesh.engine.kind;
  }

  /** Where it stands on each of the mesh's axes. */
  get coordinates(): Readonly<Record<string, number>> {
    return this.mesh.layout.coordinates(this.rank);
  }

  /** Memory for so many elements, zeroed. Throws DeviceError where there is not so much. */
  allocate(dtype: DType, length: number): Buffer {
    return new Buffer(this, dtype, length);
  }

  /**
   * One instruction of a kernel, by its name in native/core/opcodes.h, loaded on this device. Throws ProgramError where
   * the kernel does not take such operands.
   */
  kernel(name: KernelName, options: KernelOptions): Kernel {
    return new Kernel(this, name, options);
  }

  toString(): string {
    return `${this.kind}:${this.rank}`;
  }
}
