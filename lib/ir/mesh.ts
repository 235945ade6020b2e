// The mesh as arithmetic: axes in device order, ranks and coordinates. The devices themselves are the runtime's.
import { describe } from "../core/describe.ts";
import { MeshError } from "../core/errors.ts";
import type { Place } from "./spec.ts";

/** The axes meshwork knows, in device order: neighbours on the last axis are neighbouring devices. */
export const axisOrder = ["pp", "dp", "fsdp", "cp", "ep", "tp"] as const;

/** Name of a mesh axis with a meaning to the compiler. */
export type MeshAxis = (typeof axisOrder)[number];

/** Axes over which the samples of a batch are split. */
export const batchAxes: readonly string[] = ["dp", "fsdp", "ep"];

/** Most devices of a mesh (kMaxDevices in native/runtime/engine.cc). */
export const maxDevices = 1024;

/** Sizes of the axes and the numbering of devices. */
export class MeshLayout {
  /** Axis names in device order: the known ones first, in their order, then the others as given. */
  readonly axes: readonly string[];
  readonly sizes: Readonly<Record<string, number>>;
  readonly devices: number;

  /** Throws MeshError for a size that is not a positive integer. */
  constructor(axes: Readonly<Record<string, number>>) {
    for (const [name, size] of Object.entries(axes)) {
      if (!Number.isInteger(size) || size < 1)
        throw new MeshError(`mesh axis ${name} has size ${describe(size)}; a size is a whole number from 1 on`);
      if (!/^[a-z][a-z0-9_]*$/i.test(name))
        throw new MeshError(`"${name}" cannot name a mesh axis: use letters and digits`);
    }
    const names = Object.keys(axes);
    const known = axisOrder.filter((a) => names.includes(a));
    this.axes = [...known, ...names.filter((n) => !known.includes(n as MeshAxis))];
    this.sizes = { ...axes };
    this.devices = this.axes.reduce((n, a) => n * this.size(a), 1);
    if (this.devices > maxDevices) {
      throw new MeshError(`a mesh of ${this.devices} devices is over the limit of ${maxDevices}`);
    }
  }

  /** Size of an axis; 1 for one the mesh lacks. */
  size(axis: string): number {
    return this.sizes[axis] ?? 1;
  }

  /** Coordinates of a device. */
  coordinates(rank: number): Record<string, number> {
    const out: Record<string, number> = {};
    let rest = rank;
    for (let i = this.axes.length - 1; i >= 0; i--) {
      const axis = this.axes[i]!;
      out[axis] = rest % this.size(axis);
      rest = Math.floor(rest / this.size(axis));
    }
    return out;
  }

  /** Device at coordinates (0 on an axis that is not given). */
  rank(coordinates: Readonly<Record<string, number>>): number {
    return this.axes.reduce((r, a) => r * this.size(a) + (coordinates[a] ?? 0), 0);
  }

  place(rank: number, microbatch = 0): Place {
    return { coordinates: this.coordinates(rank), microbatch };
  }

  /** The devices that differ from `rank` only on the given axes, ascending; `stages` restricts the pp coordinate. */
  group(rank: number, axes: readonly string[], stages?: readonly number[]): number[] {
    const own = this.coordinates(rank);
    const out: number[] = [];
    for (let r = 0; r < this.devices; r++) {
      const c = this.coordinates(r);
      const same = this.axes.every((a) => axes.includes(a) || c[a] === own[a]);
      if (same && (stages === undefined || stages.includes(c.pp ?? 0))) out.push(r);
    }
    return out;
  }

  /** Text: `pp=2,tp=2`; `1 device` for an empty mesh. */
  toString(): string {
    return this.axes.length === 0 ? "1 device" : this.axes.map((a) => `${a}=${this.size(a)}`).join(",");
  }
}
