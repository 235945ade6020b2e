// Tiles of bfloat16 or float16 in shared memory and their products by matrix instructions, for attention. A tile's rows
// are kFeatures + 8 elements apart, so that the eight rows of a matrix lie in different banks.
#pragma once
#include "backend/cuda/kernels/attention_operands.h"
#include "backend/cuda/kernels/mma.h"

namespace meshwork::cuda {

// Two results as T, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t packShort(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t packed;
  if constexpr (std::is_same_v<T, bf16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
#else
  return narrow<T>(low).bits | static_cast<uint32_t>(narrow<T>(high).bits) << 16;
#endif
}

// Rows [first, first + kRows) of a head into a tile, zeros beyond `count` rows and the features: by asynchronous copies
// where rows are aligned, and at once where not.
template <int kRows, int kFeatures, class T>
__device__ __forceinline__ void copyTile(T* to, const Heads<const T>& from, int64_t b, int64_t first, int64_t count,
                                         int64_t h, int features) {
  constexpr int kPacks = kFeatures / 8;
  for (int at = static_cast<int>(threadIdx.x); at < kRows * kPacks; at += kMmaThreads) {
    const int row = at / kPacks, column = at % kPacks * 8;
    const int filled = first + row < count ? max(0, min(8, features - column)) : 0;
    T* place = to + row * (kFeatures + 8) + column;
    const T* source = filled > 0 ? from.at(b, first + row, h) + column : from.data;
    if (from.aligned) {
      copyAsync16(place, source, 2 * filled);
    } else {
      Pack<T, 8> pack;
#pragma unroll
      for (int i = 0; i < 8; ++i) pack.v[i] = i < filled ? source[i] : T{0};
      *reinterpret_cast<Pack<T, 8>*>(place) = pack;
    }
  }
}

// c[n] += a (16 rows of `left` from `row` on) times the transpose of kColumns rows of `right`, over the features.
template <int kFeatures, int kColumns, class T>
__device__ __forceinline__ void multiplyTiles(float (&c)[kColumns / 8][4], const T* left, int row, const T* right) {
  constexpr int kPitch = kFeatures + 8;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const T* a = left + (row + lane % 16) * kPitch + lane / 16 * 8;
  const T* b = right + (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < kFeatures; k += 16) {
    uint32_t x[4];
    loadMatrices(x, a + k);
#pragma unroll
    for (int n = 0; n < kColumns / 8; n += 2) {
      uint32_t y[4];
      loadMatrices(y, b + n * 8 * kPitch + k);
      const uint32_t low[2] = {y[0], y[1]}, high[2] = {y[2], y[3]};
      mmaShort<T>(c[n], x, low);
      mmaShort<T>(c[n + 1], x, high);
    }
  }
}

// c += weights (16 x kOthers, results of multiplyTiles, rounded to T) times kOthers rows of `right`.
template <int kFeatures, int kOthers, class T>
__device__ __forceinline__ void addTiles(float (&c)[kFeatures / 8][4], const float (&weights)[kOthers / 8][4],
                                         const T* right) {
  constexpr int kPitch = kFeatures + 8;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const T* b = right + lane % 16 * kPitch + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kOthers; k += 16) {
    const float(&low)[4] = weights[k / 8], (&high)[4] = weights[k / 8 + 1];
    const uint32_t x[4] = {packShort<T>(low[0], low[1]), packShort<T>(low[2], low[3]), packShort<T>(high[0], high[1]),
                           packShort<T>(high[2], high[3])};
#pragma unroll
    for (int n = 0; n < kFeatures / 8; n += 2) {
      uint32_t y[4];
      loadMatricesTransposed(y, b + k * kPitch + n * 8);
      const uint32_t left[2] = {y[0], y[1]}, right2[2] = {y[2], y[3]};
      mmaShort<T>(c[n], x, left);
      mmaShort<T>(c[n + 1], x, right2);
    }
  }
}

// Writes rows `row` + g and + 8 of the tile that begins at `first`; `factors` are theirs.
template <int kFeatures, class T>
__device__ __forceinline__ void writeTile(const Heads<T>& to, int64_t b, int64_t first, int64_t count, int64_t h,
                                          int features, int row, const float (&c)[kFeatures / 8][4],
                                          const float (&factors)[2]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t i = first + row + lane / 4 + 8 * half;
    if (i >= count) continue;
    T* at = to.at(b, i, h);
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const int column = n * 8 + lane % 4 * 2;
      const float low = c[n][2 * half] * factors[half], high = c[n][2 * half + 1] * factors[half];
      if (to.aligned && column + 1 < features) {
        *reinterpret_cast<uint32_t*>(at + column) = packShort<T>(low, high);
      } else {
        if (column < features) at[column] = narrow<T>(low);
        if (column + 1 < features) at[column + 1] = narrow<T>(high);
      }
    }
  }
}

}  // namespace meshwork::cuda
