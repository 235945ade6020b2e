// The mesh on the command line: `dp=2,tp=2,pp=2`.
import { UsageError } from "../core/errors.ts";
import { nearest } from "../core/nearest.ts";
import { axisOrder, maxDevices, type MeshAxis } from "../ir/mesh.ts";

/** The size of every axis; 1 where none was asked for. */
export type MeshSizes = Readonly<Record<MeshAxis, number>>;

/** A mesh of one device. */
export const ONE_DEVICE: MeshSizes = { pp: 1, dp: 1, fsdp: 1, cp: 1, ep: 1, tp: 1 };

/** Number of devices in a mesh. */
export function deviceCount(mesh: MeshSizes): number {
  return axisOrder.reduce((product, axis) => product * mesh[axis], 1);
}

/** The axes of a mesh with their sizes in device order, those of size 1 included. */
export function axisList(mesh: MeshSizes): { readonly name: MeshAxis; readonly size: number }[] {
  return axisOrder.map((name) => ({ name, size: mesh[name] }));
}

/** As on the command line, axes of size 1 left out; `one device` for none. */
export function meshText(mesh: MeshSizes): string {
  const parts = axisOrder.filter((axis) => mesh[axis] > 1).map((axis) => `${axis}=${mesh[axis]}`);
  return parts.length === 0 ? "one device" : parts.join(",");
}

/** Reads `dp=2,tp=2,pp=2`, in any order. @throws {UsageError} for unknown or repeated axes and sizes below 1. */
export function parseMesh(text: string): MeshSizes {
  const pairs = text.split(",").map((part) => {
    const found = /^\s*([A-Za-z]\w*)\s*=\s*(\S+)\s*$/.exec(part);
    if (found === null) throw new UsageError(`"${part}" is no axis and size; an example: dp=2,tp=2,pp=2`);
    return [found[1]!, found[2]!] as const;
  });
  return meshOf(pairs);
}

/** Reads a mesh of a JSON config: the same text, or an object of sizes by axis. */
export function meshFromJson(value: unknown): MeshSizes | undefined {
  if (typeof value === "string") return parseMesh(value);
  if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
  return meshOf(Object.entries(value).map(([axis, size]) => [axis, typeof size === "number" ? String(size) : "?"]));
}

function meshOf(pairs: readonly (readonly [string, string])[]): MeshSizes {
  const sizes = new Map<MeshAxis, number>();
  for (const [name, size] of pairs) {
    const axis = axisOrder.find((known) => known === name);
    if (axis === undefined) {
      throw new UsageError(
        `unknown axis "${name}"; the nearest is "${nearest(name, axisOrder)}" (axes: ${axisOrder.join(", ")})`,
      );
    }
    if (sizes.has(axis)) throw new UsageError(`axis "${name}" is given twice`);
    if (!/^\d{1,5}$/.test(size) || Number(size) < 1) {
      throw new UsageError(`axis "${name}" has size "${size}"; a whole number from 1 on is expected`);
    }
    sizes.set(axis, Number(size));
  }
  const mesh = { ...ONE_DEVICE, ...Object.fromEntries(sizes) };
  const devices = deviceCount(mesh);
  if (devices > maxDevices) throw new UsageError(`${devices} devices are too many; ${maxDevices} are the most`);
  return mesh;
}
