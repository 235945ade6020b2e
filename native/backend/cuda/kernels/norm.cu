// Layer norm and RMS norm of rows, and their gradients. The gradients of the weights are summed in float64, in parts of
// the rows whose number depends on the dims only.
#include "backend/checks/norm.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/groups.h"
#include "backend/cuda/kernels/parts.h"

namespace meshwork::cuda {
namespace {

__device__ __forceinline__ float inverseRoot(float x) { return 1.0f / sqrtf(x); }
__device__ __forceinline__ double inverseRoot(double x) { return 1.0 / sqrt(x); }

// ---- forward: T is x's dtype, W the weights', S the statistics' ----

template <class T, class W>
struct Norm {
  using S = Compute<T>;
  Rows<T> y;
  Rows<const T> x;
  const W *w, *b;
  Rows<S> mean, rstd;
  int64_t rows, width;
  S eps;
};

// The sum of (x - mean)^2 over a row, for those of which it is too large for float32.
template <int kWidth, bool kBlock, class T>
__device__ double wideSquares(const Group<kBlock>& group, const T* x, int64_t width, Compute<T> mean) {
  double sum = 0;
  for (int64_t i = int64_t{kWidth} * group.lane(); i < width; i += kWidth * group.kSize) {
    Compute<T> v[kWidth];
    load(v, x + i);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const double d = static_cast<double>(v[k]) - static_cast<double>(mean);
      sum += d * d;
    }
  }
  return group.template reduce<SumOf>(sum);
}

template <bool kCentred, int kWidth, bool kBlock, class T, class W>
__global__ void __launch_bounds__(kGroupThreads) normRows(Norm<T, W> n) {
  using S = Compute<T>;
  const Group<kBlock> group;
  const int64_t begin = int64_t{kWidth} * group.lane(), step = kWidth * group.kSize;
  const S size = static_cast<S>(n.width > 0 ? n.width : 1);
  for (int64_t row = group.first(); row < n.rows; row += group.step()) {
    const T* x = n.x[row];
    S v[kWidth], mean = 0, squares = 0;
    if constexpr (kCentred) {
      S sum = 0;
      for (int64_t i = begin; i < n.width; i += step) {
        load(v, x + i);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) sum += v[k];
      }
      mean = group.template reduce<SumOf>(sum) / size;
    }
    for (int64_t i = begin; i < n.width; i += step) {
      load(v, x + i);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) squares += (v[k] - mean) * (v[k] - mean);
    }
    S rstd = inverseRoot(group.template reduce<SumOf>(squares) / size + n.eps);
    if (rstd == S(0)) rstd = static_cast<S>(inverseRoot(wideSquares<kWidth>(group, x, n.width, mean) / size + n.eps));
    if (group.lane() == 0) {
      *n.rstd[row] = rstd;
      if constexpr (kCentred) *n.mean[row] = mean;
    }
    for (int64_t i = begin; i < n.width; i += step) {
      S w[kWidth];
      load(v, x + i);
      load(w, n.w + i);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) v[k] = (v[k] - mean) * rstd * w[k];
      if constexpr (kCentred) {
        load(w, n.b + i);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) v[k] += w[k];
      }
      store(n.y[row] + i, v);
    }
  }
}

// ---- backward ----

template <class T, class W>
struct NormGrad {
  using S = Compute<T>;
  Rows<T> dx;
  Rows<const T> dy, x;
  const W* w;
  Rows<const S> mean, rstd;
  int64_t rows, width;
};

