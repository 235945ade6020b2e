// What softmax and cross-entropy do with a row: its maximum, and the sum of exponentials. Both in the row's compute
// type, the sum by chunks that are added up in float64.
#pragma once
#include "backend/cpu/kernels/lanes.h"

namespace meshwork::MESHWORK_ISA {

template <class T>
MESHWORK_INLINE Compute<T> rowMax(const T* x, int64_t n) {
  using A = Compute<T>;
  Accumulator<A, MaxOf> result(static_cast<A>(-__builtin_inf()));
  result.addRow(x, n);
  return result.total();
}

// What to subtract from a row with this maximum: a row of -inf would give NaN.
template <class A>
MESHWORK_INLINE A shiftOf(A max) {
  return max == static_cast<A>(-__builtin_inf()) ? A(0) : max;
}

// sum(exp(x - shift)).
template <class T>
MESHWORK_INLINE double sumExp(const T* x, int64_t n, Compute<T> shift) {
  using A = Compute<T>;
  constexpr int64_t kChunk = 2048;
  double total = 0;
  for (int64_t i = 0; i < n; i += kChunk) {
    Accumulator<A, SumOf> sum(0);
    sum.addRow(x + i, n - i < kChunk ? n - i : kChunk, static_cast<A>(-__builtin_inf()),
               [shift](Vec<A> v) { return exp(v - shift); });
    total += static_cast<double>(sum.total());
  }
  return total;
}

MESHWORK_INLINE float expOne(float x) { return exp(splat(x))[0]; }
MESHWORK_INLINE double expOne(double x) { return __builtin_exp(x); }

// y[j] = f(x[j]) on vectors of the compute type. y may be x.
template <class T, class F>
MESHWORK_INLINE void mapRow(T* y, const T* x, int64_t count, const F& f) {
  forVectors<Compute<T>>(count, [&](int64_t i, int n) { storeSome(y + i, f(loadSome(x + i, n)), n); });
}

}  // namespace meshwork::MESHWORK_ISA
