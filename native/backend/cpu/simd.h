// Vectors as wide as the instruction set this file is compiled for: types, loads and stores, and basic arithmetic.
// Operators (+ - * / < == & | ^ << >> ?:) are the compiler's own; a comparison gives a mask (all bits or none) for
// select(). Nothing is contracted: a product and a sum fuse only in fma(), and only where the set has it.
#pragma once
#include <cstdint>
#include <cstring>

#include "backend/cpu/kernel_list.h"
#include "core/dtype.h"

#if MESHWORK_ISA_LEVEL > 0
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define MESHWORK_INLINE inline __attribute__((always_inline))

namespace meshwork::MESHWORK_ISA {

constexpr int kVectorBytes = MESHWORK_ISA_LEVEL == 2 ? 64 : MESHWORK_ISA_LEVEL == 1 ? 32 : 16;

template <class T, int kBytes = kVectorBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes), may_alias));
  typedef T unaligned __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));
};
// bf16 and f16 are storage only: their overloads of load and store give and take F32.
struct NoVector;
template <int kBytes>
struct VectorOf<bf16, kBytes> {
  using type = NoVector;
  using unaligned = NoVector;
};
template <int kBytes>
struct VectorOf<f16, kBytes> {
  using type = NoVector;
  using unaligned = NoVector;
};
template <class T>
using Vec = typename VectorOf<T>::type;

using F32 = Vec<float>;
using F64 = Vec<double>;
using I32 = Vec<int32_t>;
using U32 = Vec<uint32_t>;
using I64 = Vec<int64_t>;
using U64 = Vec<uint64_t>;
using F32Half = VectorOf<float, kVectorBytes / 2>::type;  // as many lanes as F64
using U32Half = VectorOf<uint32_t, kVectorBytes / 2>::type;
using U16Half = VectorOf<uint16_t, kVectorBytes / 2>::type;     // as many lanes as F32
using U16Quarter = VectorOf<uint16_t, kVectorBytes / 4>::type;  // as many lanes as F64

// The type a storage type is computed in.
template <class T>
struct ComputeOf {
  using type = T;
};
template <>
struct ComputeOf<bf16> {
  using type = float;
};
template <>
struct ComputeOf<f16> {
  using type = float;
};
template <class T>
using Compute = typename ComputeOf<T>::type;
// bfloat16 or float16.
template <class T>
constexpr bool kIsShort = __is_same(T, bf16) || __is_same(T, f16);

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// ---- moving data ----

template <class V, class T>
MESHWORK_INLINE V bitCast(T value) {
  static_assert(sizeof(V) == sizeof(T));
  V result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

template <class T>
MESHWORK_INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};  // minus zero, so that -0.0 keeps its sign
}

// 0, 1, 2, ...
template <class T = int32_t>
MESHWORK_INLINE Vec<T> laneIndex() {
  Vec<T> result;
  for (int i = 0; i < kLanes<T>; ++i) result[i] = static_cast<T>(i);
  return result;
}

template <class T>
MESHWORK_INLINE Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(from);
}
template <class T>
MESHWORK_INLINE void store(T* to, Vec<T> value) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(to) = value;
}

// The first n lanes (0 <= n <= lanes); the others are zero.
template <class T>
MESHWORK_INLINE Vec<T> loadPartial(const T* from, int n) {
#if MESHWORK_ISA_LEVEL == 2
  if constexpr (sizeof(T) == 4) return bitCast<Vec<T>>(_mm512_maskz_loadu_epi32((__mmask16)((1u << n) - 1u), from));
  if constexpr (sizeof(T) == 8) return bitCast<Vec<T>>(_mm512_maskz_loadu_epi64((__mmask8)((1u << n) - 1u), from));
#endif
  Vec<T> result{};
  std::memcpy(&result, from, static_cast<size_t>(n) * sizeof(T));
  return result;
}
template <class T>
MESHWORK_INLINE void storePartial(T* to, Vec<T> value, int n) {
#if MESHWORK_ISA_LEVEL == 2
  if constexpr (sizeof(T) == 4) {
    return _mm512_mask_storeu_epi32(to, (__mmask16)((1u << n) - 1u), bitCast<__m512i>(value));
  }
  if constexpr (sizeof(T) == 8) {
    return _mm512_mask_storeu_epi64(to, (__mmask8)((1u << n) - 1u), bitCast<__m512i>(value));
  }
#endif
  std::memcpy(to, &value, static_cast<size_t>(n) * sizeof(T));
}

// ---- float32 and float64, kLanes<double> at a time; the compiler's own conversions take four instructions ----

