// Element types of safetensors files: their sizes, and how they become float32.

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
