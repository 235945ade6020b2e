// Groups of threads that work on one row together: a warp, or a whole block. Sums and maxima over a group are taken in
// an order that depends on the size of the group only.
#pragma once
#include "backend/cuda/kernels/elements.h"
#include "backend/cuda/launch.h"

namespace meshwork::cuda {

constexpr int kWarp = 32;
constexpr int kGroupThreads = 256;  // of a block: 8 groups of a warp, or one
constexpr uint32_t kAllLanes = 0xffffffffu;

struct SumOf {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct MaxOf {  // a NaN on either side stays
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a != a ? a : (a > b ? a : b);
  }
};
struct MinOf {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a != a ? a : (a < b ? a : b);
  }
};

// op over the lanes of a warp, in every lane.
template <class Op, class T>
__device__ __forceinline__ T reduceWarp(T value, Op op) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value = op(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// Which rows a group takes: row, row + step, ... With kBlock the block is the group, else each of its warps is one.
template <bool kBlock>
struct Group {
  static constexpr int kSize = kBlock ? kGroupThreads : kWarp;
  static constexpr int kPerBlock = kGroupThreads / kSize;

  __device__ __forceinline__ int lane() const { return kBlock ? threadIdx.x : threadIdx.x % kWarp; }
  __device__ __forceinline__ int64_t first() const {
    return kBlock ? blockIdx.x : int64_t{blockIdx.x} * kPerBlock + threadIdx.x / kWarp;
  }
  __device__ __forceinline__ int64_t step() const { return int64_t{gridDim.x} * kPerBlock; }

  // op over the group's threads, in every thread. All threads of the group call it.
  template <class Op, class T>
  __device__ __forceinline__ T reduce(T value, Op op = Op()) const {
    value = reduceWarp(value, op);
    if constexpr (kBlock) {
      constexpr int kWarps = kGroupThreads / kWarp;
      MESHWORK_SHARED_ARRAY(T, partial, [kWarps]);
      __syncthreads();  // the last call's values have been read
      if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
      __syncthreads();
      value = partial[0];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) value = op(value, partial[w]);
    }
    return value;
  }
};

// ---- on the host ----

// Whether rows of so many bytes are worth a whole block.
inline bool takesBlock(int64_t rowBytes) { return rowBytes > 4096; }

// Whether all rows of an operand [r, n] with unit stride in n begin at, and are, multiples of 16 bytes.
inline bool wideRows(const Operand& x) {
  const int64_t size = dtypeSize(x.view->dtype);
  return alignedTo(x.data, 16) && x.dim(1) * size % 16 == 0 && (x.dim(0) <= 1 || x.stride(0) * size % 16 == 0) &&
         (x.dim(1) <= 1 || x.stride(1) == 1);
}

// The rows of an operand [r, n], or the elements of one [r].
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  __device__ __forceinline__ T* operator[](int64_t row) const { return data + row * stride; }
};
template <class T>
Rows<T> rowsOf(const Operand& operand) {
  return {operand.as<T>(), operand.stride(0)};
}

// Launches a kernel of groups over `rows` rows.
template <bool kBlock, class... P, class... A>
void launchGroups(Device& device, int64_t rows, void (*kernel)(P...), A... arguments) {
  if (rows == 0) return;
  launch(device, blocksFor(device, rows, Group<kBlock>::kPerBlock, 32), kGroupThreads, 0, kernel, arguments...);
}

}  // namespace meshwork::cuda