MESHWORK_INLINE F64 widenFloat(F32Half x) {
#if MESHWORK_ISA_LEVEL == 2
  return (F64)_mm512_cvtps_pd((__m256)x);
#elif MESHWORK_ISA_LEVEL == 1
  return (F64)_mm256_cvtps_pd((__m128)x);
#else
  return __builtin_convertvector(x, F64);
#endif
}
// Rounds to nearest, ties to even.
MESHWORK_INLINE F32Half narrowDouble(F64 x) {
#if MESHWORK_ISA_LEVEL == 2
  return (F32Half)_mm512_cvtpd_ps((__m512d)x);
#elif MESHWORK_ISA_LEVEL == 1
  return (F32Half)_mm256_cvtpd_ps((__m256d)x);
#else
  return __builtin_convertvector(x, F32Half);
#endif
}

MESHWORK_INLINE F32 joinHalves(F32Half low, F32Half high) {
#if MESHWORK_ISA_LEVEL == 2
  return (F32)_mm512_insertf32x8(_mm512_castps256_ps512((__m256)low), (__m256)high, 1);
#elif MESHWORK_ISA_LEVEL == 1
  return (F32)_mm256_set_m128((__m128)high, (__m128)low);
#else
  const F32Half halves[2] = {low, high};
  F32 result;
  std::memcpy(&result, halves, sizeof result);
  return result;
#endif
}

// ---- bf16 and f16, kLanes<float> at a time ----

// A 16-bit float in the upper half of every lane, zeros in the lower; and back. With AVX-512 by one permutation each.
MESHWORK_INLINE U32 spreadHalves(U16Half bits) {
#if MESHWORK_ISA_LEVEL == 2
  constexpr Vec<uint16_t> kFrom = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                   0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
  const __m512i low = _mm512_castsi256_si512(bitCast<__m256i>(bits));
  return bitCast<U32>(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, bitCast<__m512i>(kFrom), low));
#else
  return __builtin_convertvector(bits, U32) << 16;
#endif
}
MESHWORK_INLINE U16Half upperHalves(U32 lanes) {
#if MESHWORK_ISA_LEVEL == 2
  constexpr Vec<uint16_t> kFrom = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  const __m512i low = _mm512_permutexvar_epi16(bitCast<__m512i>(kFrom), bitCast<__m512i>(lanes));
  return bitCast<U16Half>(_mm512_castsi512_si256(low));
#else
  return __builtin_convertvector(lanes >> 16, U16Half);
#endif
}

MESHWORK_INLINE F32 widenBf16(U16Half bits) { return bitCast<F32>(spreadHalves(bits)); }

// To nearest, ties to even; a NaN stays a quiet NaN.
MESHWORK_INLINE U16Half narrowBf16(F32 value) {
  const U32 bits = bitCast<U32>(value);
  const U32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u), nan = bits | 0x400000u;
  const I32 isNan = value != value;
  return upperHalves(isNan ? nan : rounded);
}

// float16 storage (IEEE binary16), to and from f32; to nearest, ties to even.
MESHWORK_INLINE F32 widenF16(U16Half bits) {
#if MESHWORK_ISA_LEVEL == 2
  return bitCast<F32>(_mm512_cvtph_ps(bitCast<__m256i>(bits)));
#elif MESHWORK_ISA_LEVEL == 1
  return bitCast<F32>(_mm256_cvtph_ps(bitCast<__m128i>(bits)));
#else
  // The exponent is moved by a multiplication, which also normalises what was denormal.
  const U32 wide = __builtin_convertvector(bits, U32);
  const U32 sign = (wide & 0x8000u) << 16;
  const F32 scaled = bitCast<F32>((wide & 0x7fffu) << 13) * 0x1p112f;
  const I32 special = (wide & 0x7c00u) == 0x7c00u;
  const U32 magnitude = bitCast<U32>(scaled);
  return bitCast<F32>(sign | (special ? (magnitude | 0x7f800000u) : magnitude));
#endif
}

