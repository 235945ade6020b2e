// Products of bfloat16 by pairs of steps of k, summed in float32: the packed forms and the tile of the result, for
// AVX512-BF16 (MESHWORK_PAIRS 1) and for AMX (2).
//
// A right side is packed in panels of up to kColumns columns: for every two steps of k, one 32-bit pair a column. Both
// units read it so. Every element of the result is one chain of sums over ascending k, continued through memory.
#pragma once
#include "backend/cpu/gemm.h"

#ifndef MESHWORK_PAIRS
#define MESHWORK_PAIRS 0
#endif

#if MESHWORK_PAIRS
namespace meshwork::MESHWORK_ISA::pairs {

// `count` lines with unit stride in k, `stride` apart: to[p * width + i] is pair p of line i. Lanes from `count` to
// `width` become zero, and so does the second half of a last, single step.
inline void packLines(const bf16* from, int64_t stride, int count, int64_t k, uint32_t* to, int width) {
  transposeLines(count, k / 2, to, width, [from, stride](int i, int64_t p, int n) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), from + i * stride + 2 * p);
  });
  if (k % 2 == 0) return;
  uint32_t* last = to + k / 2 * width;
  for (int i = 0; i < width; ++i) last[i] = i < count ? from[i * stride + k - 1].bits : 0;
}

// Up to 16 elements of each of two rows as pairs: (low[i], high[i]); `high` null counts as zeros.
MESHWORK_INLINE void zipRows(const bf16* low, const bf16* high, int count, uint32_t* to) {
  const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1u);
  const __m512i first = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, low));
  if (!high) return _mm512_mask_storeu_epi32(to, mask, first);
  const __m512i second = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, high));
  _mm512_mask_storeu_epi32(to, mask, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
}

// The same as packLines from lines with unit stride across them, and `stride` from one step of k to the next.
inline void packAcross(const bf16* from, int64_t stride, int count, int64_t k, uint32_t* to, int width) {
  for (int64_t p = 0; p < k; p += 2, from += 2 * stride, to += width) {
    const bf16* next = p + 1 < k ? from + stride : nullptr;
    int i = 0;
    for (; i < count; i += 16) zipRows(from + i, next ? next + i : nullptr, std::min(16, count - i), to + i);
    for (i = count; i < width; ++i) to[i] = 0;
  }
}

// Vectors of float32 as pairs: (low[i], high[i]), to nearest even.
MESHWORK_INLINE U32 pairsOf(F32 low, F32 high) {
#ifdef __AVX512BF16__
  const __m512i lanes = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  return (U32)_mm512_permutexvar_epi16(lanes, both);
#else
  const U32 a = __builtin_convertvector(narrowBf16(low), U32), b = __builtin_convertvector(narrowBf16(high), U32);
  return a | (b << 16);
#endif
}

}  // namespace meshwork::MESHWORK_ISA::pairs

#if MESHWORK_PAIRS == 1
#include "backend/cpu/pairs_avx512.h"
#else
#include "backend/cpu/pairs_amx.h"
#endif

namespace meshwork::MESHWORK_ISA::pairs {

// Rounded up to whole steps, panels and panels of columns.
constexpr int64_t wholeSteps(int64_t k) { return (k + kStep - 1) / kStep * kStep; }
constexpr int64_t wholeColumns(int64_t n) { return (n + kColumns - 1) / kColumns * kColumns; }
constexpr int64_t wholeRows(int64_t m) { return (m + kRows - 1) / kRows * kRows; }
// Columns of a packed right panel that holds `columns`.
constexpr int64_t panelWidth(int64_t columns) { return columns > 16 ? 32 : 16; }

// A left side of m rows and k steps, panel after panel of kRows rows.
inline void packLeftSide(const bf16* from, bool byRows, int64_t stride, int64_t m, int64_t k, uint32_t* to) {
  for (int64_t i = 0; i < m; i += kRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kRows, m - i));
    packLeft(byRows ? from + i * stride : from + i, byRows, stride, rows, k, to);
    to += leftWords(rows, wholeSteps(k));
  }
}

// A right side of n columns, panel after panel of kColumns, each of wholeSteps(k) / 2 * panelWidth() words.
inline void packRightSide(const bf16* from, bool byRows, int64_t stride, int64_t n, int64_t k, uint32_t* to) {
  for (int64_t j = 0; j < n; j += kColumns) {
    const int columns = static_cast<int>(std::min<int64_t>(kColumns, n - j));
    packRight(byRows ? from + j : from + j * stride, byRows, stride, columns, k, to);
    to += wholeSteps(k) / 2 * kColumns;
  }
}

// to (+)= a b for one panel of columns: to has rows of kColumns. Of a's `packed` steps the first k are used, k a
// multiple of kStep or the right side's second half of a last pair zero.
inline void multiplyPanel(int64_t m, int columns, int64_t k, const uint32_t* a, int64_t packed, const uint32_t* b,
                          float* to, bool add) {
  for (int64_t i = 0; i < m; i += kRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kRows, m - i));
    float* tile = to + i * kColumns;
    multiply(rows, columns, k, a, b, add ? tile : nullptr, tile, kColumns);
    a += leftWords(rows, wholeSteps(packed));
  }
}

}  // namespace meshwork::MESHWORK_ISA::pairs
#endif
