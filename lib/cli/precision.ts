// The type to compute in where none is given.
import type { Precision } from "../passes/precision.ts";
import { info } from "../runtime/addon.ts";
import type { DeviceKind } from "../runtime/engine.ts";

/** bf16 on GPUs, and on processors whose tiles multiply it many times as fast as float32; float32 elsewhere. */
export function precisionOn(
  device: DeviceKind,
  given: Precision | undefined,
  kernels: string = info().kernels,
): Precision {
  if (given !== undefined) return given;
  return device === "cuda" || (device === "cpu" && kernels === "amx") ? "bf16" : "f32";
}
