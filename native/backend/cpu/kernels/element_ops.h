// The scalar operations of the elementwise kernel as loops over a block, and the table that finds them.
#pragma once
#include <type_traits>

#include "backend/cpu/kernels/rows.h"
#include "backend/expression.h"

namespace meshwork::MESHWORK_ISA {

// y[i] = op(a[i], b[i], c[i]); operands an operation does not have are ignored. y may be a, b or c.
using Apply = void (*)(void* y, const void* a, const void* b, const void* c, int64_t n);

// ---- loops ----

// Stores n results, all kLanes<T> of them or fewer. A test on f64 gives masks twice as wide as its int32 results.
template <class R, class V>
MESHWORK_INLINE void put(R* to, V value, int n, bool whole) {
  if constexpr (sizeof(value[0]) == sizeof(R)) {
    if (whole) {
      store(to, bitCast<Vec<R>>(value));
    } else {
      storePartial(to, bitCast<Vec<R>>(value), n);
    }
  } else {
    const auto half = __builtin_convertvector(value, typename VectorOf<R, kVectorBytes / 2>::type);
    std::memcpy(to, &half, whole ? sizeof half : static_cast<size_t>(n) * sizeof(R));
  }
}

template <class R, class T, class Op>
void apply1(void* y, const void* a, const void*, const void*, int64_t n) {
  R* out = static_cast<R*>(y);
  const T* x = static_cast<const T*>(a);
  constexpr int lanes = kLanes<T>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) put(out + i, Op()(load(x + i)), lanes, true);
  const int rest = static_cast<int>(n - i);
  if (rest > 0) put(out + i, Op()(loadPartial(x + i, rest)), rest, false);
}

template <class R, class T, class Op>
void apply2(void* y, const void* a, const void* b, const void*, int64_t n) {
  R* out = static_cast<R*>(y);
  const T* u = static_cast<const T*>(a);
  const T* v = static_cast<const T*>(b);
  constexpr int lanes = kLanes<T>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) put(out + i, Op()(load(u + i), load(v + i)), lanes, true);
  const int rest = static_cast<int>(n - i);
  if (rest > 0) put(out + i, Op()(loadPartial(u + i, rest), loadPartial(v + i, rest)), rest, false);
}

// Element by element: what has no vector form, and casts, whose operand and result differ in width.
template <class R, class T, R (*op)(T)>
void each1(void* y, const void* a, const void*, const void*, int64_t n) {
  R* out = static_cast<R*>(y);
  const T* x = static_cast<const T*>(a);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = op(x[i]);
}

template <class T, T (*op)(T, T)>
void each2(void* y, const void* a, const void* b, const void*, int64_t n) {
  T* out = static_cast<T*>(y);
  const T* u = static_cast<const T*>(a);
  const T* v = static_cast<const T*>(b);
  for (int64_t i = 0; i < n; ++i) out[i] = op(u[i], v[i]);
}

template <class T>
void applySelect(void* y, const void* a, const void* b, const void* c, int64_t n) {
  T* out = static_cast<T*>(y);
  const int32_t* take = static_cast<const int32_t*>(a);
  const T* u = static_cast<const T*>(b);
  const T* v = static_cast<const T*>(c);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const T first = u[i], second = v[i];
    out[i] = take[i] != 0 ? first : second;
  }
}

// ---- operations on vectors ----

#define MESHWORK_UNARY(Name, expression)         \
  struct Name {                                  \
    template <class V>                           \
    MESHWORK_INLINE auto operator()(V x) const { \
      return expression;                         \
    }                                            \
  };
#define MESHWORK_BINARY(Name, expression)             \
  struct Name {                                       \
    template <class V>                                \
    MESHWORK_INLINE auto operator()(V a, V b) const { \
      return expression;                              \
    }                                                 \
  };

template <class V>
MESHWORK_INLINE V geluSlope(V x) {
  // Beyond 30 the second term is zero; there the clamp keeps infinity out of it.
  const V c = min(max(x, V{} - 30), V{} + 30);
  using T = std::remove_cvref_t<decltype(x[0])>;
  const V s = sigmoid(x * (T(1.5957691216057308) + T(0.07135481627260024) * (x * x)));
  return s + c * (s * (1 - s)) * (T(1.5957691216057308) + T(0.21406444881780073) * (c * c));
}
template <class V>
MESHWORK_INLINE V siluSlope(V x) {
  const V c = min(max(x, V{} - 800), V{} + 800);  // infinity times zero would be NaN
  const V s = sigmoid(x);
  return s + c * (s * (1 - s));
}

