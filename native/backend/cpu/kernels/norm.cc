// Layer norm and RMS norm of rows, and their gradients. Statistics are summed in float64 (see RowSum); so are the
// gradients of the weights, in a number of row parts that depends on the dims only.
#include "backend/checks/norm.h"

#include <algorithm>

#include "backend/cpu/kernels/lanes.h"
#include "backend/cpu/kernels/row_tasks.h"

namespace meshwork::MESHWORK_ISA {
namespace {

constexpr int64_t kMaxParts = 32;  // of the rows, in a gradient
constexpr int64_t kRowsPerPart = 8;

// The names of the operands, with (layer norm) and without (RMS norm) a mean.
template <bool kCentred>
struct Operands;
template <>
struct Operands<true> {
  static constexpr int yMean = 1, yRstd = 2, dMean = 3, dRstd = 4;
  static constexpr int eps = attr::layer_norm::eps;
};
template <>
struct Operands<false> {
  static constexpr int yMean = -1, yRstd = 1, dMean = -1, dRstd = 3;
  static constexpr int eps = attr::rms_norm::eps;
};

// ---- forward: T is x's dtype, W the weights', S the statistics' ----

template <class T, class W, bool kCentred>
void normRow(const Call& call, int64_t row) {
  using S = Compute<T>;
  using At = Operands<kCentred>;
  const int64_t width = call.in[0].dim(1);
  const double size = static_cast<double>(std::max<int64_t>(width, 1));
  const T* x = rowOf<T>(call.in[0], row);
  const W* w = call.in[1].as<W>();
  S centre = 0;
  if constexpr (kCentred) {
    const auto load = [x](auto zero, int64_t i, int n) { return loadSomeAs<decltype(zero)>(x + i, n); };
    centre = static_cast<S>(sumRow<S>(width, load) / size);
    *rowOf<S>(call.out[At::yMean], row) = centre;
  }
  const double squares = sumRow<S>(width, [=](auto zero, int64_t i, int n) {
    using A = decltype(zero);
    const Vec<A> v = loadSomeAs<A>(x + i, n) - static_cast<A>(centre);
    return v * v;
  });
  const S rstd = static_cast<S>(1 / __builtin_sqrt(squares / size + call.floatAttr(At::eps)));
  *rowOf<S>(call.out[At::yRstd], row) = rstd;
  T* y = rowOf<T>(call.out[0], row);
  if constexpr (kCentred) {
    const W* b = call.in[2].as<W>();
    forVectors<S>(width, [&](int64_t i, int n) {
      storeSome(y + i, (loadSome(x + i, n) - centre) * rstd * loadSome(w + i, n) + loadSome(b + i, n), n);
    });
  } else {
    forVectors<S>(width,
                  [&](int64_t i, int n) { storeSome(y + i, loadSome(x + i, n) * rstd * loadSome(w + i, n), n); });
  }
}

template <class T, class W, bool kCentred>
void norm(const Call& call) {
  forEachRow(call, [&](int64_t row, int) { normRow<T, W, kCentred>(call, row); });
}

// ---- backward ----

// With h = (x - mean) rstd and g = dy w: dx = rstd (g - mean(g) - h mean(g h)), without mean(g) where nothing was
// centred; dw and db are sums over rows of dy h and of dy.
template <class T, class W, bool kCentred>
struct NormGradRow {
  using S = Compute<T>;
  const T *dy, *x;
  T* dx;
  S mean, rstd, meanG, meanGh;

