// The operations of the elementwise kernel on vectors, and the table of the code that computes each.
#pragma once
#include "backend/cpu/kernels/element_code.h"

namespace meshwork::MESHWORK_ISA {

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

// ---- element by element: what has no vector form ----

MESHWORK_INLINE float remOf(float a, float b) { return __builtin_fmodf(a, b); }
MESHWORK_INLINE double remOf(double a, double b) { return __builtin_fmod(a, b); }
MESHWORK_INLINE float powOf(float a, float b) { return __builtin_powf(a, b); }
MESHWORK_INLINE double powOf(double a, double b) { return __builtin_pow(a, b); }

// b = -1 apart: the lowest int32 has no positive counterpart, and wraps.
MESHWORK_INLINE int32_t divInt(int32_t a, int32_t b) {
  if (b == -1) return static_cast<int32_t>(0u - static_cast<uint32_t>(a));
  return b == 0 ? 0 : a / b;
}
MESHWORK_INLINE int32_t remInt(int32_t a, int32_t b) { return b == 0 || b == -1 ? 0 : a % b; }

template <class T, T (*op)(T, T)>
struct Each {
  MESHWORK_INLINE Vec<T> operator()(Vec<T> a, Vec<T> b) const {
    for (int i = 0; i < kLanes<T>; ++i) a[i] = op(a[i], b[i]);
    return a;
  }
};

// ---- casts ----

// Towards zero; what int32 cannot hold becomes its nearest, NaN 0.
template <class To, class V>
MESHWORK_INLINE To truncated(V x) {
  using T = std::remove_cvref_t<decltype(x[0])>;
  const auto over = x >= T(2147483648.0), under = x < T(-2147483648.0), number = x == x;
  const auto inside = number & ~over & ~under;
  const To whole = __builtin_convertvector(inside ? x : V{}, To);
  using Mask = decltype(whole == whole);
  const Mask most = __builtin_convertvector(over, Mask), least = __builtin_convertvector(under, Mask);
  return (whole & ~(most | least)) | (most & 0x7fffffff) | (least & INT32_MIN);
}

template <class R, class T>
struct Cast {
  MESHWORK_INLINE static void run(Hand& hand, const std::byte*, const std::byte*) {
    const Hand from = hand;
    if constexpr (sizeof(R) == 8 && sizeof(T) == 4) {
      repeat<kGroupVectors>([&](int k) MESHWORK_FLAT {
        hand.v[k] = bitCast<F32>(__builtin_convertvector(halfOf<T>(inHand<T>(from, k / 2), k % 2), Vec<R>));
      });
    } else if constexpr (sizeof(R) == 4 && sizeof(T) == 8) {
      repeat<kGroupVectors / 2>([&](int k) MESHWORK_FLAT {
        const Vec<T> low = inHand<T>(from, 2 * k), high = inHand<T>(from, 2 * k + 1);
        if constexpr (__is_same(R, int32_t)) {
          const HalfOf<R> halves[2] = {truncated<HalfOf<R>>(low), truncated<HalfOf<R>>(high)};
          std::memcpy(&hand.v[k], halves, sizeof halves);
        } else {
          hand.v[k] = bitCast<F32>(join<R>(low, high));
        }
      });
    } else if constexpr (__is_same(R, int32_t) && __is_same(T, float)) {
      repeat<kGroupVectors>([&](int k) MESHWORK_FLAT { hand.v[k] = bitCast<F32>(truncated<I32>(inHand<T>(from, k))); });
    } else if constexpr (!__is_same(R, T)) {
      repeat<kGroupVectors>(
          [&](int k) MESHWORK_FLAT { hand.v[k] = bitCast<F32>(__builtin_convertvector(inHand<T>(from, k), Vec<R>)); });
    }
  }
};

// ---- the table ----

// The code of an operation on the number in hand. Operations on two take the other one from memory, behind the number
// in hand or (reversed) before it, and (uniform) where it is the same in the whole group.
struct Forms {
  Run own;
  Run reversed, uniform, uniformReversed;

