// The compute types of the elementwise kernel.
import type { DType } from "../core/dtype.ts";

/** Code of the type in which elements of a dtype are computed: 0 f32, 1 f64, 2 i32. */
export function elementType(dtype: DType): number {
  return dtype === "f64" ? 1 : dtype === "i32" || dtype === "bool" ? 2 : 0;
}
