// The scalar operations of fused elementwise kernels. This text is compiled twice: into the interpreting kernel, and,
// put in front of generated source, by NVRTC at run time. So it includes nothing and uses the language's own types.
#ifndef MESHWORK_FUSED  // not #pragma once: this may be the main file
#if defined(MESHWORK_CUDA_EMULATOR)
#define MESHWORK_FUSED extern "C"
#else
#define MESHWORK_FUSED extern "C" __global__
#endif
#define MESHWORK_EACH __device__ __forceinline__

namespace meshwork_fused {

// ---- storage: bfloat16 and float16 as their bits, bool as a byte ----

struct Bf16 {
  unsigned short bits;
};
struct F16 {
  unsigned short bits;
};
struct Bool {
  unsigned char byte;
};

MESHWORK_EACH float widen(Bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
MESHWORK_EACH float widen(F16 x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
#else
  // The exponent is moved by a multiplication, which also normalises what was denormal.
  const unsigned wide = x.bits, special = (wide & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  const unsigned magnitude = __float_as_uint(__uint_as_float((wide & 0x7fffu) << 13) * 0x1p112f);
  return __uint_as_float(((wide & 0x8000u) << 16) | magnitude | special);
#endif
}
MESHWORK_EACH float widen(float x) { return x; }
MESHWORK_EACH double widen(double x) { return x; }
MESHWORK_EACH int widen(int x) { return x; }
MESHWORK_EACH int widen(Bool x) { return x.byte != 0; }

MESHWORK_EACH unsigned short bf16Bits(float x) {
#if defined(__CUDA_ARCH__)
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  const unsigned bits = __float_as_uint(x);
  return static_cast<unsigned short>(x != x ? 0x7fffu : (bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16);
#endif
}
MESHWORK_EACH unsigned short f16Bits(float x) {
#if defined(__CUDA_ARCH__)
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  const unsigned bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
  // Normal results: rebias, round on the 13 dropped bits. Denormal results: let an addition to 0.5 round them.
  const unsigned normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const unsigned denormal = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
  unsigned result = magnitude < 0x38800000u ? denormal : normal;
  if (magnitude >= 0x477ff000u) result = x != x ? 0x7e00u | ((magnitude >> 13) & 0x3ffu) : 0x7c00u;
  return static_cast<unsigned short>(result | ((bits >> 16) & 0x8000u));
#endif
}
MESHWORK_EACH void narrow(Bf16& to, float x) { to.bits = bf16Bits(x); }
MESHWORK_EACH void narrow(F16& to, float x) { to.bits = f16Bits(x); }
MESHWORK_EACH void narrow(float& to, float x) { to = x; }
MESHWORK_EACH void narrow(double& to, double x) { to = x; }
MESHWORK_EACH void narrow(int& to, int x) { to = x; }
template <class V>
MESHWORK_EACH void narrow(Bool& to, V x) {
  to.byte = static_cast<unsigned char>(x != V(0));
}

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Pack {
  T v[kWidth];
};

// kWidth neighbours, aligned; kWidth elements `stride` apart; one element for all (stride 0).
template <int kWidth, class T, class V>
MESHWORK_EACH void loadPack(V (&to)[kWidth], const T* from) {
  const auto pack = *reinterpret_cast<const Pack<T, kWidth>*>(from);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) to[k] = widen(pack.v[k]);
}
template <int kWidth, class T, class V>
MESHWORK_EACH void loadApart(V (&to)[kWidth], const T* from, long long stride) {
#pragma unroll
  for (int k = 0; k < kWidth; ++k) to[k] = widen(from[k * stride]);
}
template <int kWidth, class T, class V>
MESHWORK_EACH void loadSame(V (&to)[kWidth], const T* from) {
  const V value = widen(*from);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) to[k] = value;
}
template <int kWidth, class T, class V>
MESHWORK_EACH void storePack(T* to, const V (&from)[kWidth]) {
  Pack<T, kWidth> pack;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) narrow(pack.v[k], from[k]);
  *reinterpret_cast<Pack<T, kWidth>*>(to) = pack;
}

// ---- casts ----

template <class R, class T>
struct Cast {
  static MESHWORK_EACH R of(T x) { return static_cast<R>(x); }
};
// To int: truncates and saturates, NaN gives 0.
template <class T>
MESHWORK_EACH int castToInt(T x) {
  if (x != x) return 0;
  if (x >= T(2147483648.0)) return 2147483647;
  return x > T(-2147483648.0) ? static_cast<int>(x) : static_cast<int>(-2147483647 - 1);
}
template <>
struct Cast<int, float> {
  static MESHWORK_EACH int of(float x) { return castToInt(x); }
};
template <>
struct Cast<int, double> {
  static MESHWORK_EACH int of(double x) { return castToInt(x); }
};
template <class R, class T>
MESHWORK_EACH R cast(T x) {
  return Cast<R, T>::of(x);
}
MESHWORK_EACH float roundToF16(float x) { return widen(F16{f16Bits(x)}); }
MESHWORK_EACH float roundToBf16(float x) { return widen(Bf16{bf16Bits(x)}); }

// ---- operations of one operand ----

MESHWORK_EACH int wrap(unsigned x) { return static_cast<int>(x); }
MESHWORK_EACH unsigned bitsOf(int x) { return static_cast<unsigned>(x); }

#define MESHWORK_UNARY(name, onFloat, onDouble)         \
  MESHWORK_EACH float name(float x) { return onFloat; } \
  MESHWORK_EACH double name(double x) { return onDouble; }

MESHWORK_UNARY(op_neg, -x, -x)
MESHWORK_EACH int op_neg(int x) { return wrap(0u - bitsOf(x)); }
MESHWORK_UNARY(op_abs, fabsf(x), fabs(x))
MESHWORK_EACH int op_abs(int x) { return x < 0 ? op_neg(x) : x; }
template <class T>
MESHWORK_EACH T op_sign(T x) {
  return x > T(0) ? T(1) : (x < T(0) ? T(-1) : x);
}
MESHWORK_UNARY(op_floor, floorf(x), floor(x))
MESHWORK_UNARY(op_ceil, ceilf(x), ceil(x))
MESHWORK_UNARY(op_round, rintf(x), rint(x))
MESHWORK_EACH int op_floor(int x) { return x; }
MESHWORK_EACH int op_ceil(int x) { return x; }
MESHWORK_EACH int op_round(int x) { return x; }
MESHWORK_UNARY(op_exp, expf(x), exp(x))
MESHWORK_UNARY(op_log, logf(x), log(x))
MESHWORK_UNARY(op_sqrt, sqrtf(x), sqrt(x))
MESHWORK_UNARY(op_rsqrt, 1.0f / sqrtf(x), 1.0 / sqrt(x))
MESHWORK_UNARY(op_reciprocal, 1.0f / x, 1.0 / x)
MESHWORK_UNARY(op_sin, sinf(x), sin(x))
MESHWORK_UNARY(op_cos, cosf(x), cos(x))
MESHWORK_UNARY(op_tanh, tanhf(x), tanh(x))
MESHWORK_UNARY(op_erf, erff(x), erf(x))
#undef MESHWORK_UNARY

// a / b where 1 <= b <= 2, or a NaN.
MESHWORK_EACH float divideSmall(float a, float b) { return __fdividef(a, b); }
MESHWORK_EACH double divideSmall(double a, double b) { return a / b; }

// 1 / (1 + e^-x), by e^-|x| so that nothing overflows.
template <class T>
MESHWORK_EACH T op_sigmoid(T x) {
  const T e = op_exp(-op_abs(x));
  return divideSmall(x < T(0) ? e : T(1), T(1) + e);
}
template <class T>
MESHWORK_EACH T op_silu(T x) {
  return x * op_sigmoid(x);
}
// The tanh form, x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), as x sigmoid(2 u).
template <class T>
MESHWORK_EACH T op_gelu(T x) {
  return x / (T(1) + op_exp(x * (T(-1.5957691216057308) - T(0.07135481627260024) * (x * x))));
}
template <class T>
MESHWORK_EACH T clampTo(T x, T bound) {
  return x > bound ? bound : (x < -bound ? -bound : x);
}
template <class T>
MESHWORK_EACH T op_gelu_grad(T x, T dy) {
  const T c = clampTo(x, T(30));  // beyond it the second term is zero, and infinity stays out of it
  const T s = op_sigmoid(x * (T(1.5957691216057308) + T(0.07135481627260024) * (x * x)));
  return dy * (s + c * (s * (T(1) - s)) * (T(1.5957691216057308) + T(0.21406444881780073) * (c * c)));
}
template <class T>
MESHWORK_EACH T op_silu_grad(T x, T dy) {
  const T c = clampTo(x, T(800));  // infinity times zero would be NaN
  const T s = op_sigmoid(x);
  return dy * (s + c * (s * (T(1) - s)));
}
template <class T>
MESHWORK_EACH int op_not(T x) {
  return x == T(0);
}
MESHWORK_EACH int op_is_finite(float x) { return fabsf(x) <= 3.402823466e+38f; }
MESHWORK_EACH int op_is_finite(double x) { return fabs(x) <= 1.7976931348623157e+308; }
MESHWORK_EACH int op_is_finite(int) { return 1; }

// ---- operations of two and three operands ----

template <class T>
MESHWORK_EACH T op_add(T a, T b) {
  return a + b;
}
template <class T>
MESHWORK_EACH T op_sub(T a, T b) {
  return a - b;
}
template <class T>
MESHWORK_EACH T op_mul(T a, T b) {
  return a * b;
}
template <class T>
MESHWORK_EACH T op_div(T a, T b) {
  return a / b;
}
MESHWORK_EACH int op_add(int a, int b) { return wrap(bitsOf(a) + bitsOf(b)); }
MESHWORK_EACH int op_sub(int a, int b) { return wrap(bitsOf(a) - bitsOf(b)); }
MESHWORK_EACH int op_mul(int a, int b) { return wrap(bitsOf(a) * bitsOf(b)); }
// b = -1 apart: the lowest int has no positive counterpart, and wraps.
MESHWORK_EACH int op_div(int a, int b) { return b == -1 ? op_neg(a) : (b == 0 ? 0 : a / b); }
MESHWORK_EACH int op_rem(int a, int b) { return b == 0 || b == -1 ? 0 : a % b; }
MESHWORK_EACH float op_rem(float a, float b) { return fmodf(a, b); }
MESHWORK_EACH double op_rem(double a, double b) { return fmod(a, b); }
// A NaN on either side stays.
template <class T>
MESHWORK_EACH T op_max(T a, T b) {
  return a != a ? a : (a > b ? a : b);
}
template <class T>
MESHWORK_EACH T op_min(T a, T b) {
  return a != a ? a : (a < b ? a : b);
}
MESHWORK_EACH float op_pow(float a, float b) { return powf(a, b); }
MESHWORK_EACH double op_pow(double a, double b) { return pow(a, b); }
template <class T>
MESHWORK_EACH int op_eq(T a, T b) {
  return a == b;
}
template <class T>
MESHWORK_EACH int op_ne(T a, T b) {
  return a != b;
}
template <class T>
MESHWORK_EACH int op_lt(T a, T b) {
  return a < b;
}
template <class T>
MESHWORK_EACH int op_le(T a, T b) {
  return a <= b;
}
template <class T>
MESHWORK_EACH int op_and(T a, T b) {
  return a != T(0) && b != T(0);
}
template <class T>
MESHWORK_EACH int op_or(T a, T b) {
  return a != T(0) || b != T(0);
}
template <class T>
MESHWORK_EACH T op_select(int a, T b, T c) {
  return a != 0 ? b : c;
}

}  // namespace meshwork_fused

#endif
