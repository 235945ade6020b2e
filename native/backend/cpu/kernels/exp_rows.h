// What softmax and cross-entropy do with a row: its maximum, exponentials of what lies below it, and their sum. All in
// the row's compute type, sums in float64.
#pragma once
#include "backend/cpu/kernels/lanes.h"

namespace meshwork::MESHWORK_ISA {

// -inf for an empty row. NaNs may be passed over: the sum of exponentials has them anyway.
template <class T>
MESHWORK_INLINE Compute<T> rowMax(const T* x, int64_t n) {
  using A = Compute<T>;
  constexpr A none = static_cast<A>(-__builtin_inf());
  constexpr int lanes = kLanes<A>, parts = 4;
  Vec<A> most[parts];
  for (Vec<A>& value : most) value = splat(none);
  int64_t i = 0;
  for (; i + parts * lanes <= n; i += parts * lanes) {
    for (int k = 0; k < parts; ++k) most[k] = max(most[k], load(x + i + k * lanes));
  }
  for (; i + lanes <= n; i += lanes) most[0] = max(most[0], load(x + i));
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    most[1] = max(most[1], firstLanes(loadPartial(x + i, rest), rest, none));
  }
  return reduceMax(max(max(most[0], most[1]), max(most[2], most[3])));
}

// What to subtract from a row with this maximum: a row of -inf would give NaN.
template <class A>
MESHWORK_INLINE A shiftOf(A max) {
  return max == static_cast<A>(-__builtin_inf()) ? A(0) : max;
}

// e^x for sums and rows of exponentials, with two thirds of exp()'s operations: a relative error below 2^-22 + |x|
// 2^-24, as a last bit of x makes it. 0 below 2^-127, infinite from 2^127.5 on, a NaN stays. The same bits on every
// instruction set; attention's power() has the same polynomial.
MESHWORK_INLINE F32 expRow(F32 x) {
  const F32 y = min(splat(128.0f), max(splat(-127.0f), x * 1.44269504f));  // in this order a NaN passes
  // The low bits of a sum with kMagic are n + 127, n = y rounded: the exponent of 2^n.
  constexpr float kMagic = 12582912.0f + 127.0f;
  const F32 shifted = y + kMagic;
  const F32 f = y - (shifted - kMagic);
  F32 p = splat(1.326472731e-03f);
  p = p * f + 9.671512991e-03f;
  p = p * f + 5.550733581e-02f;
  p = p * f + 2.402224243e-01f;
  p = p * f + 6.931470037e-01f;
  p = p * f + 1.0f;
  return p * bitCast<F32>(bitCast<U32>(shifted) << 23);
}
MESHWORK_INLINE F64 expRow(F64 x) { return exp(x); }
MESHWORK_INLINE float expOne(float x) { return expRow(splat(x))[0]; }
MESHWORK_INLINE double expOne(double x) { return __builtin_exp(x); }

// sum(exp(x - shift)).
template <class T>
MESHWORK_INLINE double sumExp(const T* x, int64_t n, Compute<T> shift) {
  RowSum<Compute<T>> sum;
  sum.addVectors(n, [=](int64_t i, int m) { return expRow(loadSome(x + i, m) - shift); });
  return sum.total();
}

}  // namespace meshwork::MESHWORK_ISA
