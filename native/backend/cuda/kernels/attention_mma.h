// Tiles of bfloat16 in shared memory and their products by matrix instructions, for attention. A tile's rows are
// kFeatures + 8 elements apart, so that the eight rows of a matrix lie in different banks.
#pragma once
#include "backend/cuda/kernels/attention_operands.h"
#include "backend/cuda/kernels/mma.h"

namespace meshwork::cuda {

// Two results as bfloat16, the first in the low half.
__device__ __forceinline__ uint32_t packBf16(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return narrow<bf16>(low).bits | static_cast<uint32_t>(narrow<bf16>(high).bits) << 16;
#endif
}

// Rows [first, first + kRows) of a head into a tile, zeros beyond `count` rows and the features: by asynchronous copies
// where rows are aligned, and at once where not.
template <int kRows, int kFeatures>
__device__ __forceinline__ void copyTile(bf16* to, const Heads<const bf16>& from, int64_t b, int64_t first,
                                         int64_t count, int64_t h, int features) {
  constexpr int kPacks = kFeatures / 8;
  for (int at = static_cast<int>(threadIdx.x); at < kRows * kPacks; at += kMmaThreads) {
    const int row = at / kPacks, column = at % kPacks * 8;
    const int filled = first + row < count ? max(0, min(8, features - column)) : 0;
    bf16* place = to + row * (kFeatures + 8) + column;
    const bf16* source = filled > 0 ? from.at(b, first + row, h) + column : from.data;
    if (from.aligned) {
      copyAsync16(place, source, 2 * filled);
    } else {
      Pack<bf16, 8> pack;
#pragma unroll
      for (int i = 0; i < 8; ++i) pack.v[i] = i < filled ? source[i] : bf16{0};
      *reinterpret_cast<Pack<bf16, 8>*>(place) = pack;
    }
  }
}

// c[n] += a (16 rows of `left` from `row` on) times the transpose of kColumns rows of `right`, over the features.
template <int kFeatures, int kColumns>
__device__ __forceinline__ void multiplyTiles(float (&c)[kColumns / 8][4], const bf16* left, int row,
                                              const bf16* right) {
  constexpr int kPitch = kFeatures + 8;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const bf16* a = left + (row + lane % 16) * kPitch + lane / 16 * 8;
  const bf16* b = right + (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < kFeatures; k += 16) {
    uint32_t x[4];
    loadMatrices(x, a + k);
#pragma unroll
    for (int n = 0; n < kColumns / 8; n += 2) {
      uint32_t y[4];
      loadMatrices(y, b + n * 8 * kPitch + k);
      const uint32_t low[2] = {y[0], y[1]}, high[2] = {y[2], y[3]};
      mmaBf16(c[n], x, low);
      mmaBf16(c[n + 1], x, high);
    }
  }
}

// c += weights (16 x kOthers, results of multiplyTiles, rounded to bfloat16) times kOthers rows of `right`.
template <int kFeatures, int kOthers>
__device__ __forceinline__ void addTiles(float (&c)[kFeatures / 8][4], const float (&weights)[kOthers / 8][4],
                                         const bf16* right) {
  constexpr int kPitch = kFeatures + 8;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const bf16* b = right + lane % 16 * kPitch + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kOthers; k += 16) {
    const float(&low)[4] = weights[k / 8], (&high)[4] = weights[k / 8 + 1];
    const uint32_t x[4] = {packBf16(low[0], low[1]), packBf16(low[2], low[3]), packBf16(high[0], high[1]),
                           packBf16(high[2], high[3])};
#pragma unroll
    for (int n = 0; n < kFeatures / 8; n += 2) {
      uint32_t y[4];
      loadMatricesTransposed(y, b + k * kPitch + n * 8);
      const uint32_t left[2] = {y[0], y[1]}, right2[2] = {y[2], y[3]};
      mmaBf16(c[n], x, left);
      mmaBf16(c[n + 1], x, right2);
    }
  }
}

// Writes rows `row` + g and + 8 of the tile that begins at `first`; `factors` are theirs.
template <int kFeatures>
__device__ __forceinline__ void writeTile(const Heads<bf16>& to, int64_t b, int64_t first, int64_t count, int64_t h,
                                          int features, int row, const float (&c)[kFeatures / 8][4],
                                          const float (&factors)[2]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t i = first + row + lane / 4 + 8 * half;
    if (i >= count) continue;
    bf16* at = to.at(b, i, h);
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const int column = n * 8 + lane % 4 * 2;
      const float low = c[n][2 * half] * factors[half], high = c[n][2 * half + 1] * factors[half];
      if (to.aligned && column + 1 < features) {
        *reinterpret_cast<uint32_t*>(at + column) = packBf16(low, high);
      } else {
        if (column < features) at[column] = narrow<bf16>(low);
        if (column + 1 < features) at[column + 1] = narrow<bf16>(high);
      }
    }
  }
}

}  // namespace meshwork::cuda
