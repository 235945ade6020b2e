// Element types: names, codes, sizes, and conversion of JavaScript numbers to and from their storage.

/**
 * Element type of a tensor. `bool` is stored as a byte 0 or 1; `bf16` and `f16` travel to JavaScript as Uint16Array.
 */
export type DType = "f32" | "f64" | "bf16" | "f16" | "i32" | "bool";

/** Every dtype; the index is the code in programs (native/core/dtype.h). */
export const dtypes: readonly DType[] = ["f32", "f64", "bf16", "f16", "i32", "bool"];

const sizes: Record<DType, number> = { f32: 4, f64: 8, bf16: 2, f16: 2, i32: 4, bool: 1 };

/** Bytes of one element. */
export function dtypeSize(dtype: DType): number {
  return sizes[dtype];
}

/** Code of a dtype in a program. */
export function dtypeCode(dtype: DType): number {
  return dtypes.indexOf(dtype);
}

/** True for f32, f64, bf16 and f16. */
export function isFloat(dtype: DType): boolean {
  return dtype !== "i32" && dtype !== "bool";
}

/** The dtype that statistics and accumulators of a float dtype have: f64 for f64, else f32. */
export function statisticsDType(dtype: DType): "f32" | "f64" {
  return dtype === "f64" ? "f64" : "f32";
}

/** Typed array of a dtype's storage. */
export type StorageArray = Float32Array | Float64Array | Uint16Array | Int32Array | Uint8Array;

/** The storage array that lies at `byteOffset` of `bytes` (which must be aligned for the dtype). */
export function storageView(dtype: DType, bytes: ArrayBufferLike, byteOffset: number, count: number): StorageArray {
  switch (dtype) {
    case "f32":
      return new Float32Array(bytes, byteOffset, count);
    case "f64":
      return new Float64Array(bytes, byteOffset, count);
    case "bf16":
    case "f16":
      return new Uint16Array(bytes, byteOffset, count);
    case "i32":
      return new Int32Array(bytes, byteOffset, count);
    case "bool":
      return new Uint8Array(bytes, byteOffset, count);
  }
}

/** A zeroed storage array of `count` elements. */
export function newStorage(dtype: DType, count: number): StorageArray {
  return storageView(dtype, new ArrayBuffer(count * dtypeSize(dtype)), 0, count);
}

const bits = new DataView(new ArrayBuffer(8));

/** Bits of a number as bfloat16, rounded to nearest even. */
export function toBf16(value: number): number {
  bits.setFloat32(0, value);
  const word = bits.getUint32(0);
  if ((word & 0x7fffffff) > 0x7f800000) return ((word >>> 16) | 0x40) & 0xffff;
  return ((word + 0x7fff + ((word >>> 16) & 1)) >>> 16) & 0xffff;
}

/** Number with the given bfloat16 bits. */
export function fromBf16(half: number): number {
  bits.setUint32(0, (half << 16) >>> 0);
  return bits.getFloat32(0);
}

/** Writes numbers into a new storage array of the dtype. */
export function toStorage(dtype: DType, values: ArrayLike<number | boolean>): StorageArray {
  const out = newStorage(dtype, values.length);
  for (let i = 0; i < values.length; i++) {
    const value = Number(values[i]);
    out[i] = dtype === "bf16" ? toBf16(value) : dtype === "bool" ? (value !== 0 ? 1 : 0) : value;
  }
  return out;
}

/** Reads a storage array as plain numbers. */
export function fromStorage(dtype: DType, storage: StorageArray): number[] {
  const out = new Array<number>(storage.length);
  for (let i = 0; i < storage.length; i++) out[i] = dtype === "bf16" ? fromBf16(storage[i]!) : storage[i]!;
  return out;
}
