// Elementary functions on vectors, the second half of simd.h: include that, never this. The f32 functions are own
// polynomials (fitted by weighted least squares to a minimax error below 2^-27), use no fused operations and so give
// the same bits on every instruction set. Largest errors, measured over all or a dense sample of floats
// (native/test/test_simd.cc holds them to it):
//   exp 1.1 ulp, log 0.8, tanh 1.4, erf 1.3, sin and cos 0.51, sigmoid 2.5.
// The f64 functions call the C library lane by lane.
#pragma once
#include <cmath>

namespace meshwork::MESHWORK_ISA {

// p 2^n for a whole n, |n| < 252, rounded once: in two factors, of which one leaves no denormal.
MESHWORK_INLINE F32 scaleBy(F32 p, F32 n) {
#if MESHWORK_ISA_LEVEL == 2
  return (F32)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const I32 whole = __builtin_convertvector(n, I32), first = whole >> 1;
  return p * bitCast<F32>((first + 127) << 23) * bitCast<F32>((whole - first + 127) << 23);
#endif
}

// e^x: x = n ln 2 + r, |r| <= ln 2 / 2.
MESHWORK_INLINE F32 exp(F32 x) {
  const F32 clamped = min(max(x, splat(-104.5f)), splat(89.0f));  // a NaN becomes -104.5; mended below
  const F32 n = roundEven(clamped * 1.44269504f);
  const F32 r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  F32 p = splat(1.395171741e-03f);
  p = p * r + 8.369598538e-03f;
  p = p * r + 4.166618735e-02f;
  p = p * r + 1.666651219e-01f;
  p = p * r + 0.5f;
  p = (p * (r * r) + r) + 1.0f;
  return x != x ? x : scaleBy(p, n);
}

// log x: x = 2^e m, m in [sqrt(1/2), sqrt 2). -inf for 0, NaN below.
MESHWORK_INLINE F32 log(F32 x) {
  const I32 tiny = x < 1.17549435e-38f;
  const I32 bits = bitCast<I32>(tiny ? x * 8388608.0f : x) & 0x7fffffff;  // no sign, so that nothing overflows
  const I32 shift = (bits - 0x3f3504f3) >> 23;
  const F32 e = __builtin_convertvector(shift + (tiny & -23), F32);
  const F32 f = bitCast<F32>(bits - (shift << 23)) - 1.0f;
  F32 p = splat(6.913567334e-02f);
  p = p * f - 1.178925037e-01f;
  p = p * f + 1.187342629e-01f;
  p = p * f - 1.238446161e-01f;
  p = p * f + 1.421861649e-01f;
  p = p * f - 1.666924357e-01f;
  p = p * f + 2.000222802e-01f;
  p = p * f - 2.499998659e-01f;
  p = p * f + 3.333331048e-01f;
  const F32 square = f * f;
  const F32 tail = ((p * f) * square + e * -2.12194440e-4f) - 0.5f * square;
  F32 result = (tail + f) + e * 0.693359375f;
  result = x == 0.0f ? splat(-__builtin_inff()) : result;
  result = x == __builtin_inff() ? x : result;
  return (x < 0.0f) | (x != x) ? splat(__builtin_nanf("")) : result;
}

// tanh x: an odd polynomial below 0.625, 1 - 2 / (e^2|x| + 1) above.
MESHWORK_INLINE F32 tanh(F32 x) {
  const F32 t = abs(x);
  const F32 s = t * t;
  F32 p = splat(2.064662054e-03f);
  p = p * s - 8.091964759e-03f;
  p = p * s + 2.166634426e-02f;
  p = p * s - 5.394056439e-02f;
  p = p * s + 1.333315820e-01f;
  p = p * s - 3.333332837e-01f;
  const F32 small = (p * s) * t + t;
  const F32 large = 1.0f - 2.0f / (exp(t + t) + 1.0f);
  return x != x ? x : copySign(t < 0.625f ? small : large, x);
}

// erf x: an odd polynomial below 1, 1 - e^P(|x|) up to 4 with P fitted to log erfc, 1 above.
MESHWORK_INLINE F32 erf(F32 x) {
  const F32 t = abs(x);
  const F32 s = t * t;
  F32 p = splat(-9.680135918e-06f);
  p = p * s + 1.127054420e-04f;
  p = p * s - 8.484711288e-04f;
  p = p * s + 5.221074913e-03f;
  p = p * s - 2.686544508e-02f;
  p = p * s + 1.128378287e-01f;
  p = p * s - 3.761263788e-01f;
  p = p * s + 1.283791661e-01f;
  const F32 small = p * t + t;
  const F32 c = min(t, splat(4.0f));
  F32 q = splat(2.513268953e-07f);
  q = q * c - 2.531481186e-05f;
  q = q * c + 4.637880484e-04f;
  q = q * c - 4.282382783e-03f;
  q = q * c + 2.537355572e-02f;
  q = q * c - 1.086389944e-01f;
  q = q * c - 6.330395937e-01f;
  q = q * c - 1.129661202e+00f;
  q = q * c + 2.043598943e-04f;
  const F32 large = 1.0f - exp(q);
  return x != x ? x : copySign(t < 1.0f ? small : large, x);
}

// ---- f64: the C library, lane by lane ----

template <double (*kFunction)(double)>
MESHWORK_INLINE F64 eachLane(F64 x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = kFunction(x[i]);
  return x;
}
MESHWORK_INLINE F64 exp(F64 x) { return eachLane<::exp>(x); }
MESHWORK_INLINE F64 log(F64 x) { return eachLane<::log>(x); }
MESHWORK_INLINE F64 tanh(F64 x) { return eachLane<::tanh>(x); }
MESHWORK_INLINE F64 erf(F64 x) { return eachLane<::erf>(x); }
MESHWORK_INLINE F64 sin(F64 x) { return eachLane<::sin>(x); }
MESHWORK_INLINE F64 cos(F64 x) { return eachLane<::cos>(x); }

// 1 / (1 + e^-x), by e^-|x| so that nothing overflows.
template <class V>
MESHWORK_INLINE V sigmoid(V x) {
  const V e = exp(-abs(x));
  return (x < 0 ? e : 1 + V{}) / (1 + e);
}
// x sigmoid(x).
template <class V>
MESHWORK_INLINE V silu(V x) {
  return x * sigmoid(x);
}

// The tanh form of gelu, x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), written as x sigmoid(2 u):
// nothing cancels for negative x.
MESHWORK_INLINE F32 gelu(F32 x) { return x / (1.0f + exp(x * (-1.59576912f - 0.0713548163f * (x * x)))); }
MESHWORK_INLINE F64 gelu(F64 x) {
  return x / (1.0 + exp(x * (-1.5957691216057307118 - 0.071354816272600239 * (x * x))));
}

// ---- f32 sine and cosine: reduced and evaluated in f64, rounded once ----

// sin(x + quarters * pi / 2). Beyond 2^20 the reduction by a two-part pi / 2 is no longer exact: there the C library's.
MESHWORK_INLINE F64 sinQuarter(F64 x, int quarters) {
  const F64 n = roundEven(x * 0.63661977236758134308);
  const F64 r = (x - n * 1.57079632673412561417e+00) - n * 6.07710050650619224932e-11;
  const F64 s = r * r;
  F64 odd = splat(1.6059043836821613e-10);
  odd = odd * s - 2.5052108385441720e-08;
  odd = odd * s + 2.7557319223985893e-06;
  odd = odd * s - 1.9841269841269841e-04;
  odd = odd * s + 8.3333333333333332e-03;
  odd = odd * s - 1.6666666666666666e-01;
  odd = odd * s * r + r;
  F64 even = splat(2.0876756987868099e-09);
  even = even * s - 2.7557319223985888e-07;
  even = even * s + 2.4801587301587302e-05;
  even = even * s - 1.3888888888888889e-03;
  even = even * s + 4.1666666666666664e-02;
  even = even * s - 0.5;
  even = even * s + 1.0;
  // n + quarters mod 4, kept in the low bits by an addition to 2^52.
  const U64 turn = bitCast<U64>((n + quarters) + 6755399441055744.0);
  const I64 useEven = bitCast<I64>(0 - (turn & 1));
  const F64 value = useEven ? even : odd;
  return bitCast<F64>(bitCast<U64>(value) ^ ((turn & 2) << 62));
}

MESHWORK_INLINE F32 sinQuarter(F32 x, int quarters) {
  F32Half halves[2];
  std::memcpy(halves, &x, sizeof x);
  const auto value = [quarters](F32Half half) { return narrowDouble(sinQuarter(widenFloat(half), quarters)); };
  F32 result = joinHalves(value(halves[0]), value(halves[1]));
  const I32 far = abs(x) >= 1048576.0f;
  if (__builtin_expect(reduceMin(far) != 0, 0)) {
    for (int i = 0; i < kLanes<float>; ++i) {
      const double lane = static_cast<double>(x[i]);
      if (far[i]) result[i] = static_cast<float>(quarters ? ::cos(lane) : ::sin(lane));
    }
  }
  return result;
}
MESHWORK_INLINE F32 sin(F32 x) {
  const F32 result = sinQuarter(x, 0);
  return x == 0.0f ? x : result;  // keeps -0
}
MESHWORK_INLINE F32 cos(F32 x) { return sinQuarter(x, 1); }

}  // namespace meshwork::MESHWORK_ISA
