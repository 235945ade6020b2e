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

/** Bits of a number as float16, rounded to nearest even; too large ones become infinite. */
export function toF16(value: number): number {
  bits.setFloat32(0, value);
  const word = bits.getUint32(0);
  const [sign, size] = [(word >>> 16) & 0x8000, Math.abs(bits.getFloat32(0))];
  if (Number.isNaN(size)) return sign | 0x7e00 | ((word >>> 13) & 0x3ff);
  if (size >= 65520) return sign | 0x7c00;
  // Numbers below 2^-14 are multiples of 2^-24; others have ten bits behind the first.
  const exponent = Math.max(-14, ((word >>> 23) & 0xff) - 127);
  const units = roundToEven(size / 2 ** (exponent - 10));
  return sign | (exponent === -14 && units < 1024 ? units : ((exponent + 15) << 10) + units - 1024);
}

function roundToEven(value: number): number {
  const below = Math.floor(value);
  const rest = value - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}

/** Number with the given float16 bits. */
export function fromF16(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const [exponent, fraction] = [(half >>> 10) & 31, half & 0x3ff];
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25));
}

/** Writes numbers into a new storage array of the dtype. */
export function toStorage(dtype: DType, values: ArrayLike<number | boolean>): StorageArray {
  const out = newStorage(dtype, values.length);
  for (let i = 0; i < values.length; i++) {
    const value = Number(values[i]);
    out[i] = stored(dtype, value);
  }
  return out;
}

function stored(dtype: DType, value: number): number {
  if (dtype === "bf16") return toBf16(value);
  if (dtype === "f16") return toF16(value);
  return dtype === "bool" ? Number(value !== 0) : value;
}

/** Reads a storage array as plain numbers. */
export function fromStorage(dtype: DType, storage: StorageArray): number[] {
  const out = new Array<number>(storage.length);
  const read = dtype === "bf16" ? fromBf16 : dtype === "f16" ? fromF16 : (value: number) => value;
  for (let i = 0; i < storage.length; i++) out[i] = read(storage[i]!);
  return out;
}