MESHWORK_UNARY(Neg, -x)
MESHWORK_UNARY(Abs, abs(x))
MESHWORK_UNARY(Sign, x > 0 ? V{} + 1 : (x < 0 ? V{} - 1 : x))
MESHWORK_UNARY(Floor, floor(x))
MESHWORK_UNARY(Ceil, ceil(x))
MESHWORK_UNARY(Round, roundEven(x))
MESHWORK_UNARY(Exp, exp(x))
MESHWORK_UNARY(Log, log(x))
MESHWORK_UNARY(Sqrt, sqrt(x))
MESHWORK_UNARY(Rsqrt, 1 / sqrt(x))
MESHWORK_UNARY(Reciprocal, 1 / x)
MESHWORK_UNARY(Sin, sin(x))
MESHWORK_UNARY(Cos, cos(x))
MESHWORK_UNARY(Tanh, tanh(x))
MESHWORK_UNARY(Erf, erf(x))
MESHWORK_UNARY(Sigmoid, sigmoid(x))
MESHWORK_UNARY(Gelu, gelu(x))
MESHWORK_UNARY(Silu, silu(x))
MESHWORK_UNARY(RoundToBf16, widenBf16(narrowBf16(x)))
MESHWORK_UNARY(RoundToF16, widenF16(narrowF16(x)))
MESHWORK_UNARY(Same, x)
MESHWORK_UNARY(Not, (x == 0) & 1)
MESHWORK_UNARY(IsFinite, (abs(x) < static_cast<std::remove_cvref_t<decltype(x[0])>>(__builtin_inf())) & 1)
MESHWORK_UNARY(One, (x == x) & 1)
MESHWORK_UNARY(AbsInt, (x >> 31) != 0 ? -x : x)
MESHWORK_BINARY(Add, a + b)
MESHWORK_BINARY(Sub, a - b)
MESHWORK_BINARY(Mul, a* b)
MESHWORK_BINARY(Div, a / b)
MESHWORK_BINARY(Max, maxNan(a, b))
MESHWORK_BINARY(Min, minNan(a, b))
MESHWORK_BINARY(GeluGrad, b* geluSlope(a))
MESHWORK_BINARY(SiluGrad, b* siluSlope(a))
MESHWORK_BINARY(Eq, (a == b) & 1)
MESHWORK_BINARY(Ne, (a != b) & 1)
MESHWORK_BINARY(Lt, (a < b) & 1)
MESHWORK_BINARY(Le, (a <= b) & 1)
MESHWORK_BINARY(And, (a != 0) & (b != 0) & 1)
MESHWORK_BINARY(Or, ((a != 0) | (b != 0)) & 1)

#undef MESHWORK_UNARY
#undef MESHWORK_BINARY

// ---- operations on elements ----

MESHWORK_INLINE float remOf(float a, float b) { return __builtin_fmodf(a, b); }
MESHWORK_INLINE double remOf(double a, double b) { return __builtin_fmod(a, b); }
MESHWORK_INLINE float powOf(float a, float b) { return __builtin_powf(a, b); }
MESHWORK_INLINE double powOf(double a, double b) { return __builtin_pow(a, b); }

// b = -1 apart: the lowest int32 has no positive counterpart, and wraps.
inline int32_t divInt(int32_t a, int32_t b) {
  if (b == -1) return static_cast<int32_t>(0u - static_cast<uint32_t>(a));
  return b == 0 ? 0 : a / b;
}
inline int32_t remInt(int32_t a, int32_t b) { return b == 0 || b == -1 ? 0 : a % b; }

template <class R, class T>
MESHWORK_INLINE R castTo(T x) {
  if constexpr (__is_same(R, int32_t) && !__is_same(T, int32_t)) {
    const T bounded = x > T(-2147483648.0) ? x : T(-2147483648.0);
    const bool over = bounded >= T(2147483648.0);
    const int32_t truncated = static_cast<int32_t>(over ? T(0) : bounded);
    return x == x ? (over ? 2147483647 : truncated) : 0;
  } else {
    return static_cast<R>(x);
  }
}

// ---- the table ----

