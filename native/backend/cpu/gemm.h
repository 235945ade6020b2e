// The inner parts of matrix products, shared by matmul and attention: packing into panels and the register tile.
//
// A product's left side is packed in panels of up to kTileRows rows, k-major (for every k the panel's rows lie
// together); the right side is read in panels of kTileVectors vectors of columns, either packed k-major too, or in
// place where its columns have unit stride. microKernel() keeps one tile of the result in registers. Every element is
// a chain of fma over ascending k for each panel of k, and the sum of the chains in order: its bits depend on no other
// blocking.
#pragma once
#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>

#include "backend/cpu/simd.h"

namespace meshwork::MESHWORK_ISA {

// 24 of 32 registers hold sums with AVX-512 and on arm64, 12 of 16 elsewhere.
#if MESHWORK_ISA_LEVEL == 2 || defined(__aarch64__)
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif
constexpr int kTileVectors = 2;
template <class S>
constexpr int kTileColumns = kTileVectors * kLanes<S>;

// Stores a result or the first n lanes of one. As bfloat16 by the processor's own conversion, where kernels are
// compiled for it: it gives 0 for what is below 2^-126.
template <class T, class V>
MESHWORK_INLINE void storeResult(T* to, V value) {
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, bf16>) {
    const auto bits = bitCast<U16Half>(_mm512_cvtneps_pbh((__m512)value));
    std::memcpy(to, &bits, sizeof bits);
    return;
  }
#endif
  store(to, value);
}
template <class T, class V>
MESHWORK_INLINE void storeResult(T* to, V value, int n) {
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, bf16>) {
    const auto bits = bitCast<U16Half>(_mm512_cvtneps_pbh((__m512)value));
    std::memcpy(to, &bits, static_cast<size_t>(n) * sizeof(bf16));
    return;
  }
#endif
  storePartial(to, value, n);
}

// to[i][j] = from[i][j] + sum over p < k of a[p * kRows + i] * b[p * ldb + j], j over kVectors vectors; from null
// counts as zeros. One chain of fma, the sum by itself first: to end one costs as much as six steps.
template <int kRows, int kVectors, class S, class B>
void microKernel(int64_t k, const S* a, const B* b, int64_t ldb, const S* from, int64_t ldFrom, S* to, int64_t ldTo) {
  using V = Vec<S>;
  constexpr int lanes = kLanes<S>;
  // Results that lie in memory are fetched while the sums are made. Every loop is unrolled, so that the sums are never
  // anywhere but in registers.
  V sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      __builtin_prefetch(to + i * ldTo + v * lanes, 1);
      sum[i][v] = V{};
    }
  }
  for (int64_t p = 0; p < k; ++p, a += kRows, b += ldb) {
    V right[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right[v] = loadAs<S>(b + v * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const V left = splat(a[i]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[i][v] = fma(left, right[v], sum[i][v]);
    }
  }
  if (from) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[i][v] += load(from + i * ldFrom + v * lanes);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(to + i * ldTo + v * lanes, sum[i][v]);
  }
}
template <class S, class B>
using MicroKernel = void (*)(int64_t, const S*, const B*, int64_t, const S*, int64_t, S*, int64_t);

namespace detail {
template <int kVectors, class S, class B, int... kRows>
constexpr std::array<MicroKernel<S, B>, sizeof...(kRows)> microKernels(std::integer_sequence<int, kRows...>) {
  return {microKernel<kRows + 1, kVectors, S, B>...};
}
}  // namespace detail

// The micro kernel for a panel of `rows` rows, 1 to kTileRows.
template <int kVectors, class S, class B>
MESHWORK_INLINE MicroKernel<S, B> findMicroKernel(int rows) {
  static constexpr auto table = detail::microKernels<kVectors, S, B>(std::make_integer_sequence<int, kTileRows>{});
  return table[static_cast<size_t>(rows - 1)];
}

// c[i][j] (+)= sum over p < k of a b for m rows and n columns, n a multiple of kLanes<S>. a: packed, panel after panel
// of kTileRows rows and `packedK` steps, of which the first k are used. b: rows `ldb` apart, or for ldb = 0 packed,
// panel after panel of kTileColumns<S> columns (the last may be one vector wide).
template <class S>
void multiplyPacked(int64_t m, int64_t n, int64_t k, const S* a, int64_t packedK, const S* b, int64_t ldb, S* c,
                    int64_t ldc, bool add) {
  constexpr int lanes = kLanes<S>;
  for (int64_t j = 0; j < n;) {
    const bool whole = j + kTileColumns<S> <= n;
    const int64_t width = whole ? kTileColumns<S> : lanes;
    const S* right = ldb ? b + j : b + j * k;
    for (int64_t i = 0; i < m; i += kTileRows) {
      const int rows = static_cast<int>(std::min<int64_t>(kTileRows, m - i));
      const auto kernel = whole ? findMicroKernel<kTileVectors, S, S>(rows) : findMicroKernel<1, S, S>(rows);
      S* tile = c + i * ldc + j;
      kernel(k, a + i * packedK, right, ldb ? ldb : width, add ? tile : nullptr, ldc, tile, ldc);
    }
    j += width;
  }
}

