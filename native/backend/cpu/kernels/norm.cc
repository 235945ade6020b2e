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

// dw += d (x - mean) rstd and db += d in float64, for n columns.
template <bool kCentred, class V>
MESHWORK_INLINE void addToColumns(V d, V x, double mean, double rstd, double* dw, double* db, int n) {
  constexpr int lanes = kLanes<double>;
  for (int k = 0; k * lanes < n; ++k) {
    const int m = std::min(n - k * lanes, lanes);
    const F64 wide = partOf(d, k), h = (partOf(x, k) - mean) * rstd;
    double *dwPart = dw + k * lanes, *dbPart = db + k * lanes;
    storeSome(dwPart, loadSome(dwPart, m) + wide * h, m);
    if constexpr (kCentred) storeSome(dbPart, loadSome(dbPart, m) + wide, m);
  }
}

// Adds a row's part of dw and db, and writes its dx. With h = (x - mean) rstd and g = dy w:
// dx = rstd (g - mean(g) - h mean(g h)), without mean(g) where nothing was centred.
template <class T, class W, bool kCentred>
void normGradRow(const Call& call, int64_t row, double* dw, double* db) {
  using S = Compute<T>;
  using At = Operands<kCentred>;
  const int64_t width = call.in[1].dim(1);
  const double size = static_cast<double>(width);
  const T *dy = rowOf<T>(call.in[0], row), *x = rowOf<T>(call.in[1], row);
  const W* w = call.in[2].as<W>();
  const S rstd = *rowOf<S>(call.in[At::dRstd], row);
  S mean = 0;
  if constexpr (kCentred) mean = *rowOf<S>(call.in[At::dMean], row);
  double sumG = 0;
  if constexpr (kCentred) {
    RowSum<S> sum;
    sum.addVectors(width, [=](int64_t i, int n) { return loadSome(dy + i, n) * loadSome(w + i, n); });
    sumG = sum.total();
  }
  RowSum<S> sumGh;
  sumGh.addVectors(width, [=](int64_t i, int n) {
    const Vec<S> d = loadSome(dy + i, n), v = loadSome(x + i, n);
    addToColumns<kCentred>(d, v, static_cast<double>(mean), static_cast<double>(rstd), dw + i, db + i, n);
    return d * loadSome(w + i, n) * ((v - mean) * rstd);
  });
  const S meanG = static_cast<S>(sumG / size), meanGh = static_cast<S>(sumGh.total() / size);
  T* dx = rowOf<T>(call.out[0], row);
  forVectors<S>(width, [&](int64_t i, int n) {
    const Vec<S> g = loadSome(dy + i, n) * loadSome(w + i, n), h = (loadSome(x + i, n) - mean) * rstd;
    storeSome(dx + i, rstd * (kCentred ? g - meanG - h * meanGh : g - h * meanGh), n);
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
    for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; ++row) {
      normGradRow<T, W, kCentred>(call, row, dw, dw + width);
    }
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