// With h = (x - mean) rstd and g = dy w: dx = rstd (g - mean(g) - h mean(g h)), without mean(g) where nothing was
// centred.
template <bool kCentred, int kWidth, bool kBlock, class T, class W>
__global__ void __launch_bounds__(kGroupThreads) normGradRows(NormGrad<T, W> n) {
  using S = Compute<T>;
  const Group<kBlock> group;
  const int64_t begin = int64_t{kWidth} * group.lane(), step = kWidth * group.kSize;
  const S size = static_cast<S>(n.width);
  for (int64_t row = group.first(); row < n.rows; row += group.step()) {
    const S rstd = *n.rstd[row];
    S mean = 0, sumG = 0, sumGh = 0, g[kWidth], h[kWidth], w[kWidth];
    if constexpr (kCentred) mean = *n.mean[row];
    const auto loadBoth = [&](int64_t i) {
      load(g, n.dy[row] + i);
      load(h, n.x[row] + i);
      load(w, n.w + i);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        g[k] *= w[k];
        h[k] = (h[k] - mean) * rstd;
      }
    };
    for (int64_t i = begin; i < n.width; i += step) {
      loadBoth(i);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        sumG += g[k];
        sumGh += g[k] * h[k];
      }
    }
    S meanG = 0;
    if constexpr (kCentred) meanG = group.template reduce<SumOf>(sumG) / size;
    const S meanGh = group.template reduce<SumOf>(sumGh) / size;
    for (int64_t i = begin; i < n.width; i += step) {
      loadBoth(i);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) g[k] = rstd * (g[k] - meanG - h[k] * meanGh);
      store(n.dx[row] + i, g);
    }
  }
}

constexpr int kColumnRows = 8;  // rows of a block's threads, a warp each

// The weights' gradients: a block sums kWarp * kWidth columns over one part of the rows. partial[part][array][column].
template <bool kCentred, int kWidth, class T, class W>
__global__ void __launch_bounds__(kGroupThreads) normGradColumns(NormGrad<T, W> n, double* partial) {
  constexpr int kArrays = kCentred ? 2 : 1;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t column = (int64_t{blockIdx.x} * kWarp + lane) * kWidth;
  const int64_t begin = partBegin(n.rows, blockIdx.y, gridDim.y), end = partBegin(n.rows, blockIdx.y + 1, gridDim.y);
  double sums[kArrays][kWidth] = {};
  if (column < n.width) {
    for (int64_t row = begin + warp; row < end; row += kColumnRows) {
      double d[kWidth], h[kWidth];
      double mean = 0;
      if constexpr (kCentred) mean = static_cast<double>(*n.mean[row]);
      const double rstd = static_cast<double>(*n.rstd[row]);
      load(d, n.dy[row] + column);
      load(h, n.x[row] + column);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        sums[0][k] += d[k] * ((h[k] - mean) * rstd);
        if constexpr (kCentred) sums[1][k] += d[k];
      }
    }
  }
  MESHWORK_SHARED_ARRAY(double, tile, [kColumnRows][kWarp * kWidth]);
#pragma unroll
  for (int a = 0; a < kArrays; ++a) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kWidth; ++k) tile[warp][lane * kWidth + k] = sums[a][k];
    __syncthreads();
    for (int c = threadIdx.x; c < kWarp * kWidth; c += kGroupThreads) {
      const int64_t at = int64_t{blockIdx.x} * kWarp * kWidth + c;
      double total = tile[0][c];
      for (int r = 1; r < kColumnRows; ++r) total += tile[r][c];
      if (at < n.width) partial[(int64_t{blockIdx.y} * kArrays + a) * n.width + at] = total;
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kGroupThreads)
    addColumnParts(S* dw, S* db, const double* partial, int64_t width, int arrays, int parts) {
  const int64_t i = int64_t{blockIdx.x} * kGroupThreads + threadIdx.x, values = width * arrays;
  if (i >= values) return;
  double total = 0;
  for (int part = 0; part < parts; ++part) total += partial[part * values + i];
  S* to = i < width ? dw + i : db + (i - width);
  *to = static_cast<S>(total);
}

// ---- dtypes ----

// f(Type<T>(), Type<W>()) for x's and the weights' storage.
template <class F>
void withTypes(DType x, DType w, const F& f) {
  withFloat(x, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) == 2) {
      if (w == DType::f32) return f(type, Type<float>());
    }
    f(type, type);
  });
}

