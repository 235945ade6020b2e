// Rows of elements between their storage (any dtype, any stride) and the types kernels compute in: float32 for bfloat16
// and float16, int32 for bool.
#pragma once
#include "backend/cpu/simd.h"

namespace meshwork::MESHWORK_ISA {

MESHWORK_INLINE float widenOne(bf16 x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16); }
MESHWORK_INLINE float widenOne(f16 x) { return toFloat(x); }
MESHWORK_INLINE float widenOne(float x) { return x; }
MESHWORK_INLINE double widenOne(double x) { return x; }
MESHWORK_INLINE int32_t widenOne(int32_t x) { return x; }
MESHWORK_INLINE uint32_t widenOne(uint32_t x) { return x; }
MESHWORK_INLINE int32_t widenOne(uint8_t x) { return x != 0; }

// To nearest even for the 16-bit floats, "not zero" for bool (stored as uint8_t).
template <class Storage, class T>
MESHWORK_INLINE Storage narrowOne(T x) {
  if constexpr (__is_same(Storage, bf16)) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    const uint32_t rounded = (bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16;
    return bf16{static_cast<uint16_t>(x != x ? (bits >> 16) | 0x40u : rounded)};
  } else if constexpr (__is_same(Storage, f16)) {
    return toF16(x);
  } else if constexpr (__is_same(Storage, uint8_t)) {
    return static_cast<uint8_t>(x != T(0));
  } else {
    static_assert(__is_same(Storage, T));
    return x;
  }
}

// y[i] = x[i * stride] for i in [0, n).
template <class T, class Storage>
inline void loadRow(T* y, const Storage* x, int64_t stride, int64_t n) {
  if (stride == 1) {
    if constexpr (__is_same(T, Storage)) {
      std::memcpy(y, x, static_cast<size_t>(n) * sizeof(T));
    } else if constexpr (kIsShort<Storage>) {
      constexpr int lanes = kLanes<float>;
      int64_t i = 0;
      for (; i + lanes <= n; i += lanes) store(y + i, load(x + i));
      for (; i < n; ++i) y[i] = widenOne(x[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) y[i] = widenOne(x[i]);
    }
  } else if (stride == 0) {
    if (n <= 0) return;
    const T value = widenOne(*x);
    for (int64_t i = 0; i < n; ++i) y[i] = value;
  } else {
    for (int64_t i = 0; i < n; ++i) y[i] = widenOne(x[i * stride]);
  }
}

// y[i * stride] = x[i] for i in [0, n).
template <class Storage, class T>
inline void storeRow(Storage* y, int64_t stride, const T* x, int64_t n) {
  if (stride != 1) {
    for (int64_t i = 0; i < n; ++i) y[i * stride] = narrowOne<Storage>(x[i]);
  } else if constexpr (__is_same(Storage, T)) {
    std::memcpy(y, x, static_cast<size_t>(n) * sizeof(T));
  } else if constexpr (kIsShort<Storage>) {
    constexpr int lanes = kLanes<float>;
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) store(y + i, load(x + i));
    for (; i < n; ++i) y[i] = narrowOne<Storage>(x[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) y[i] = narrowOne<Storage>(x[i]);
  }
}

// A whole vector where n says so, else the first n lanes (zeros behind them).
template <class T>
MESHWORK_INLINE Vec<Compute<T>> loadSome(const T* from, int n) {
  return n == kLanes<Compute<T>> ? load(from) : loadPartial(from, n);
}
template <class T>
MESHWORK_INLINE void storeSome(T* to, Vec<Compute<T>> value, int n) {
  if (n == kLanes<Compute<T>>) {
    store(to, value);
  } else {
    storePartial(to, value, n);
  }
}

// f(i, n) for every vector of A in [0, count): n is kLanes<A> for all but the last.
template <class A, class F>
MESHWORK_INLINE void forVectors(int64_t count, const F& f) {
  constexpr int lanes = kLanes<A>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) f(i, lanes);
  if (i < count) f(i, static_cast<int>(count - i));
}

}  // namespace meshwork::MESHWORK_ISA
