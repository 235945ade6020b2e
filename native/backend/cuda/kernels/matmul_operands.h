// The operands of matmul as its kernels see them, and what is done to a sum before it is stored.
#pragma once
#include "backend/checks/matmul.h"
#include "backend/cuda/kernels/elements.h"

namespace meshwork::cuda {

// One side, [b, rows, columns]: unit stride in rows or in columns.
template <class T>
struct Side {
  const T* data;
  int64_t batch, row, column;  // strides
  int64_t rows, columns;
  bool aligned;  // whole runs along the unit stride begin at 16 bytes

  __device__ const T* at(int64_t b, int64_t i, int64_t j) const { return data + b * batch + i * row + j * column; }
};

// Whether neighbours in memory are neighbours in columns.
inline bool byRows(const Operand& x) { return x.dim(2) <= 1 || x.stride(2) == 1; }

template <class T>
Side<T> sideOf(const Operand& x) {
  constexpr int64_t kEach = 16 / sizeof(T);
  const bool columns = byRows(x);
  const int64_t across = columns ? x.stride(1) : x.stride(2), count = columns ? x.dim(1) : x.dim(2);
  const bool aligned =
      alignedTo(x.data, 16) && (count <= 1 || across % kEach == 0) && (x.dim(0) <= 1 || x.stride(0) % kEach == 0);
  // A dim of one element may have any stride: that of the run must be 1.
  return {x.as<T>(), x.stride(0), columns ? x.stride(1) : 1, columns ? 1 : x.stride(2), x.dim(1), x.dim(2), aligned};
}

// Values of T or, for products of 16-bit floats, also float32.
template <class T>
struct Addend {
  const void* data;
  int64_t batch, row, column;
  bool wide;  // float32 beside a product of 16-bit floats

  __device__ Compute<T> at(int64_t b, int64_t i, int64_t j) const {
    const int64_t offset = b * batch + i * row + j * column;
    if constexpr (kIsShort<T>) {
      if (wide) return static_cast<const float*>(data)[offset];
    }
    return widen(static_cast<const T*>(data)[offset]);
  }
};

__device__ __forceinline__ float tanhOf(float x) { return tanhf(x); }
__device__ __forceinline__ double tanhOf(double x) { return tanh(x); }
__device__ __forceinline__ float expOfMinus(float x) { return expf(-x); }
__device__ __forceinline__ double expOfMinus(double x) { return exp(-x); }

// From a sum to a stored element: d = act(alpha sum + bias) + residual (+ d). T is a's type.
template <class T>
struct Finish {
  int32_t flags;
  double alpha;
  int64_t m, n;
  void* d;
  int64_t batch, row;
  bool wide;  // d is float32 beside a product of 16-bit floats
  Addend<T> bias, residual;

  template <class S>
  __device__ void store(int64_t b, int64_t i, int64_t j, S sum) const {
    if (i >= m || j >= n) return;
    S x = sum * static_cast<S>(alpha);
    if (flags & matmul_flag::bias) x += static_cast<S>(bias.at(0, 0, j));
    if (flags & matmul_flag::gelu) {
      const S inner = static_cast<S>(0.7978845608028654) * (x + static_cast<S>(0.044715) * x * x * x);
      x = static_cast<S>(0.5) * x * (1 + tanhOf(inner));
    }
    if (flags & matmul_flag::silu) x = x / (1 + expOfMinus(x));
    if (flags & matmul_flag::residual) x += static_cast<S>(residual.at(b, i, j));
    const int64_t offset = b * batch + i * row + j;
    if constexpr (kIsShort<T>) {
      if (wide) return put(static_cast<float*>(d) + offset, x);
    }
    put(static_cast<T*>(d) + offset, x);
  }

 private:
  template <class D, class S>
  __device__ void put(D* to, S x) const {
    if (flags & matmul_flag::accumulate) x += static_cast<S>(widen(*to));
    *to = narrow<D>(x);
  }
};

template <class T>
Finish<T> finishOf(const Call& call) {
  const Operand& d = call.out[0];
  const int32_t flags = call.attrs[attr::matmul::flags];
  Finish<T> f = {};
  f.flags = flags;
  f.alpha = call.floatAttr(attr::matmul::alpha);
  f.m = d.dim(1), f.n = d.dim(2);
  f.d = d.data, f.batch = d.stride(0), f.row = d.stride(1);
  constexpr bool kHalf = kIsShort<T>;
  f.wide = kHalf && d.view->dtype == DType::f32;
  if (flags & matmul_flag::bias) {
    const Operand& x = call.in[2];
    f.bias = {x.data, 0, 0, x.stride(0), kHalf && x.view->dtype == DType::f32};
  }
  if (flags & matmul_flag::residual) {
    const Operand& x = call.in[call.inputs - 1];
    f.residual = {x.data, x.stride(0), x.stride(1), 1, kHalf && x.view->dtype == DType::f32};
  }
  return f;
}

// Whether float32 products sum in float64: small ones do, as on the CPU, which keeps tiny gradients right.
inline bool sumsInDouble(const Operand& a, const Operand& b) {
  constexpr double kMostProducts = 1 << 22;  // b m n k
  constexpr int64_t kMostK = 4096;
  if (a.view->dtype != DType::f32 || a.dim(2) > kMostK) return false;
  const double results = static_cast<double>(a.dim(0)) * static_cast<double>(a.dim(1)) * static_cast<double>(b.dim(2));
  return results * static_cast<double>(a.dim(2)) <= kMostProducts;
}

}  // namespace meshwork::cuda