template <bool kCentred>
void runNorm(const Call& call) {
  const Operand &x = call.in[0], &w = call.in[1], &y = call.out[0];
  const int64_t rows = x.dim(0), width = x.dim(1);
  withTypes(x.view->dtype, w.view->dtype, [&](auto type, auto weightType) {
    using T = typename decltype(type)::type;
    using W = typename decltype(weightType)::type;
    using S = Compute<T>;
    const Operand& b = call.in[kCentred ? 2 : 1];
    Norm<T, W> n{rowsOf<T>(y),
                 rowsOf<const T>(x),
                 w.as<W>(),
                 b.as<W>(),
                 rowsOf<S>(call.out[1]),
                 rowsOf<S>(call.out[kCentred ? 2 : 1]),
                 rows,
                 width,
                 static_cast<S>(call.floatAttr(0))};
    withBool(takesBlock(width * dtypeSize(x.view->dtype)), [&](auto block) {
      const bool aligned = wideRows(x) && wideRows(y) && alignedTo(w.data, 16) && alignedTo(b.data, 16);
      withBool(aligned, [&](auto wide) {
        constexpr int kWidth = wide ? kWide<T> : 1;
        launchGroups<block>(deviceOf(call), rows, normRows<kCentred, kWidth, block, T, W>, n);
      });
    });
  });
}

template <bool kCentred, int kWidth, class T, class W>
void gradOfWeights(const Call& call, const NormGrad<T, W>& n) {
  using S = Compute<T>;
  constexpr int kArrays = kCentred ? 2 : 1;
  Device& device = deviceOf(call);
  const int64_t values = kArrays * n.width;
  const int parts = partsOf(n.rows, 64, 256, values * static_cast<int64_t>(sizeof(double)));
  auto* partial = reinterpret_cast<double*>(device.workspace);
  const auto tiles = static_cast<unsigned>((n.width + kWarp * kWidth - 1) / (kWarp * kWidth));
  launch(device, dim3(tiles, static_cast<unsigned>(parts)), kGroupThreads, 0, normGradColumns<kCentred, kWidth, T, W>,
         n, partial);
  launch(device, static_cast<unsigned>((values + kGroupThreads - 1) / kGroupThreads), kGroupThreads, 0,
         addColumnParts<S>, call.out[1].as<S>(), call.out[kCentred ? 2 : 1].as<S>(), partial, n.width, kArrays, parts);
}

template <bool kCentred>
void runNormGrad(const Call& call) {
  const Operand &dy = call.in[0], &x = call.in[1], &w = call.in[2], &dx = call.out[0];
  const int64_t rows = x.dim(0), width = x.dim(1);
  if (width == 0) return;
  withTypes(x.view->dtype, w.view->dtype, [&](auto type, auto weightType) {
    using T = typename decltype(type)::type;
    using W = typename decltype(weightType)::type;
    using S = Compute<T>;
    const NormGrad<T, W> n{rowsOf<T>(dx),
                           rowsOf<const T>(dy),
                           rowsOf<const T>(x),
                           w.as<W>(),
                           rowsOf<const S>(call.in[3]),
                           rowsOf<const S>(call.in[kCentred ? 4 : 3]),
                           rows,
                           width};
    withBool(wideRows(x) && wideRows(dy) && wideRows(dx) && alignedTo(w.data, 16), [&](auto wide) {
      constexpr int kWidth = wide ? kWide<T> : 1;
      // Before dx, which may be the memory of dy or x.
      gradOfWeights<kCentred, kWidth>(call, n);
      withBool(takesBlock(width * dtypeSize(x.view->dtype)), [&](auto block) {
        launchGroups<block>(deviceOf(call), rows, normGradRows<kCentred, kWidth, block, T, W>, n);
      });
    });
  });
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(norm, {Op::layer_norm, checkLayerNorm, runNorm<true>},
                      {Op::layer_norm_grad, checkLayerNormGrad, runNormGrad<true>},
                      {Op::rms_norm, checkRmsNorm, runNorm<false>},
                      {Op::rms_norm_grad, checkRmsNormGrad, runNormGrad<false>})