MESHWORK_INLINE float widen(float value) { return value; }
MESHWORK_INLINE double widen(double value) { return value; }
MESHWORK_INLINE float widen(bf16 value) { return bitCast<float>(static_cast<uint32_t>(value.bits) << 16); }

MESHWORK_INLINE float widen(f16 value) { return toFloat(value); }

using F32x4 = VectorOf<float, 16>::type;

MESHWORK_INLINE F32x4 load4(const float* from) {
  return *reinterpret_cast<const VectorOf<float, 16>::unaligned*>(from);
}
MESHWORK_INLINE F32x4 load4(const bf16* from) {
  VectorOf<uint16_t, 8>::type bits;
  std::memcpy(&bits, from, sizeof bits);
  return bitCast<F32x4>(__builtin_convertvector(bits, VectorOf<uint32_t, 16>::type) << 16);
}

MESHWORK_INLINE F32x4 load4(const f16* from) {
  U16Half bits{};
  std::memcpy(&bits, from, 4 * sizeof(f16));
  const F32 wide = widenF16(bits);
  F32x4 four;
  std::memcpy(&four, &wide, sizeof four);
  return four;
}

// Four lines of four, transposed: to[j * width + i] = from[i * stride + j].
template <class T, class S>
MESHWORK_INLINE void transpose4(const T* from, int64_t stride, S* to, int64_t width) {
  const F32x4 a = load4(from), b = load4(from + stride), c = load4(from + 2 * stride), d = load4(from + 3 * stride);
  const F32x4 ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const F32x4 cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const F32x4 rows[4] = {__builtin_shufflevector(ab0, cd0, 0, 1, 4, 5), __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7),
                         __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5), __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7)};
  using Four = VectorOf<S, 4 * static_cast<int>(sizeof(S))>;
  for (int j = 0; j < 4; ++j) {
    const auto line = __builtin_convertvector(rows[j], typename Four::type);
    *reinterpret_cast<typename Four::unaligned*>(to + j * width) = line;
  }
}

#if MESHWORK_ISA_LEVEL == 2
// Sixteen vectors of sixteen, transposed.
MESHWORK_INLINE void transpose16(__m512 (&r)[16]) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  const auto low = [](__m512 x, __m512 y) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  const auto high = [](__m512 x, __m512 y) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = low(t[i], t[i + 2]);
    r[i + 1] = high(t[i], t[i + 2]);
    r[i + 2] = low(t[i + 1], t[i + 3]);
    r[i + 3] = high(t[i + 1], t[i + 3]);
  }
  // Quarter q of r[4 i + j] holds column 4 q + j of rows 4 i to 4 i + 3.
  constexpr int kEven = 0x88, kOdd = 0xdd;
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm512_shuffle_f32x4(r[j], r[4 + j], kEven);
    t[4 + j] = _mm512_shuffle_f32x4(r[j], r[4 + j], kOdd);
    t[8 + j] = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], kEven);
    t[12 + j] = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], kOdd);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    r[j] = _mm512_shuffle_f32x4(t[j], t[8 + j], kEven);
    r[8 + j] = _mm512_shuffle_f32x4(t[j], t[8 + j], kOdd);
    r[4 + j] = _mm512_shuffle_f32x4(t[4 + j], t[12 + j], kEven);
    r[12 + j] = _mm512_shuffle_f32x4(t[4 + j], t[12 + j], kOdd);
  }
}

// Lines of 32-bit elements, a square of 16 at a time: to[p * width + i] is element p of line i. loadLine(i, p, n) gives
// n elements of line i from p on, zeros behind them.
template <class LoadLine>
MESHWORK_INLINE void transposeLines(int count, int64_t k, void* to, int width, const LoadLine& loadLine) {
  for (int i = 0; i < width; i += 16) {
    const int lines = std::min(16, count - i);
    const auto lanes = static_cast<__mmask16>((1u << std::min(16, width - i)) - 1u);
    for (int64_t p = 0; p < k; p += 16) {
      const int steps = static_cast<int>(std::min<int64_t>(16, k - p));
      __m512 square[16];
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) square[j] = j < lines ? loadLine(i + j, p, steps) : __m512{};
      transpose16(square);
      float* line = static_cast<float*>(to) + p * width + i;
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) {
        if (j < steps) _mm512_mask_storeu_ps(line + j * width, lanes, square[j]);
      }
    }
  }
}
#endif