MESHWORK_INLINE U16Half narrowF16(F32 value) {
#if MESHWORK_ISA_LEVEL == 2
  return bitCast<U16Half>(_mm512_cvtps_ph(bitCast<__m512>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif MESHWORK_ISA_LEVEL == 1
  return bitCast<U16Half>(_mm256_cvtps_ph(bitCast<__m256>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  const U32 bits = bitCast<U32>(value);
  const U32 sign = (bits >> 16) & 0x8000u;
  const U32 magnitude = bits & 0x7fffffffu;
  // Normal results: rebias, round on the 13 dropped bits. Denormal results: let an addition to 0.5 round them.
  const U32 normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const U32 denormal = bitCast<U32>(bitCast<F32>(magnitude) + 0.5f) - 0x3f000000u;
  const U32 nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  U32 result = magnitude < 0x38800000u ? denormal : normal;
  result = magnitude >= 0x477ff000u ? U32{} + 0x7c00u : result;
  result = magnitude > 0x7f800000u ? nan : result;
  return __builtin_convertvector(result | sign, U16Half);
#endif
}

template <class T>
MESHWORK_INLINE F32 widen(U16Half bits) {
  if constexpr (__is_same(T, bf16)) {
    return widenBf16(bits);
  } else {
    return widenF16(bits);
  }
}
template <class T>
MESHWORK_INLINE U16Half narrow(F32 value) {
  if constexpr (__is_same(T, bf16)) {
    return narrowBf16(value);
  } else {
    return narrowF16(value);
  }
}

template <class T>
  requires kIsShort<T>
MESHWORK_INLINE F32 load(const T* from) {
  U16Half bits;
  std::memcpy(&bits, from, sizeof bits);
  return widen<T>(bits);
}
template <class T>
  requires kIsShort<T>
MESHWORK_INLINE F32 loadPartial(const T* from, int n) {
#if MESHWORK_ISA_LEVEL == 2
  return widen<T>(bitCast<U16Half>(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1u), from)));
#else
  U16Half bits{};
  std::memcpy(&bits, from, static_cast<size_t>(n) * sizeof(T));
  return widen<T>(bits);
#endif
}
template <class T>
  requires kIsShort<T>
MESHWORK_INLINE void store(T* to, F32 value) {
  const U16Half bits = narrow<T>(value);
  std::memcpy(to, &bits, sizeof bits);
}
template <class T>
  requires kIsShort<T>
MESHWORK_INLINE void storePartial(T* to, F32 value, int n) {
  const U16Half bits = narrow<T>(value);
#if MESHWORK_ISA_LEVEL == 2
  _mm256_mask_storeu_epi16(to, (__mmask16)((1u << n) - 1u), bitCast<__m256i>(bits));
#else
  std::memcpy(to, &bits, static_cast<size_t>(n) * sizeof(T));
#endif
}

// ---- other types than the one computed in ----

// kLanes<double> elements of x.
template <class T>
  requires kIsShort<T>
MESHWORK_INLINE F32Half loadHalf(const T* x) {
  U16Quarter bits;
  std::memcpy(&bits, x, sizeof bits);
  if constexpr (__is_same(T, bf16)) {
#if MESHWORK_ISA_LEVEL == 2
    return bitCast<F32Half>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bitCast<__m128i>(bits)), 16));
#else
    return bitCast<F32Half>(__builtin_convertvector(bits, U32Half) << 16);
#endif
  } else {
#if MESHWORK_ISA_LEVEL == 2
    return bitCast<F32Half>(_mm256_cvtph_ps(bitCast<__m128i>(bits)));
#else
    U16Half whole{};
    std::memcpy(&whole, &bits, sizeof bits);
    const F32 wide = widenF16(whole);
    F32Half half;
    std::memcpy(&half, &wide, sizeof half);
    return half;
#endif
  }
}

// kLanes<A> elements of x, as A: float64 of float32 or a 16-bit float, float32 of a 16-bit float, or what they are.
template <class A, class T>
MESHWORK_INLINE Vec<A> loadAs(const T* x) {
  if constexpr (__is_same(A, T) || (__is_same(A, float) && kIsShort<T>)) {
    return load(x);
  } else if constexpr (__is_same(T, float)) {
    F32Half half;
    std::memcpy(&half, x, sizeof half);
    return widenFloat(half);
  } else {
    static_assert(__is_same(A, double) && kIsShort<T>);
    return widenFloat(loadHalf(x));
  }
}

// The first n of them (0 <= n <= lanes); the others are zero.
template <class A, class T>
MESHWORK_INLINE Vec<A> loadPartialAs(const T* x, int n) {
  if constexpr (__is_same(A, T) || (__is_same(A, float) && kIsShort<T>)) {
    return loadPartial(x, n);
  } else {
    static_assert(__is_same(A, double));
#if MESHWORK_ISA_LEVEL == 2
    if constexpr (__is_same(T, float)) {
      return widenFloat(bitCast<F32Half>(_mm256_maskz_loadu_epi32((__mmask8)((1u << n) - 1u), x)));
    }
#endif
    T few[kLanes<double>] = {};
    std::memcpy(few, x, static_cast<size_t>(n) * sizeof(T));
    return loadAs<double>(few);
  }
}

