// Elements between their storage and the types kernels compute in (float32 for bfloat16 and float16, int32 for bool),
// several at a time where 16 bytes are aligned, and the choice of a kernel's instance by dtype.
#pragma once
#include <type_traits>

#include "backend/cuda/kernels/dialect.h"
#include "core/dtype.h"

namespace meshwork::cuda {

// bfloat16 or float16.
template <class T>
constexpr bool kIsShort = std::is_same_v<T, bf16> || std::is_same_v<T, f16>;

template <class T>
struct ComputeOf {
  using Type = T;
};
template <>
struct ComputeOf<bf16> {
  using Type = float;
};
template <>
struct ComputeOf<f16> {
  using Type = float;
};
template <>
struct ComputeOf<uint8_t> {
  using Type = int32_t;
};
template <class T>
using Compute = typename ComputeOf<T>::Type;

// ---- one element ----

__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ int32_t widen(int32_t x) { return x; }
__device__ __forceinline__ uint32_t widen(uint32_t x) { return x; }
__device__ __forceinline__ int32_t widen(uint8_t x) { return x != 0; }
__device__ __forceinline__ float widen(f16 x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
#else
  // The exponent is moved by a multiplication, which also normalises what was denormal.
  const uint32_t wide = x.bits, sign = (wide & 0x8000u) << 16;
  const uint32_t magnitude = __float_as_uint(__uint_as_float((wide & 0x7fffu) << 13) * 0x1p112f);
  return __uint_as_float(sign | magnitude | ((wide & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u));
#endif
}

// To nearest, ties to even, for the 16-bit types; "not zero" for bool (stored as uint8_t).
template <class T, class V>
__device__ __forceinline__ T narrow(V x) {
  if constexpr (std::is_same_v<T, bf16>) {
    const auto value = static_cast<float>(x);
#if defined(__CUDA_ARCH__)
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bf16{bits};
#else
    const uint32_t bits = __float_as_uint(value);
    const uint32_t rounded = (bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16;
    return bf16{static_cast<uint16_t>(value != value ? 0x7fffu : rounded)};
#endif
  } else if constexpr (std::is_same_v<T, f16>) {
    const auto value = static_cast<float>(x);
#if defined(__CUDA_ARCH__)
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return f16{bits};
#else
    const uint32_t bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
    // Normal results: rebias, round on the 13 dropped bits. Denormal results: let an addition to 0.5 round them.
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t denormal = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t result = magnitude < 0x38800000u ? denormal : normal;
    if (magnitude >= 0x477ff000u) result = magnitude > 0x7f800000u ? 0x7e00u | ((magnitude >> 13) & 0x3ffu) : 0x7c00u;
    return f16{static_cast<uint16_t>(result | ((bits >> 16) & 0x8000u))};
#endif
  } else if constexpr (std::is_same_v<T, uint8_t>) {
    return static_cast<uint8_t>(x != V(0));
  } else {
    return static_cast<T>(x);
  }
}

// ---- several elements: kWidth of them, 16 bytes or one ----

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Pack {
  T v[kWidth];
};

// How many elements of T are read and written at a time where they can: 16 bytes, but float64 (for tests) one by one.
template <class T>
constexpr int kWide = sizeof(T) == 8 ? 1 : 16 / static_cast<int>(sizeof(T));

// to[i] = from[i] for i in [0, kWidth); `from` is aligned to that many elements, or to 16 bytes.
template <int kWidth, class T, class V>
__device__ __forceinline__ void load(V (&to)[kWidth], const T* from) {
  const auto pack = *reinterpret_cast<const Pack<T, kWidth>*>(from);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) to[i] = static_cast<V>(widen(pack.v[i]));
}
template <int kWidth, class T, class V>
__device__ __forceinline__ void store(T* to, const V (&from)[kWidth]) {
  Pack<T, kWidth> pack;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) pack.v[i] = narrow<T>(from[i]);
  *reinterpret_cast<Pack<T, kWidth>*>(to) = pack;
}

// ---- on the host ----

inline bool alignedTo(const void* at, int64_t bytes) { return reinterpret_cast<uintptr_t>(at) % bytes == 0; }

template <class T>
struct Type {
  using type = T;
};

// f(std::true_type) or f(std::false_type).
template <class F>
void withBool(bool value, const F& f) {
  value ? f(std::true_type()) : f(std::false_type());
}

// f(Type<T>()) for the storage type of a float dtype that has passed a check.
template <class F>
void withFloat(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f64:
      return f(Type<double>());
    case DType::bf16:
      return f(Type<bf16>());
    case DType::f16:
      return f(Type<f16>());
    default:
      return f(Type<float>());
  }
}

}  // namespace meshwork::cuda
