// Sixteen running values at a time, on every instruction set: sums are taken in the same order everywhere. An element's
// place in the order depends on its place in the row alone.
#pragma once
#include <type_traits>

#include "backend/cpu/kernels/rows.h"

namespace meshwork::MESHWORK_ISA {

constexpr int kWide = 16;

// The first n of kLanes<A> elements of x, as A (see loadAs()); zeros behind.
template <class A, class T>
MESHWORK_INLINE Vec<A> loadSomeAs(const T* x, int n) {
  return n == kLanes<A> ? loadAs<A>(x) : loadPartialAs<A>(x, n);
}

// n of kLanes<A> elements, `stride` apart; zeros behind.
template <class A, class T>
MESHWORK_INLINE Vec<A> loadStrided(const T* x, int64_t stride, int n) {
  A few[kLanes<A>] = {};
  for (int i = 0; i < n; ++i) few[i] = static_cast<A>(widenOne(x[i * stride]));
  return load(few);
}

// The first n lanes of a, and `behind` in the others.
template <class A>
MESHWORK_INLINE Vec<A> firstLanes(Vec<A> a, int n, A behind) {
  using Int = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  return laneIndex<Int>() < splat(static_cast<Int>(n)) ? a : splat(behind);
}

// The k-th kLanes<double> lanes of a vector.
MESHWORK_INLINE F64 partOf(F64 x, int) { return x; }
MESHWORK_INLINE F64 partOf(F32 x, int k) {
  F32Half halves[2];
  std::memcpy(halves, &x, sizeof x);
  return widenFloat(halves[k]);
}

struct SumOf {
  template <class V>
  MESHWORK_INLINE V operator()(V a, V b) const {
    return a + b;
  }
};
struct MaxOf {
  template <class V>
  MESHWORK_INLINE V operator()(V a, V b) const {
    return a != a ? a : (a > b ? a : b);  // a NaN on either side stays
  }
};
struct MinOf {
  template <class V>
  MESHWORK_INLINE V operator()(V a, V b) const {
    return a != a ? a : (a < b ? a : b);
  }
};

// Running values of Op; element i of a row goes to lane i % 16.
template <class A, class Op>
class Accumulator {
 public:
  explicit MESHWORK_INLINE Accumulator(A identity) : identity_(identity) {
    for (Vec<A>& value : values_) value = splat(identity);
  }

  // f(i, m) gives elements i to i + m as a vector: all its lanes, or fewer at the end.
  template <class F>
  MESHWORK_INLINE void addVectors(int64_t n, const F& f) {
    constexpr int lanes = kLanes<A>;
    int64_t i = 0;
    for (; i + kWide <= n; i += kWide) {
      for (int k = 0; k < kParts; ++k) values_[k] = Op()(values_[k], f(i + k * lanes, lanes));
    }
    for (int k = 0; i < n; ++k, i += lanes) {
      const int m = static_cast<int>(n - i < lanes ? n - i : lanes);
      values_[k] = Op()(values_[k], m == lanes ? f(i, lanes) : firstLanes(f(i, m), m, identity_));
    }
  }
  MESHWORK_INLINE void addTo(int64_t part, Vec<A> value) { values_[part] = Op()(values_[part], value); }

  // All lanes, combined by halves.
  MESHWORK_INLINE A total() const {
    Vec<A> values[kParts];
    for (int k = 0; k < kParts; ++k) values[k] = values_[k];
    for (int half = kParts / 2; half > 0; half /= 2) {
      for (int k = 0; k < half; ++k) values[k] = Op()(values[k], values[k + half]);
    }
    return reduceLanes<A, kVectorBytes>(values[0], Op());
  }

 private:
  static constexpr int kParts = kWide / kLanes<A>;

  A identity_;
  Vec<A> values_[kParts];
};

// The sum of a row's values, which are computed as A, in float64. Of 64 neighbours that are float32 those 16 apart are
// added first, as float32; so there are four times fewer conversions, and the error stays that of three additions.
template <class A>
class RowSum;
template <>
class RowSum<double> : public Accumulator<double, SumOf> {
 public:
  MESHWORK_INLINE RowSum() : Accumulator(0) {}
};
template <>
class RowSum<float> {
 public:
  // As Accumulator's. Rows may follow each other; a row's first element is as the 64th before it.
  template <class F>
  MESHWORK_INLINE void addVectors(int64_t n, const F& f) {
    constexpr int lanes = kLanes<float>;
    int64_t i = 0;
    for (; i + 4 * kWide <= n; i += 4 * kWide) {
      for (int64_t j = i; j < i + kWide; j += lanes) {
        const F32 low = f(j, lanes) + f(j + kWide, lanes);
        add(j - i, low + (f(j + 2 * kWide, lanes) + f(j + 3 * kWide, lanes)));
      }
    }
    if (i < n) addFew(i, n, f);
  }
  MESHWORK_INLINE double total() const { return sum_.total(); }

 private:
  template <class F>
  MESHWORK_INLINE void addFew(int64_t begin, int64_t n, const F& f) {
    constexpr int lanes = kLanes<float>;
    F32 values[4 * kWide / lanes] = {};
#pragma GCC unroll 1
    for (int64_t i = begin; i < n; i += lanes) {
      const int m = static_cast<int>(n - i < lanes ? n - i : lanes);
      values[(i - begin) / lanes] = m == lanes ? f(i, lanes) : firstLanes(f(i, m), m, 0.0f);
    }
    constexpr int step = kWide / lanes;
    for (int k = 0; k < step; ++k) {
      add(k * lanes, (values[k] + values[k + step]) + (values[k + 2 * step] + values[k + 3 * step]));
    }
  }
  MESHWORK_INLINE void add(int64_t lane, F32 value) {
    sum_.addTo(lane / kLanes<double>, partOf(value, 0));
    sum_.addTo(lane / kLanes<double> + 1, partOf(value, 1));
  }

  RowSum<double> sum_;
};

// The sum of f(A{}, i, m) over a row of n (see Accumulator), where A is float or double. Values of float32 beyond what
// that holds are summed again, computed in float64.
template <class A, class F>
MESHWORK_INLINE double sumRow(int64_t n, const F& f) {
  RowSum<A> sum;
  sum.addVectors(n, [&](int64_t i, int m) { return f(A{}, i, m); });
  const double total = sum.total();
  if (sizeof(A) == sizeof(double) || total - total == 0) return total;
  return [&]() __attribute__((noinline)) {
    RowSum<double> wide;
    wide.addVectors(n, [&](int64_t i, int m) { return f(double{}, i, m); });
    return wide.total();
  }
  ();
}

}  // namespace meshwork::MESHWORK_ISA