  void read(const Call& call, int64_t row) {
    using At = Operands<kCentred>;
    dy = rowOf<T>(call.in[0], row), x = rowOf<T>(call.in[1], row), dx = rowOf<T>(call.out[0], row);
    const int64_t width = call.in[1].dim(1);
    const W* w = call.in[2].as<W>();
    rstd = *rowOf<S>(call.in[At::dRstd], row);
    mean = 0;
    if constexpr (kCentred) mean = *rowOf<S>(call.in[At::dMean], row);
    RowSum<S> sumG, sumGh;
    if constexpr (kCentred) {
      sumG.addVectors(width, [&](int64_t i, int n) { return loadSome(dy + i, n) * loadSome(w + i, n); });
    }
    sumGh.addVectors(width, [&](int64_t i, int n) {
      return loadSome(dy + i, n) * loadSome(w + i, n) * ((loadSome(x + i, n) - mean) * rstd);
    });
    meanG = static_cast<S>(sumG.total() / static_cast<double>(width));
    meanGh = static_cast<S>(sumGh.total() / static_cast<double>(width));
  }
};

// Adds the part of kRows rows to dw and db in float64, row by row, and writes their dx.
template <class T, class W, bool kCentred, int kRows>
void normGradRows(const Call& call, int64_t first, double* dw, double* db) {
  using S = Compute<T>;
  constexpr int lanes = kLanes<double>, parts = kLanes<S> / lanes;
  const W* w = call.in[2].as<W>();
  NormGradRow<T, W, kCentred> rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r].read(call, first + r);
  forVectors<S>(call.in[1].dim(1), [&](int64_t i, int n) {
    const Vec<S> weight = loadSome(w + i, n);
    F64 sumW[parts], sumB[parts];
    const auto some = [n](int k) { return std::clamp(n - k * kLanes<double>, 0, int{kLanes<double>}); };
    for (int k = 0; k < parts; ++k) {
      sumW[k] = loadSome(dw + i + k * lanes, some(k));
      if constexpr (kCentred) sumB[k] = loadSome(db + i + k * lanes, some(k));
    }
    for (const auto& row : rows) {
      const Vec<S> d = loadSome(row.dy + i, n), x = loadSome(row.x + i, n);
      for (int k = 0; k < parts; ++k) {
        const F64 wide = partOf(d, k);
        sumW[k] += wide * ((partOf(x, k) - static_cast<double>(row.mean)) * static_cast<double>(row.rstd));
        if constexpr (kCentred) sumB[k] += wide;
      }
      const Vec<S> g = d * weight, h = (x - row.mean) * row.rstd;
      storeSome(row.dx + i, row.rstd * (kCentred ? g - row.meanG - h * row.meanGh : g - h * row.meanGh), n);
    }
    for (int k = 0; k < parts; ++k) {
      storeSome(dw + i + k * lanes, sumW[k], some(k));
      if constexpr (kCentred) storeSome(db + i + k * lanes, sumB[k], some(k));
    }
  });
}

template <class T, class W, bool kCentred>
void normGrad(const Call& call) {
  using S = Compute<T>;
  const int64_t rows = call.in[1].dim(0), width = call.in[1].dim(1);
  if (width == 0) return;
  constexpr int64_t arrays = kCentred ? 2 : 1;
  const int64_t bytes = arrays * width * static_cast<int64_t>(sizeof(double));
  // The check holds the width so that one part fits.
  const int64_t parts = std::max<int64_t>(
      1, std::min({kMaxParts, rows / kRowsPerPart, static_cast<int64_t>(Pool::kWorkspaceBytes) / bytes}));
  double* sums = reinterpret_cast<double*>(call.pool->workspace(0));
  call.pool->run(parts, [&](int64_t part, int) {
    double* dw = sums + part * arrays * width;
    std::memset(dw, 0, static_cast<size_t>(bytes));
    int64_t row = rows * part / parts;
    const int64_t end = rows * (part + 1) / parts;
    for (; row + 4 <= end; row += 4) normGradRows<T, W, kCentred, 4>(call, row, dw, dw + width);
    for (; row < end; ++row) normGradRows<T, W, kCentred, 1>(call, row, dw, dw + width);
  });
  for (int64_t a = 0; a < arrays; ++a) {
    S* out = call.out[1 + a].as<S>();
    forVectors<double>(width, [&](int64_t j, int n) {
      F64 total = loadSome(sums + a * width + j, n);
      for (int64_t part = 1; part < parts; ++part) total += loadSome(sums + (part * arrays + a) * width + j, n);
      n == kLanes<double> ? store(out + j, total) : storePartial(out + j, total, n);
    });
  }
}

// ---- dtypes ----

template <bool kCentred>
void runNorm(const Call& call) {
  const DType x = call.in[0].view->dtype, w = call.in[1].view->dtype;
  if (x == DType::f64) return norm<double, double, kCentred>(call);
  if (x == DType::f32) return norm<float, float, kCentred>(call);
  if (x == DType::f16) {
    return w == DType::f16 ? norm<f16, f16, kCentred>(call) : norm<f16, float, kCentred>(call);
  }
  return w == DType::bf16 ? norm<bf16, bf16, kCentred>(call) : norm<bf16, float, kCentred>(call);
}

template <bool kCentred>
void runNormGrad(const Call& call) {
  const DType x = call.in[1].view->dtype, w = call.in[2].view->dtype;
  if (x == DType::f64) return normGrad<double, double, kCentred>(call);
  if (x == DType::f32) return normGrad<float, float, kCentred>(call);
  if (x == DType::f16) {
    return w == DType::f16 ? normGrad<f16, f16, kCentred>(call) : normGrad<f16, float, kCentred>(call);
  }
  return w == DType::bf16 ? normGrad<bf16, bf16, kCentred>(call) : normGrad<bf16, float, kCentred>(call);
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(norm, {Op::layer_norm, checkLayerNorm, runNorm<true>},
                 {Op::layer_norm_grad, checkLayerNormGrad, runNormGrad<true>},
                 {Op::rms_norm, checkRmsNorm, runNorm<false>},
                 {Op::rms_norm_grad, checkRmsNormGrad, runNormGrad<false>})