// `count` lines (rows of a left side, columns of a right side) with unit stride in k: to[p * width + i] = from[i *
// stride + p]. Lanes from `count` to `width` become zero.
template <class T, class S>
void packTransposed(const T* from, int64_t stride, int count, int64_t k, S* to, int width) {
#if MESHWORK_ISA_LEVEL == 2
  if constexpr (std::is_same_v<S, float>) {
    return transposeLines(count, k, to, width, [from, stride](int i, int64_t p, int n) {
      const T* line = from + i * stride + p;
      return (__m512)(n == 16 ? load(line) : loadPartial(line, n));
    });
  }
#endif
  int i = 0;
  if constexpr (!std::is_same_v<T, double>) {
    for (; i + 4 <= count; i += 4) {
      int64_t p = 0;
      for (; p + 4 <= k; p += 4) transpose4(from + i * stride + p, stride, to + p * width + i, width);
      for (; p < k; ++p) {
        for (int j = i; j < i + 4; ++j) to[p * width + j] = widen(from[j * stride + p]);
      }
    }
  }
  for (; i < count; ++i) {
    for (int64_t p = 0; p < k; ++p) to[p * width + i] = widen(from[i * stride + p]);
  }
  for (; i < width; ++i) {
    for (int64_t p = 0; p < k; ++p) to[p * width + i] = S{};
  }
}

// The same from lines with unit stride across them: to[p * width + i] = from[p * stride + i].
template <class T, class S>
void packStraight(const T* from, int64_t stride, int count, int64_t k, S* to, int width) {
  constexpr int lanes = kLanes<S>;
  for (int64_t p = 0; p < k; ++p, from += stride, to += width) {
    int i = 0;
    for (; i + lanes <= count; i += lanes) store(to + i, loadAs<S>(from + i));
    if (i < count) {
      storePartial(to + i, loadPartialAs<S>(from + i, count - i), std::min(lanes, width - i));
      i += lanes;
    }
    for (; i < width; ++i) to[i] = S{};
  }
}

// A left side of m rows for multiplyPacked(). kTransposed: rows have unit stride in k; else k has stride `stride`.
template <bool kTransposed, class T, class S>
void packLeftSide(const T* from, int64_t stride, int64_t m, int64_t k, S* to) {
  for (int64_t i = 0; i < m; i += kTileRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kTileRows, m - i));
    if constexpr (kTransposed) {
      packTransposed(from + i * stride, stride, rows, k, to + i * k, rows);
    } else {
      packStraight(from + i, stride, rows, k, to + i * k, rows);
    }
  }
}

// A right side of n columns, each with unit stride in k, for multiplyPacked(); columns up to a multiple of kLanes<S>
// are zero.
template <class T, class S>
void packRightSide(const T* from, int64_t stride, int64_t n, int64_t k, S* to) {
  constexpr int lanes = kLanes<S>;
  for (int64_t j = 0; j < n;) {
    const int columns = static_cast<int>(std::min<int64_t>(kTileColumns<S>, n - j));
    const int width = columns > lanes ? kTileColumns<S> : lanes;
    packTransposed(from + j * stride, stride, columns, k, to + j * k, width);
    j += width;
  }
}

// sum over p < k of a[p] * b[p] for kRows lines of a and kColumns lines of b, added to `to` (null from: zeros are).
template <int kRows, int kColumns, class S, class B>
void dotKernel(int64_t k, const S* a, int64_t lda, const B* b, int64_t ldb, bool add, S* to, int64_t ldTo) {
  using V = Vec<S>;
  constexpr int lanes = kLanes<S>;
  V sum[kRows][kColumns] = {};
  auto step = [&](auto loadA, auto loadB) {
    V left[kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) left[i] = loadA(a + i * lda);
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) {
      const V right = loadB(b + j * ldb);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) sum[i][j] = fma(left[i], right, sum[i][j]);
    }
  };
  int64_t p = 0;
  for (; p + lanes <= k; p += lanes, a += lanes, b += lanes) {
    step([](const S* from) { return load(from); }, [](const B* from) { return loadAs<S>(from); });
  }
  if (const int rest = static_cast<int>(k - p); rest > 0) {
    step([rest](const S* from) { return loadPartial(from, rest); },
         [rest](const B* from) { return loadPartialAs<S>(from, rest); });
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      const S value = reduceAdd(sum[i][j]);
      to[i * ldTo + j] = add ? to[i * ldTo + j] + value : value;
    }
  }
}

constexpr int kDotRows = 4;
constexpr int kDotColumns = 4;

// dotKernel over any number of rows and columns.
template <class S, class B>
void dotBlock(int rows, int columns, int64_t k, const S* a, int64_t lda, const B* b, int64_t ldb, bool add, S* to,
              int64_t ldTo) {
  using Dot = void (*)(int64_t, const S*, int64_t, const B*, int64_t, bool, S*, int64_t);
  static constexpr Dot table[kDotRows][2] = {{dotKernel<1, 1, S, B>, dotKernel<1, 4, S, B>},
                                             {dotKernel<2, 1, S, B>, dotKernel<2, 4, S, B>},
                                             {dotKernel<3, 1, S, B>, dotKernel<3, 4, S, B>},
                                             {dotKernel<4, 1, S, B>, dotKernel<4, 4, S, B>}};
  for (int j = 0; j < columns;) {
    const bool wide = j + kDotColumns <= columns;
    for (int i = 0; i < rows; i += kDotRows) {
      table[std::min(kDotRows, rows - i) - 1][wide](k, a + i * lda, lda, b + j * ldb, ldb, add, to + i * ldTo + j,
                                                    ldTo);
    }
    j += wide ? kDotColumns : 1;
  }
}

}  // namespace meshwork::MESHWORK_ISA