  Run binary(bool isReversed, bool isUniform) const {
    if (isUniform) return isReversed ? uniformReversed : uniform;
    return isReversed ? reversed : own;
  }
};

template <class R, class T, class Op>
constexpr Forms unary() {
  return {runCode<Unary<R, T, Op>>, nullptr, nullptr, nullptr};
}
template <class R, class T, class Op>
constexpr Forms binary() {
  return {runCode<Binary<R, T, Op, false, false>>, runCode<Binary<R, T, Op, true, false>>,
          runCode<Binary<R, T, Op, false, true>>, runCode<Binary<R, T, Op, true, true>>};
}

// Operations every type has.
template <class T>
Forms commonForms(EOp op) {
  using I = int32_t;
  switch (op) {
    case EOp::neg_:
      return unary<T, T, Neg>();
    case EOp::sign_:
      return unary<T, T, Sign>();
    case EOp::not_:
      return unary<I, T, Not>();
    case EOp::add_:
      return binary<T, T, Add>();
    case EOp::sub_:
      return binary<T, T, Sub>();
    case EOp::mul_:
      return binary<T, T, Mul>();
    case EOp::max_:
      return binary<T, T, Max>();
    case EOp::min_:
      return binary<T, T, Min>();
    case EOp::eq_:
      return binary<I, T, Eq>();
    case EOp::ne_:
      return binary<I, T, Ne>();
    case EOp::lt_:
      return binary<I, T, Lt>();
    case EOp::le_:
      return binary<I, T, Le>();
    case EOp::and_:
      return binary<I, T, And>();
    case EOp::or_:
      return binary<I, T, Or>();
    case EOp::select_:
      return {runCode<Select<T>>, nullptr, nullptr, nullptr};
    default:
      return {};
  }
}

template <class T>
Forms floatForms(EOp op) {
  switch (op) {
    case EOp::abs_:
      return unary<T, T, Abs>();
    case EOp::floor_:
      return unary<T, T, Floor>();
    case EOp::ceil_:
      return unary<T, T, Ceil>();
    case EOp::round_:
      return unary<T, T, Round>();
    case EOp::exp_:
      return unary<T, T, Exp>();
    case EOp::log_:
      return unary<T, T, Log>();
    case EOp::sqrt_:
      return unary<T, T, Sqrt>();
    case EOp::rsqrt_:
      return unary<T, T, Rsqrt>();
    case EOp::reciprocal_:
      return unary<T, T, Reciprocal>();
    case EOp::sin_:
      return unary<T, T, Sin>();
    case EOp::cos_:
      return unary<T, T, Cos>();
    case EOp::tanh_:
      return unary<T, T, Tanh>();
    case EOp::erf_:
      return unary<T, T, Erf>();
    case EOp::sigmoid_:
      return unary<T, T, Sigmoid>();
    case EOp::gelu_:
      return unary<T, T, Gelu>();
    case EOp::gelu_grad_:
      return binary<T, T, GeluGrad>();
    case EOp::silu_:
      return unary<T, T, Silu>();
    case EOp::silu_grad_:
      return binary<T, T, SiluGrad>();
    case EOp::is_finite_:
      return unary<int32_t, T, IsFinite>();
    case EOp::div_:
      return binary<T, T, Div>();
    case EOp::rem_:
      return binary<T, T, Each<T, remOf>>();
    case EOp::pow_:
      return binary<T, T, Each<T, powOf>>();
    default:
      return commonForms<T>(op);
  }
}

inline Forms intForms(EOp op) {
  using T = int32_t;
  using U = uint32_t;  // wraps around
  switch (op) {
    case EOp::neg_:
      return unary<U, U, Neg>();
    case EOp::abs_:
      return unary<U, U, AbsInt>();
    case EOp::add_:
      return binary<U, U, Add>();
    case EOp::sub_:
      return binary<U, U, Sub>();
    case EOp::mul_:
      return binary<U, U, Mul>();
    case EOp::floor_:
    case EOp::ceil_:
    case EOp::round_:
      return unary<T, T, Same>();
    case EOp::is_finite_:
      return unary<T, T, One>();
    case EOp::div_:
      return binary<T, T, Each<T, divInt>>();
    case EOp::rem_:
      return binary<T, T, Each<T, remInt>>();
    default:
      return commonForms<T>(op);
  }
}

template <class T>
Forms castFrom(ValueType to) {
  if (to == ValueType::f32) return {runCode<Cast<float, T>>, nullptr, nullptr, nullptr};
  if (to == ValueType::f64) return {runCode<Cast<double, T>>, nullptr, nullptr, nullptr};
  return {runCode<Cast<int32_t, T>>, nullptr, nullptr, nullptr};
}

// The code of an instruction whose operand a has type `from`; it has been checked, so there is some for all but const
// and iota.
inline Forms findForms(const Instruction& step, ValueType from) {
  switch (step.op) {
    case EOp::const_:
    case EOp::iota_:
      return {};
    case EOp::cast_:
      return from == ValueType::f32   ? castFrom<float>(step.type)
             : from == ValueType::f64 ? castFrom<double>(step.type)
                                      : castFrom<int32_t>(step.type);
    case EOp::round_to_:
      return step.b == static_cast<int32_t>(DType::bf16)  ? unary<float, float, RoundToBf16>()
             : step.b == static_cast<int32_t>(DType::f16) ? unary<float, float, RoundToF16>()
                                                          : unary<float, float, Same>();
    default:
      return step.type == ValueType::f32   ? floatForms<float>(step.op)
             : step.type == ValueType::f64 ? floatForms<double>(step.op)
                                           : intForms(step.op);
  }
}

}  // namespace meshwork::MESHWORK_ISA