// Rounds to nearest, ties to even.
MESHWORK_INLINE void store(float* to, F64 value) {
  const F32Half half = narrowDouble(value);
  std::memcpy(to, &half, sizeof half);
}
MESHWORK_INLINE void storePartial(float* to, F64 value, int n) {
  const F32Half half = narrowDouble(value);
#if MESHWORK_ISA_LEVEL == 2
  _mm256_mask_storeu_epi32(to, (__mmask8)((1u << n) - 1u), bitCast<__m256i>(half));
#else
  std::memcpy(to, &half, static_cast<size_t>(n) * sizeof(float));
#endif
}

// ---- arithmetic ----

template <class M, class V>
MESHWORK_INLINE V select(M mask, V yes, V no) {
  return mask ? yes : no;
}

// a * b + c, fused where the set has it. For inner products; never where bits must agree between sets.
MESHWORK_INLINE F32 fma(F32 a, F32 b, F32 c) {
#if MESHWORK_ISA_LEVEL == 2
  return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif MESHWORK_ISA_LEVEL == 1
  return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return bitCast<F32>(vfmaq_f32(bitCast<float32x4_t>(c), bitCast<float32x4_t>(a), bitCast<float32x4_t>(b)));
#else
  return a * b + c;
#endif
}
MESHWORK_INLINE F64 fma(F64 a, F64 b, F64 c) {
#if MESHWORK_ISA_LEVEL == 2
  return (F64)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif MESHWORK_ISA_LEVEL == 1
  return (F64)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return bitCast<F64>(vfmaq_f64(bitCast<float64x2_t>(c), bitCast<float64x2_t>(a), bitCast<float64x2_t>(b)));
#else
  return a * b + c;
#endif
}

// The larger; a NaN in `a` is dropped, one in `b` is kept (as the processor's instruction does).
template <class V>
MESHWORK_INLINE V max(V a, V b) {
  return a > b ? a : b;
}
template <class V>
MESHWORK_INLINE V min(V a, V b) {
  return a < b ? a : b;
}
#if MESHWORK_ISA_LEVEL == 2  // the compiler makes two instructions of each
MESHWORK_INLINE F32 max(F32 a, F32 b) { return (F32)_mm512_max_ps((__m512)a, (__m512)b); }
MESHWORK_INLINE F64 max(F64 a, F64 b) { return (F64)_mm512_max_pd((__m512d)a, (__m512d)b); }
MESHWORK_INLINE F32 min(F32 a, F32 b) { return (F32)_mm512_min_ps((__m512)a, (__m512)b); }
MESHWORK_INLINE F64 min(F64 a, F64 b) { return (F64)_mm512_min_pd((__m512d)a, (__m512d)b); }
#elif MESHWORK_ISA_LEVEL == 1
MESHWORK_INLINE F32 max(F32 a, F32 b) { return (F32)_mm256_max_ps((__m256)a, (__m256)b); }
MESHWORK_INLINE F32 min(F32 a, F32 b) { return (F32)_mm256_min_ps((__m256)a, (__m256)b); }
#endif
// A NaN on either side gives NaN.
template <class V>
MESHWORK_INLINE V maxNan(V a, V b) {
  return a != a ? a : max(a, b);
}
template <class V>
MESHWORK_INLINE V minNan(V a, V b) {
  return a != a ? a : min(a, b);
}
#if MESHWORK_ISA_LEVEL == 2
MESHWORK_INLINE F32 maxNan(F32 a, F32 b) {
  const __mmask16 number = _mm512_cmp_ps_mask((__m512)a, (__m512)a, _CMP_ORD_Q);
  return (F32)_mm512_mask_max_ps((__m512)a, number, (__m512)a, (__m512)b);
}
MESHWORK_INLINE F32 minNan(F32 a, F32 b) {
  const __mmask16 number = _mm512_cmp_ps_mask((__m512)a, (__m512)a, _CMP_ORD_Q);
  return (F32)_mm512_mask_min_ps((__m512)a, number, (__m512)a, (__m512)b);
}
#endif

MESHWORK_INLINE F32 abs(F32 x) { return bitCast<F32>(bitCast<U32>(x) & 0x7fffffffu); }
MESHWORK_INLINE F64 abs(F64 x) { return bitCast<F64>(bitCast<U64>(x) & 0x7fffffffffffffffull); }
// |x| with the sign bit of s.
MESHWORK_INLINE F32 copySign(F32 x, F32 s) {
  return bitCast<F32>((bitCast<U32>(x) & 0x7fffffffu) | (bitCast<U32>(s) & 0x80000000u));
}
MESHWORK_INLINE F64 copySign(F64 x, F64 s) {
  return bitCast<F64>((bitCast<U64>(x) & 0x7fffffffffffffffull) | (bitCast<U64>(s) & 0x8000000000000000ull));
}

