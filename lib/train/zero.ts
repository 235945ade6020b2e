// ZeRO (Rajbhandari et al. 2020) as specs: along which dim the fsdp axis splits a parameter, its gradient and its
// state.
import type { Shape } from "../core/shape.ts";
import { sizeOf } from "../core/shape.ts";
import type { MeshLayout } from "../ir/mesh.ts";
import { type ValueSpec, localShape } from "../ir/spec.ts";

/** What the fsdp axis splits: 1 the optimizer's state, 2 gradients too, 3 parameters too. */
export type ZeroLevel = 1 | 2 | 3;

/** The level where none is asked for. */
export const defaultZero: ZeroLevel = 3;

/** A larger shard by so much is taken for the sake of an outer dim, whose shards are contiguous. */
const tolerated = 1.01;

/**
 * The spec split once more, by fsdp, innermost, along the first of the dims that make the largest shard smallest; the
 * spec itself where no dim can be split, as of a scalar.
 */
export function splitByFsdp(shape: Shape, spec: ValueSpec, layout: MeshLayout): ValueSpec {
  if (layout.size("fsdp") === 1 || spec.dims.flat().includes("fsdp")) return spec;
  const specs = shape.map((_, d) => ({
    ...spec,
    dims: spec.dims.map((axes, i) => (i === d ? [...axes, "fsdp"] : axes)),
  }));
  // The first rank of every axis holds most.
  const largest = (of: ValueSpec): number =>
    sizeOf(localShape(shape, of, layout.sizes, { coordinates: {}, microbatch: 0 }));
  const best = Math.min(...specs.map(largest));
  if (!(best < largest(spec))) return spec;
  return specs.find((s) => largest(s) <= best * tolerated)!;
}

/** A spec without the fsdp axis: how a parameter is used. */
export function withoutFsdp(spec: ValueSpec): ValueSpec {
  return { ...spec, dims: spec.dims.map((axes) => axes.filter((a) => a !== "fsdp")) };
}
