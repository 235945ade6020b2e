// The constant table of one device: what a program's entries come to at its place.
import type { TableEntry } from "../ir/lowering.ts";
import type { MeshLayout } from "../ir/mesh.ts";
import { axisName, type Place, shardInterval } from "../ir/spec.ts";
import type { DeviceTable } from "../passes/encode.ts";

/** Evaluates table entries for one device. */
export function deviceTable(layout: MeshLayout, rank: number): DeviceTable {
  return {
    words(entry, microbatch) {
      const place = layout.place(rank, microbatch);
      switch (entry.kind) {
        case "literal":
          return [entry.value];
        case "start":
          return [startOf(entry, layout, place) + (entry.plus ?? 0)];
        case "counts":
          return counts(entry, layout, place);
        case "ring":
          return ringCounts(entry, layout, place);
      }
    },
    group: (entry) => layout.group(rank, entry.axes, entry.stages),
  };
}

/** Where this device's part begins, in the whole dim or in the part that the outer axes leave. */
function startOf(entry: TableEntry & { kind: "start" }, layout: MeshLayout, place: Place): number {
  const { start } = shardInterval(entry.size, entry.axes, layout.sizes, place);
  return entry.outer ? start - shardInterval(entry.size, entry.outer, layout.sizes, place).start : start;
}

/** What a rank sends to each, or receives from each, when all parts move on by one rank. */
function ringCounts(entry: TableEntry & { kind: "ring" }, layout: MeshLayout, place: Place): number[] {
  const name = axisName(entry.axis);
  const ranks = layout.size(name);
  const own = place.coordinates[name] ?? 0;
  const before = (own + ranks - 1) % ranks;
  const [owner, peer] = entry.side === "send" ? [own, (own + 1) % ranks] : [before, before];
  const at = { ...place, coordinates: { ...place.coordinates, [name]: owner } };
  const { start, stop } = shardInterval(entry.size, [...entry.outer, entry.axis], layout.sizes, at);
  return Array.from({ length: ranks }, (_, r) => (r === peer ? stop - start : 0));
}

/** What each rank's part of a dim comes to, over the ranks along `axes`, in group order. */
function counts(entry: TableEntry & { kind: "counts" }, layout: MeshLayout, place: Place): number[] {
  const axis = entry.axes[0]!;
  const name = axisName(axis);
  return Array.from({ length: layout.size(name) }, (_, c) => {
    const at = { ...place, coordinates: { ...place.coordinates, [name]: c } };
    const { start, stop } = shardInterval(entry.size, [...entry.outer, axis], layout.sizes, at);
    return (stop - start) * (entry.each ?? 1);
  });
}