// Operations every type has.
template <class T>
Apply commonApply(EOp op) {
  switch (op) {
    case EOp::neg_:
      return apply1<T, T, Neg>;
    case EOp::sign_:
      return apply1<T, T, Sign>;
    case EOp::not_:
      return apply1<int32_t, T, Not>;
    case EOp::add_:
      return apply2<T, T, Add>;
    case EOp::sub_:
      return apply2<T, T, Sub>;
    case EOp::mul_:
      return apply2<T, T, Mul>;
    case EOp::max_:
      return apply2<T, T, Max>;
    case EOp::min_:
      return apply2<T, T, Min>;
    case EOp::eq_:
      return apply2<int32_t, T, Eq>;
    case EOp::ne_:
      return apply2<int32_t, T, Ne>;
    case EOp::lt_:
      return apply2<int32_t, T, Lt>;
    case EOp::le_:
      return apply2<int32_t, T, Le>;
    case EOp::and_:
      return apply2<int32_t, T, And>;
    case EOp::or_:
      return apply2<int32_t, T, Or>;
    case EOp::select_:
      return applySelect<T>;
    default:
      return nullptr;
  }
}

template <class T>
Apply floatApply(EOp op) {
  switch (op) {
    case EOp::abs_:
      return apply1<T, T, Abs>;
    case EOp::floor_:
      return apply1<T, T, Floor>;
    case EOp::ceil_:
      return apply1<T, T, Ceil>;
    case EOp::round_:
      return apply1<T, T, Round>;
    case EOp::exp_:
      return apply1<T, T, Exp>;
    case EOp::log_:
      return apply1<T, T, Log>;
    case EOp::sqrt_:
      return apply1<T, T, Sqrt>;
    case EOp::rsqrt_:
      return apply1<T, T, Rsqrt>;
    case EOp::reciprocal_:
      return apply1<T, T, Reciprocal>;
    case EOp::sin_:
      return apply1<T, T, Sin>;
    case EOp::cos_:
      return apply1<T, T, Cos>;
    case EOp::tanh_:
      return apply1<T, T, Tanh>;
    case EOp::erf_:
      return apply1<T, T, Erf>;
    case EOp::sigmoid_:
      return apply1<T, T, Sigmoid>;
    case EOp::gelu_:
      return apply1<T, T, Gelu>;
    case EOp::gelu_grad_:
      return apply2<T, T, GeluGrad>;
    case EOp::silu_:
      return apply1<T, T, Silu>;
    case EOp::silu_grad_:
      return apply2<T, T, SiluGrad>;
    case EOp::is_finite_:
      return apply1<int32_t, T, IsFinite>;
    case EOp::div_:
      return apply2<T, T, Div>;
    case EOp::rem_:
      return each2<T, remOf>;
    case EOp::pow_:
      return each2<T, powOf>;
    default:
      return commonApply<T>(op);
  }
}

inline Apply intApply(EOp op) {
  using T = int32_t;
  using U = uint32_t;  // wraps around
  switch (op) {
    case EOp::neg_:
      return apply1<U, U, Neg>;
    case EOp::abs_:
      return apply1<U, U, AbsInt>;
    case EOp::add_:
      return apply2<U, U, Add>;
    case EOp::sub_:
      return apply2<U, U, Sub>;
    case EOp::mul_:
      return apply2<U, U, Mul>;
    case EOp::floor_:
    case EOp::ceil_:
    case EOp::round_:
      return apply1<T, T, Same>;
    case EOp::is_finite_:
      return apply1<T, T, One>;
    case EOp::div_:
      return each2<T, divInt>;
    case EOp::rem_:
      return each2<T, remInt>;
    default:
      return commonApply<T>(op);
  }
}

template <class T>
Apply castFrom(ValueType to) {
  if (to == ValueType::f32) return each1<float, T, castTo<float, T>>;
  if (to == ValueType::f64) return each1<double, T, castTo<double, T>>;
  return each1<int32_t, T, castTo<int32_t, T>>;
}

// The loop for an instruction whose operand a has type `from`; it has been checked, so there is one for all but const
// and iota, which are not loops.
inline Apply findApply(const Instruction& step, ValueType from) {
  switch (step.op) {
    case EOp::const_:
    case EOp::iota_:
      return nullptr;
    case EOp::cast_:
      return from == ValueType::f32   ? castFrom<float>(step.type)
             : from == ValueType::f64 ? castFrom<double>(step.type)
                                      : castFrom<int32_t>(step.type);
    case EOp::round_to_:
      return step.b == static_cast<int32_t>(DType::bf16)  ? apply1<float, float, RoundToBf16>
             : step.b == static_cast<int32_t>(DType::f16) ? apply1<float, float, RoundToF16>
                                                          : apply1<float, float, Same>;
    default:
      return step.type == ValueType::f32   ? floatApply<float>(step.op)
             : step.type == ValueType::f64 ? floatApply<double>(step.op)
                                           : intApply(step.op);
  }
}

}  // namespace meshwork::MESHWORK_ISA