MESHWORK_INLINE F32 sqrt(F32 x) {
#if MESHWORK_ISA_LEVEL == 2
  return (F32)_mm512_sqrt_ps((__m512)x);
#elif MESHWORK_ISA_LEVEL == 1
  return (F32)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}
MESHWORK_INLINE F64 sqrt(F64 x) {
#if MESHWORK_ISA_LEVEL == 2
  return (F64)_mm512_sqrt_pd((__m512d)x);
#elif MESHWORK_ISA_LEVEL == 1
  return (F64)_mm256_sqrt_pd((__m256d)x);
#else
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}

// To the nearest integer, ties to even. Adding and taking away 2^23 leaves no fraction; larger |x| has none.
MESHWORK_INLINE F32 roundEven(F32 x) {
#if MESHWORK_ISA_LEVEL == 2
  return (F32)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif MESHWORK_ISA_LEVEL == 1
  return (F32)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const F32 big = copySign(splat(8388608.0f), x);
  const F32 rounded = copySign((x + big) - big, x);
  return abs(x) < 8388608.0f ? rounded : x;
#endif
}
MESHWORK_INLINE F64 roundEven(F64 x) {
#if MESHWORK_ISA_LEVEL == 2
  return (F64)_mm512_roundscale_pd((__m512d)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif MESHWORK_ISA_LEVEL == 1
  return (F64)_mm256_round_pd((__m256d)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const F64 big = copySign(splat(4503599627370496.0), x);
  const F64 rounded = copySign((x + big) - big, x);
  return abs(x) < 4503599627370496.0 ? rounded : x;
#endif
}
template <class V>
MESHWORK_INLINE V floor(V x) {
  const V rounded = roundEven(x);
  return rounded > x ? rounded - 1 : rounded;
}
template <class V>
MESHWORK_INLINE V ceil(V x) {
  const V rounded = roundEven(x);
  return copySign(rounded < x ? rounded + 1 : rounded, x);
}

// op over the lanes, halving: lane i with lane i + n/2, so the order is fixed by the number of lanes.
template <class T, int kBytes, class Op>
MESHWORK_INLINE T reduceLanes(typename VectorOf<T, kBytes>::type x, Op op) {
  if constexpr (kBytes == 2 * sizeof(T)) {
    return op(x[0], x[1]);
  } else {
    using Half = typename VectorOf<T, kBytes / 2>::type;
    Half halves[2];
    std::memcpy(halves, &x, kBytes);
    return reduceLanes<T, kBytes / 2>(op(halves[0], halves[1]), op);
  }
}
struct AddLanes {
  template <class V>
  MESHWORK_INLINE V operator()(V a, V b) const {
    return a + b;
  }
};
struct MaxLanes {
  template <class V>
  MESHWORK_INLINE V operator()(V a, V b) const {
    return a > b ? a : b;
  }
};
struct MinLanes {
  template <class V>
  MESHWORK_INLINE V operator()(V a, V b) const {
    return a < b ? a : b;
  }
};
MESHWORK_INLINE float reduceAdd(F32 x) { return reduceLanes<float, kVectorBytes>(x, AddLanes{}); }
MESHWORK_INLINE double reduceAdd(F64 x) { return reduceLanes<double, kVectorBytes>(x, AddLanes{}); }
MESHWORK_INLINE int32_t reduceAdd(I32 x) { return reduceLanes<int32_t, kVectorBytes>(x, AddLanes{}); }
MESHWORK_INLINE float reduceMax(F32 x) { return reduceLanes<float, kVectorBytes>(x, MaxLanes{}); }
MESHWORK_INLINE double reduceMax(F64 x) { return reduceLanes<double, kVectorBytes>(x, MaxLanes{}); }
MESHWORK_INLINE int32_t reduceMax(I32 x) { return reduceLanes<int32_t, kVectorBytes>(x, MaxLanes{}); }
MESHWORK_INLINE float reduceMin(F32 x) { return reduceLanes<float, kVectorBytes>(x, MinLanes{}); }
MESHWORK_INLINE double reduceMin(F64 x) { return reduceLanes<double, kVectorBytes>(x, MinLanes{}); }
MESHWORK_INLINE int32_t reduceMin(I32 x) { return reduceLanes<int32_t, kVectorBytes>(x, MinLanes{}); }

}  // namespace meshwork::MESHWORK_ISA

#include "backend/cpu/simd_math.h"  // exp, log, tanh, erf, sin, cos, sigmoid, gelu, silu
