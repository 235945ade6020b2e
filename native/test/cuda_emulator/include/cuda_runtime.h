// Stands for CUDA's <cuda_runtime.h> where kernels are compiled as plain C++ for the emulator: the words of the
// language, the vector types and the intrinsics that this project's kernels use. Float atomics are left out on purpose:
// their sums depend on the order in which threads come.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "test/cuda_emulator/emulator.h"
#include "test/cuda_emulator/runtime.h"

#define __global__ static
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

using dim3 = ::meshwork::emulator::Extent3;

// ---- vector types ----

#define MESHWORK_VECTOR_TYPES(T, name, size)    \
  struct alignas(2 * size) name##2 { T x, y; }; \
  struct name##3 { T x, y, z; };                \
  struct alignas(4 * size > 16 ? 16 : 4 * size) name##4 { T x, y, z, w; };
MESHWORK_VECTOR_TYPES(float, float, 4)
MESHWORK_VECTOR_TYPES(double, double, 8)
MESHWORK_VECTOR_TYPES(int32_t, int, 4)
MESHWORK_VECTOR_TYPES(uint32_t, uint, 4)
#undef MESHWORK_VECTOR_TYPES
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int32_t x, int32_t y, int32_t z, int32_t w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

// ---- synchronisation ----

namespace meshwork::emulator::cuda {

inline int laneOf() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32);
}

template <class T, class Source>
T shuffle(uint32_t mask, T value, Source source, const Site& site) {
  struct Offer {
    T value;
    int lane;  // whose value this lane wants; -1: its own
  };
  static const char kind = 0;
  const Offer offer{value, source(laneOf())};
  T result{};
  exchange(
      mask, &kind, &offer, &result,
      [](const Exchange& e) {
        for (int lane = 0; lane < 32; ++lane) {
          if (e.in[lane] == nullptr) continue;
          const auto* mine = static_cast<const Offer*>(e.in[lane]);
          const int from = mine->lane < 0 ? lane : mine->lane;
          if (e.in[from] == nullptr) fail(e.site, "a shuffle from lane " + std::to_string(from) + ", not in the mask");
          *static_cast<T*>(e.out[lane]) = static_cast<const Offer*>(e.in[from])->value;
        }
      },
      site);
  return result;
}

template <class T, class R, R (*combine)(const Exchange&)>
R reduceMask(uint32_t mask, T value, const Site& site) {
  static const char kind = 0;
  R result{};
  exchange(
      mask, &kind, &value, &result,
      [](const Exchange& e) {
        const R all = combine(e);
        for (void* out : e.out) {
          if (out != nullptr) *static_cast<R*>(out) = all;
        }
      },
      site);
  return result;
}

inline uint32_t ballotOf(const Exchange& e) {
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (e.in[lane] != nullptr && *static_cast<const int*>(e.in[lane]) != 0) bits |= 1u << lane;
  }
  return bits;
}
template <class T, T (*op)(T, T)>
T foldOf(const Exchange& e) {
  T all{};
  bool first = true;
  for (const void* in : e.in) {
    if (in == nullptr) continue;
    const T value = *static_cast<const T*>(in);
    all = first ? value : op(all, value);
    first = false;
  }
  return all;
}
template <class T>
T addOf(T a, T b) {
  return static_cast<T>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}
template <class T>
T maxOf(T a, T b) {
  return a > b ? a : b;
}
template <class T>
T minOf(T a, T b) {
  return a < b ? a : b;
}

}  // namespace meshwork::emulator::cuda

#define MESHWORK_SITE ::meshwork::emulator::Site site = ::meshwork::emulator::Site::here()

