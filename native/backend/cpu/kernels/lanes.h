// Sixteen running values at a time, on every instruction set: sums are taken in the same order everywhere.
#pragma once
#include "backend/cpu/kernels/rows.h"

namespace meshwork::MESHWORK_ISA {

constexpr int kWide = 16;

// The first n of kLanes<A> elements of x, as A (see loadAs()); zeros behind.
template <class A, class T>
MESHWORK_INLINE Vec<A> loadSomeAs(const T* x, int n) {
  if (n == kLanes<A>) return loadAs<A>(x);
  A few[kLanes<A>] = {};
  for (int i = 0; i < n; ++i) few[i] = static_cast<A>(widenOne(x[i]));
  return load(few);
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

  // f maps vectors of A before they are accumulated; f(pad) is the identity.
  template <class T, class F>
  MESHWORK_INLINE void addRow(const T* x, int64_t n, A pad, const F& f) {
    int64_t i = 0;
    for (; i + kWide <= n; i += kWide) {
      for (int k = 0; k < kParts; ++k) values_[k] = Op()(values_[k], f(loadAs<A>(x + i + k * kLanes<A>)));
    }
    if (i < n) addFew(x + i, 1, n - i, pad, f);
  }
  template <class T>
  MESHWORK_INLINE void addRow(const T* x, int64_t n) {
    addRow(x, n, identity_, Same());
  }
  // f(i, m) gives elements i to i + m as a vector: all its lanes, or fewer at the end, with the identity behind them.
  template <class F>
  MESHWORK_INLINE void addVectors(int64_t n, const F& f) {
    constexpr int lanes = kLanes<A>;
    int64_t i = 0;
    for (; i + kWide <= n; i += kWide) {
      for (int k = 0; k < kParts; ++k) values_[k] = Op()(values_[k], f(i + k * lanes, lanes));
    }
    for (int k = 0; i < n; ++k, i += lanes) {
      values_[k] = Op()(values_[k], f(i, n - i < lanes ? static_cast<int>(n - i) : lanes));
    }
  }
  template <class T>
  MESHWORK_INLINE void addStrided(const T* x, int64_t stride, int64_t n) {
    for (int64_t i = 0; i < n; i += kWide)
      addFew(x + i * stride, stride, n - i < kWide ? n - i : kWide, identity_, Same());
  }

  // All lanes, combined by halves.
  MESHWORK_INLINE A total() const {
    A lanes[kWide];
    std::memcpy(lanes, values_, sizeof lanes);
    for (int half = kWide / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes[i] = Op()(lanes[i], lanes[i + half]);
    }
    return lanes[0];
  }

 private:
  static constexpr int kParts = kWide / kLanes<A>;

  struct Same {
    MESHWORK_INLINE Vec<A> operator()(Vec<A> v) const { return v; }
  };
  template <class T, class F>
  MESHWORK_INLINE void addFew(const T* x, int64_t stride, int64_t n, A pad, const F& f) {
    A few[kWide];
    for (int64_t j = 0; j < kWide; ++j) few[j] = j < n ? static_cast<A>(widenOne(x[j * stride])) : pad;
    for (int k = 0; k < kParts; ++k) values_[k] = Op()(values_[k], f(load(few + k * kLanes<A>)));
  }

  A identity_;
  Vec<A> values_[kParts];
};

}  // namespace meshwork::MESHWORK_ISA
