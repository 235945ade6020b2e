// Products of pairs by AVX512-BF16: a tile of 12 rows and two vectors of columns in registers. Included by pairs.h.
#pragma once

namespace meshwork::MESHWORK_ISA::pairs {

constexpr int kRows = 12, kColumns = 32, kStep = 2;
constexpr int kRowGrain = 1;         // a tile may have any number of rows
constexpr int64_t kPanelK = 384;     // a right panel of 24 KiB stays in the L1
constexpr int64_t kBlockRows = 384;  // with a panel's k, 288 KiB of the L2

// The processor's state that products need: none.
struct Unit {
  Unit() {}
};

inline void packRight(const bf16* from, bool byRows, int64_t stride, int columns, int64_t k, uint32_t* to) {
  const int width = columns > 16 ? 32 : 16;
  byRows ? packAcross(from, stride, columns, k, to, width) : packLines(from, stride, columns, k, to, width);
}

// A left panel is packed like a right one, with as many lanes as it has rows.
inline void packLeft(const bf16* from, bool byRows, int64_t stride, int rows, int64_t k, uint32_t* to) {
  byRows ? packLines(from, stride, rows, k, to, rows) : packAcross(from, stride, rows, k, to, rows);
}

// Words of a packed left panel before step k, a multiple of kStep.
constexpr int64_t leftWords(int rows, int64_t k) { return rows * (k / 2); }

template <int kTile, int kVectors>
void multiplyTile(int64_t steps, const uint32_t* a, const uint32_t* b, const float* from, float* to, int64_t ldTo) {
  __m512 sum[kTile][kVectors];
#pragma GCC unroll 12
  for (int i = 0; i < kTile; ++i) {
    // Results that lie in memory are fetched while the sums are made.
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) __builtin_prefetch(to + i * ldTo + v * 16, 1);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[i][v] = from ? _mm512_loadu_ps(from + i * kColumns + v * 16) : __m512{};
  }
  for (int64_t p = 0; p < steps; ++p, a += kTile, b += 16 * kVectors) {
    __m512i right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) right[v] = _mm512_loadu_si512(b + v * 16);
#pragma GCC unroll 12
    for (int i = 0; i < kTile; ++i) {
      const auto left = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[i]));
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], left, (__m512bh)right[v]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kTile; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(to + i * ldTo + v * 16, sum[i][v]);
  }
}

using MultiplyTile = void (*)(int64_t, const uint32_t*, const uint32_t*, const float*, float*, int64_t);

template <int kVectors, int... kTiles>
constexpr std::array<MultiplyTile, sizeof...(kTiles)> multiplyTiles(std::integer_sequence<int, kTiles...>) {
  return {multiplyTile<kTiles + 1, kVectors>...};
}

// to = from + a b for one tile, `from` (rows kColumns apart) null for zeros. Columns up to a whole vector are written.
inline void multiply(int rows, int columns, int64_t k, const uint32_t* a, const uint32_t* b, const float* from,
                     float* to, int64_t ldTo) {
  static constexpr auto narrow = multiplyTiles<1>(std::make_integer_sequence<int, kRows>{});
  static constexpr auto wide = multiplyTiles<2>(std::make_integer_sequence<int, kRows>{});
  (columns > 16 ? wide : narrow)[static_cast<size_t>(rows - 1)]((k + 1) / 2, a, b, from, to, ldTo);
}

}  // namespace meshwork::MESHWORK_ISA::pairs