inline void __syncthreads(MESHWORK_SITE) {
  ::meshwork::emulator::barrier(0, 0, ::meshwork::emulator::Vote::none, 0, site);
}
inline int __syncthreads_or(int predicate, MESHWORK_SITE) {
  return ::meshwork::emulator::barrier(0, 0, ::meshwork::emulator::Vote::any, predicate, site);
}
inline int __syncthreads_and(int predicate, MESHWORK_SITE) {
  return ::meshwork::emulator::barrier(0, 0, ::meshwork::emulator::Vote::all, predicate, site);
}
inline int __syncthreads_count(int predicate, MESHWORK_SITE) {
  return ::meshwork::emulator::barrier(0, 0, ::meshwork::emulator::Vote::count, predicate, site);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, MESHWORK_SITE) {
  return ::meshwork::emulator::cuda::reduceMask<int, uint32_t, ::meshwork::emulator::cuda::ballotOf>(mask, predicate,
                                                                                                     site);
}
inline int __any_sync(uint32_t mask, int predicate, MESHWORK_SITE) { return __ballot_sync(mask, predicate, site) != 0; }
inline int __all_sync(uint32_t mask, int predicate, MESHWORK_SITE) {
  return __ballot_sync(mask, predicate == 0, site) == 0;
}
inline void __syncwarp(uint32_t mask = 0xffffffffu, MESHWORK_SITE) { __ballot_sync(mask, 0, site); }
inline void __threadfence() {}
inline void __threadfence_block() {}

#define MESHWORK_FOLD(name, T, op)                                                                          \
  inline T name(uint32_t mask, T value, MESHWORK_SITE) {                                                    \
    return ::meshwork::emulator::cuda::reduceMask<                                                          \
        T, T, ::meshwork::emulator::cuda::foldOf<T, ::meshwork::emulator::cuda::op<T>>>(mask, value, site); \
  }
MESHWORK_FOLD(__reduce_add_sync, uint32_t, addOf)
MESHWORK_FOLD(__reduce_add_sync, int32_t, addOf)
MESHWORK_FOLD(__reduce_max_sync, uint32_t, maxOf)
MESHWORK_FOLD(__reduce_max_sync, int32_t, maxOf)
MESHWORK_FOLD(__reduce_min_sync, uint32_t, minOf)
MESHWORK_FOLD(__reduce_min_sync, int32_t, minOf)
#undef MESHWORK_FOLD

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, MESHWORK_SITE) {
  return ::meshwork::emulator::cuda::shuffle(
      mask, value, [=](int lane) { return (lane & ~(width - 1)) | (source & (width - 1)); }, site);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, MESHWORK_SITE) {
  return ::meshwork::emulator::cuda::shuffle(
      mask, value,
      [=](int lane) {
        const int from = lane ^ bits;
        return from < (lane | (width - 1)) + 1 ? from : -1;
      },
      site);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned by, int width = 32, MESHWORK_SITE) {
  return ::meshwork::emulator::cuda::shuffle(
      mask, value,
      [=](int lane) {
        const int from = lane + static_cast<int>(by);
        return from <= (lane | (width - 1)) ? from : -1;
      },
      site);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned by, int width = 32, MESHWORK_SITE) {
  return ::meshwork::emulator::cuda::shuffle(
      mask, value,
      [=](int lane) {
        const int from = lane - static_cast<int>(by);
        return from >= (lane & ~(width - 1)) ? from : -1;
      },
      site);
}
#undef MESHWORK_SITE

// ---- atomics on integers: order does not show in their results ----

template <class T>
T atomicAdd(T* at, T value) {
  static_assert(std::is_integral_v<T>, "sums of floats by atomics depend on the order");
  const T old = *at;
  *at = static_cast<T>(old + value);
  return old;
}
template <class T>
T atomicMax(T* at, T value) {
  static_assert(std::is_integral_v<T>);
  const T old = *at;
  *at = std::max(old, value);
  return old;
}
template <class T>
T atomicCAS(T* at, T compare, T value) {
  const T old = *at;
  if (old == compare) *at = value;
  return old;
}

// ---- bits and arithmetic ----

inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline int32_t __float_as_int(float x) { return std::bit_cast<int32_t>(x); }
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int32_t x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
inline int __popc(uint32_t x) { return std::popcount(x); }
inline int __clz(int32_t x) { return std::countl_zero(static_cast<uint32_t>(x)); }
inline int __ffs(int32_t x) { return x == 0 ? 0 : std::countr_zero(static_cast<uint32_t>(x)) + 1; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdividef(float a, float b) { return std::fabs(b) > 0x1p126f ? 0.0f : a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
T __ldcs(const T* at) {
  return *at;
}
template <class T>
void __stcs(T* at, T value) {
  *at = value;
}

// CUDA's min and max for the plain types, in the global namespace.
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
