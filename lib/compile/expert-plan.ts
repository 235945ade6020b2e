// What a program reserves for rows that go to experts on other ranks: how many come is known only when they come.
import { sizeOf } from "../core/shape.ts";
import { dtypeSize } from "../core/dtype.ts";
import type { View } from "../ir/lowering.ts";
import type { ProgramBuilder } from "../passes/lower.ts";

/** The worst case that a device is ready for. */
export interface ExpertReserve {
  /** Most rows that a layer's exchange in a microbatch may bring the device, for which there is room. */
  readonly rows: number;
  /** As many as it brings itself: what it gets where experts are used evenly. */
  readonly evenRows: number;
  /**
   * Bytes of all buffers of such rows (some lie in the same memory one after the other), and their share where use is
   * even.
   */
  readonly bytes: number;
  readonly evenBytes: number;
}

/** Kernels whose results have a row for each that may come. */
const rowKernels = new Set(["grouped_matmul", "expert_gate", "expert_gate_grad"]);

function bytesOf(view: View): number {
  return sizeOf(view.dims) * dtypeSize(view.dtype);
}

/** The reserve of a program; undefined where no row travels. */
export function expertReserve(program: ProgramBuilder): ExpertReserve | undefined {
  const instructions = program.segments.flatMap((s) => s.instructions);
  const arrivals = instructions.filter((i) => i.kernel === "expert_exchange" && i.attributes[2] === 0);
  if (arrivals.length === 0) return undefined;
  const most = (views: readonly View[]): number => Math.max(...views.map((v) => v.dims[0]!));
  const rows = most(arrivals.map((i) => i.outputs[0]!));
  const evenRows = most(arrivals.map((i) => i.inputs[0]!));
  const made = [...arrivals, ...instructions.filter((i) => rowKernels.has(i.kernel))].flatMap((i) => i.outputs);
  const byBuffer = new Map(made.map((view) => [view.buffer, bytesOf(view)]));
  const bytes = [...byBuffer.values()].reduce((sum, n) => sum + n, 0);
  return { rows, evenRows, bytes, evenBytes: rows === 0 ? 0 : Math.round((bytes * evenRows) / rows) };
}
