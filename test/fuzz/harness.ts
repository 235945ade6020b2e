// What the tests of random programs share. MESHWORK_LONG=1 runs many more programs, MESHWORK_FUZZ_SEED=7 other ones.
import assert from "node:assert/strict";
import { Mesh } from "../../lib/tensor/mesh.ts";
import type { NamedSym } from "../../lib/tensor/trace.ts";
import { testDevice } from "../device.ts";
import type { Dense } from "../conformance/dense.ts";

export const seed = Number(process.env.MESHWORK_FUZZ_SEED ?? 20260101);

/** How many programs to run. */
export function countOf(usual: number, long: number): number {
  const chosen = process.env.MESHWORK_FUZZ;
  return chosen === undefined ? (process.env.MESHWORK_LONG === "1" ? long : usual) : Number(chosen);
}

/** Differences that rounding explains, relative to a result's largest element, for programs that magnify little. */
export const tolerance = { f64: 1e-8, f32: 2e-3 } as const;

/** False for results with large numbers, whose programs may magnify rounding without bound. */
export function isTame({ data }: Dense): boolean {
  return data.every((v) => !Number.isFinite(v) || Math.abs(v) <= 1e5);
}

/** Open meshes by their axes. After a failure, and now and then, all are closed, so that nothing lingers. */
export class Meshes {
  readonly #open = new Map<string, Mesh<string>>();

  async get(axes: Readonly<Record<string, number>>): Promise<Mesh<string>> {
    const key = JSON.stringify(axes);
    const known = this.#open.get(key) ?? (await Mesh.open({ device: testDevice, axes, threads: 1, timeoutMs: 20_000 }));
    this.#open.set(key, known);
    return known;
  }

  async close(): Promise<void> {
    for (const mesh of this.#open.values()) await mesh.close();
    this.#open.clear();
  }
}

/** Throws unless types agree and every element is close. */
export function assertSame(
  found: readonly Dense[],
  expected: readonly Dense[],
  names: readonly Pick<NamedSym, "name">[],
  relative: number,
  what: string,
): void {
  expected.forEach((y, i) => {
    const own = found[i]!;
    assert.deepEqual([own.dtype, own.shape], [y.dtype, [...y.shape]], `${names[i]!.name} ${what}`);
    const scale = y.data.reduce((m, v) => Math.max(m, Number.isFinite(v) ? Math.abs(v) : 0), 1);
    y.data.forEach((v, e) => {
      const close = Object.is(own.data[e], v) || Math.abs(own.data[e]! - v) <= relative * scale;
      if (!close)
        assert.fail(`${names[i]!.name} ${what}: element ${e} of ${y.data.length} is ${own.data[e]}, not ${v}`);
    });
  });
}
