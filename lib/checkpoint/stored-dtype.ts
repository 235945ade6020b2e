// Element types of safetensors files: their sizes, and how they become numbers.

/** Types whose size is known, by safetensors' names, with bytes an element. */
const SIZES = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
} as const;

/** An element type on disk. */
export type StoredDType = keyof typeof SIZES;

/** The type of a name; undefined for unknown ones. */
export function storedDType(name: string): StoredDType | undefined {
  return Object.hasOwn(SIZES, name) ? (name as StoredDType) : undefined;
}

/** Bytes an element. */
export function storedBytes(dtype: StoredDType): number {
  return SIZES[dtype];
}

let halves: Float32Array | undefined;

/** The value of every half-precision bit pattern. */
function halfTable(): Float32Array {
  halves ??= Float32Array.from({ length: 1 << 16 }, (_, bits) => {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 0x1f;
    const fraction = bits & 0x3ff;
    if (exponent === 0x1f) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
    return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
  });
  return halves;
}

/**
 * Elements as float32, in order. `bytes` are little-endian and aligned to the element. F32 shares its memory; undefined
 * for types that have no float32 reading here (8-bit floats).
 */
export function toFloat32(dtype: StoredDType, bytes: Uint8Array): Float32Array | undefined {
  const { buffer, byteOffset, byteLength } = bytes;
  const count = byteLength / SIZES[dtype];
  switch (dtype) {
    case "F32":
      return new Float32Array(buffer, byteOffset, count);
    case "BF16": {
      const words = Uint32Array.from(new Uint16Array(buffer, byteOffset, count), (half) => half << 16);
      return new Float32Array(words.buffer);
    }
    case "F16": {
      const table = halfTable();
      return Float32Array.from(new Uint16Array(buffer, byteOffset, count), (half) => table[half]!);
    }
    case "F64":
      return Float32Array.from(new Float64Array(buffer, byteOffset, count));
    case "I64":
      return Float32Array.from(new BigInt64Array(buffer, byteOffset, count), Number);
    case "U64":
      return Float32Array.from(new BigUint64Array(buffer, byteOffset, count), Number);
    case "I32":
      return Float32Array.from(new Int32Array(buffer, byteOffset, count));
    case "U32":
      return Float32Array.from(new Uint32Array(buffer, byteOffset, count));
    case "I16":
      return Float32Array.from(new Int16Array(buffer, byteOffset, count));
    case "U16":
      return Float32Array.from(new Uint16Array(buffer, byteOffset, count));
    case "I8":
      return Float32Array.from(new Int8Array(buffer, byteOffset, count));
    case "U8":
    case "BOOL":
      return Float32Array.from(bytes);
    case "F8_E4M3":
    case "F8_E5M2":
      return undefined;
  }
}

/**
 * Values of 8-bit floats with so many bits of fraction, by their bits; `finite` has no infinities, and one NaN a sign.
 */
function eighthTable(fractionBits: number, finite: boolean): Float32Array {
  const exponentBits = 7 - fractionBits;
  const [bias, top] = [2 ** (exponentBits - 1) - 1, 2 ** exponentBits - 1];
  const scale = 2 ** fractionBits;
  return Float32Array.from({ length: 256 }, (_, bits) => {
    const sign = bits & 0x80 ? -1 : 1;
    const exponent = (bits & 0x7f) >> fractionBits;
    const fraction = bits % scale;
    if (exponent === top && finite && fraction === scale - 1) return Number.NaN;
    if (exponent === top && !finite) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
    const size = exponent === 0 ? fraction * 2 ** (1 - bias) : (scale + fraction) * 2 ** (exponent - bias);
    return (sign * size) / scale;
  });
}

/**
 * Elements as numbers, in order: exact but for integers beyond 2^53. `bytes` as for toFloat32(), their memory may be
 * shared.
 * 8-bit floats are those of the Open Compute Project's "8-bit Floating Point Specification".
 */
export function toNumbers(dtype: StoredDType, bytes: Uint8Array): ArrayLike<number> {
  const { buffer, byteOffset, byteLength } = bytes;
  const count = byteLength / SIZES[dtype];
  switch (dtype) {
    case "F64":
      return new Float64Array(buffer, byteOffset, count);
    case "I64":
      return Float64Array.from(new BigInt64Array(buffer, byteOffset, count), Number);
    case "U64":
      return Float64Array.from(new BigUint64Array(buffer, byteOffset, count), Number);
    case "I32":
      return new Int32Array(buffer, byteOffset, count);
    case "U32":
      return new Uint32Array(buffer, byteOffset, count);
    case "F8_E4M3":
    case "F8_E5M2": {
      const table = dtype === "F8_E4M3" ? eighthTable(3, true) : eighthTable(2, false);
      return Float32Array.from(bytes, (bits) => table[bits]!);
    }
    default:
      // The others fit float32.
      return toFloat32(dtype, bytes)!;
  }
}

/** Elements as whole numbers of their bits, to be compared. `bytes` as for toFloat32(). */
export function bitsOf(dtype: StoredDType, bytes: Uint8Array): ArrayLike<number | bigint> {
  const { buffer, byteOffset, byteLength } = bytes;
  switch (SIZES[dtype]) {
    case 1:
      return bytes;
    case 2:
      return new Uint16Array(buffer, byteOffset, byteLength / 2);
    case 4:
      return new Uint32Array(buffer, byteOffset, byteLength / 4);
    case 8:
      return new BigUint64Array(buffer, byteOffset, byteLength / 8);
  }
}
