// Refuses meshes on which a device would have no work: an axis that splits nothing, or more ranks than there are parts.
import { PlanError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import { axisName, localShape, shiftsOf } from "../ir/spec.ts";
import type { RoleInput } from "./role.ts";
import { sequenceAxis } from "./sequence.ts";

/**
 * What fsdp splits beside samples is split in memory only: every device works on it whole. Parts that go round a ring
 * are another's.
 */
function isWork(axis: string): boolean {
  return axis !== "fsdp" && shiftsOf(axis) === 0;
}

/** Throws PlanError naming the axis and the first coordinate that would hold nothing in any microbatch. */
export function refuseIdleDevices({ options, sizes, micro }: RoleInput): void {
  const { layout } = options;
  for (const axis of layout.axes) {
    const size = layout.size(axis);
    if (axis === "pp" || size === 1) continue;
    const busy = new Set<number>();
    let split = false;
    sizes.forEach((samples, m) => {
      for (const { type, spec } of micro.get(samples)!.graph.values) {
        if (!spec!.dims.some((axes) => axes.some((a) => axisName(a) === axis && isWork(a)))) continue;
        split = true;
        for (let c = 0; c < size && busy.size < size; c++) {
          // The other coordinates are taken at 0, where every split holds something if any rank does.
          if (busy.has(c)) continue;
          const place = { coordinates: { [axis]: c }, microbatch: m };
          if (sizeOf(localShape(type.shape, spec!, layout.sizes, place)) > 0) busy.add(c);
        }
      }
    });
    if (!split) {
      const way =
        axis === sequenceAxis
          ? 'leave it out, or mark the dims of the batch that it splits: "sequence"'
          : "leave it out";
      throw new PlanError(`mesh ${layout}: axis ${axis} splits nothing in this step; ${way}`);
    }
    if (busy.size === size) continue;
    const idle = Array.from({ length: size }, (_, c) => c).find((c) => !busy.has(c));
    throw new PlanError(
      `mesh ${layout}: devices with ${axis}=${idle} would have no work in the whole step; use ${axis}=${busy.size} or less`,
      { details: { axis, coordinate: idle } },
    );
  }
}
