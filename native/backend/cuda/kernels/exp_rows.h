// What softmax and cross-entropy do with a row: its maximum and the sum of exponentials, in one pass.
#pragma once
#include "backend/cuda/kernels/groups.h"

namespace meshwork::cuda {

__device__ __forceinline__ float expOf(float x) { return expf(x); }
__device__ __forceinline__ double expOf(double x) { return exp(x); }
__device__ __forceinline__ float logOf(float x) { return logf(x); }
__device__ __forceinline__ double logOf(double x) { return log(x); }

template <class A>
__device__ __forceinline__ A negativeInfinity() {
  return static_cast<A>(-__builtin_huge_val());
}

// sum = sum of exp(x - max). A row whose maximum is -inf has max 0 here, so that nothing becomes NaN.
template <class A>
struct ExpSum {
  A max, sum;
};

template <class A>
__device__ __forceinline__ A shiftOf(A max) {
  return max == negativeInfinity<A>() ? A(0) : max;
}

// All threads of the group get the row's. Each keeps a running maximum and scales its sum when that grows.
template <int kWidth, bool kBlock, class T>
__device__ __forceinline__ ExpSum<Compute<T>> sumExpRow(const Group<kBlock>& group, const T* x, int64_t width) {
  using A = Compute<T>;
  A max = negativeInfinity<A>(), sum = 0;
  for (int64_t i = int64_t{kWidth} * group.lane(); i < width; i += kWidth * group.kSize) {
    A v[kWidth];
    load(v, x + i);
    A highest = max;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) highest = MaxOf()(highest, v[k]);
    const A shift = shiftOf(highest);
    A few = 0;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) few += expOf(v[k] - shift);
    sum = sum * expOf(max - shift) + few;
    max = highest;
  }
  const A highest = group.template reduce<MaxOf>(max), shift = shiftOf(highest);
  return {shift, group.template reduce<SumOf>(max == negativeInfinity<A>() ? A(0) : sum * expOf(max - shift))};
}

}  // namespace meshwork::cuda
