// Work on rows that lie expert after expert: products with a matrix each, gates, and the weighted sum of a token's
// rows.
#include "backend/checks/experts.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/kernels/lanes.h"
#include "backend/cpu/simd_math.h"
#include "runtime/pool.h"

namespace meshwork::MESHWORK_ISA {

extern const KernelList matmulKernels;

namespace {

constexpr int64_t kTask = 16384;  // elements

// The rows of group g: `first` is moved on by them. Counts may be anything.
struct Groups {
  const int32_t* counts;
  int64_t groups, rows;

  Groups(const Operand& operand, int64_t available)
      : counts(operand.as<int32_t>()), groups(operand.dim(0)), rows(available) {}

  int64_t size(int64_t group, int64_t first) const {
    return std::min<int64_t>(std::max(counts[group], 0), rows - first);
  }
  int64_t total() const {
    int64_t sum = 0;
    for (int64_t g = 0; g < groups; ++g) sum += size(g, sum);
    return sum;
  }
};

// f(begin, end) for parts of [begin, end) rows of this width.
template <class F>
void forRows(const Call& call, int64_t begin, int64_t end, int64_t width, const F& f) {
  const int64_t perTask = std::max<int64_t>(1, kTask / std::max<int64_t>(1, width));
  call.pool->run((end - begin + perTask - 1) / perTask, [&](int64_t task, int) {
    const int64_t first = begin + task * perTask;
    f(first, std::min(end, first + perTask));
  });
}

void zeroRows(const Call& call, const Operand& y, int64_t begin, int64_t end) {
  const int64_t size = dtypeSize(y.view->dtype);
  const auto bytes = static_cast<size_t>(y.dim(1) * size);
  if (bytes == 0 || begin >= end) return;
  forRows(call, begin, end, y.dim(1), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) std::memset(y.data + r * y.stride(0) * size, 0, bytes);
  });
}

// ---- products: one matmul per group ----

struct Matrix {
  View view;
  std::byte* data;
  // `rows` x `columns` from the memory of an operand, `at` elements behind its first.
  Matrix(const Operand& from, int64_t at, int64_t rows, int64_t columns, int64_t rowStride, int64_t columnStride)
      : data(from.data + at * dtypeSize(from.view->dtype)) {
    view.dtype = from.view->dtype;
    view.rank = 3;
    view.dims[0] = 1, view.dims[1] = rows, view.dims[2] = columns;
    view.strides[0] = 0, view.strides[1] = rowStride, view.strides[2] = columnStride;
  }
};

void multiply(const Call& call, Matrix a, Matrix b, Matrix d) {
  const Operand in[] = {{a.data, &a.view}, {b.data, &b.view}};
  const Operand out[] = {{d.data, &d.view}};
  const int32_t attrs[attr::matmul::count_] = {};
  const double one = 1;
  Call product;
  product.in = in;
  product.out = out;
  product.inputs = 2;
  product.outputs = 1;
  product.attrs = attrs;
  product.attrCount = attr::matmul::count_;
  product.floats = &one;
  product.floatCount = 1;
  product.pool = call.pool;
  matmulKernels.kernels[0].run(product);
}

void runGroupedMatmul(const Call& call) {
  const Operand &x = call.in[0], &w = call.in[2], &y = call.out[0];
  const int64_t start = call.tableAttr(attr::grouped_matmul::start);
  const Groups groups(call.in[1], x.dim(0));
  int64_t first = 0;
  for (int64_t g = 0; g < groups.groups; ++g) {
    const int64_t rows = groups.size(g, first), e = g - start;
    if (rows > 0 && e >= 0 && e < w.dim(0)) {
      multiply(call, Matrix(x, first * x.stride(0), rows, x.dim(1), x.stride(0), x.stride(1)),
               Matrix(w, e * w.stride(0), w.dim(1), w.dim(2), w.stride(1), w.stride(2)),
               Matrix(y, first * y.stride(0), rows, y.dim(1), y.stride(0), y.stride(1)));
    } else {
      zeroRows(call, y, first, first + rows);
    }
    first += rows;
  }
  zeroRows(call, y, first, y.dim(0));
}

void runGroupedMatmulGrad(const Call& call) {
  const Operand &a = call.in[0], &b = call.in[1], &d = call.out[0];
  const int64_t start = call.tableAttr(attr::grouped_matmul_grad::start);
  const Groups groups(call.in[2], a.dim(0));
  const auto product = [&](int64_t e, int64_t first, int64_t rows) {
    multiply(call, Matrix(a, first * a.stride(0), a.dim(1), rows, a.stride(1), a.stride(0)),
             Matrix(b, first * b.stride(0), rows, b.dim(1), b.stride(0), b.stride(1)),
             Matrix(d, e * d.stride(0), d.dim(1), d.dim(2), d.stride(1), d.stride(2)));
  };
  // Experts that no group belongs to get zeros as well.
  for (int64_t e = 0; e < d.dim(0); ++e) {
    if (e + start < 0 || e + start >= groups.groups) product(e, 0, 0);
  }
  int64_t first = 0;
  for (int64_t g = 0; g < groups.groups; ++g) {
    const int64_t rows = groups.size(g, first), e = g - start;
    if (e >= 0 && e < d.dim(0)) product(e, first, rows);
    first += rows;
  }
}

// ---- gates ----

struct Silu {
  template <class V>
  static MESHWORK_INLINE V value(V x) {
    return silu(x);
  }
  template <class V>
  static MESHWORK_INLINE V slope(V x) {
    const V c = min(max(x, V{} - 800), V{} + 800);  // infinity times zero would be NaN
    const V s = sigmoid(x);
    return s + c * (s * (1 - s));
  }
};
struct GeluTanh {
  template <class V>
  static MESHWORK_INLINE V value(V x) {
    return gelu(x);
  }
  template <class V>
  static MESHWORK_INLINE V slope(V x) {
    using T = std::remove_cvref_t<decltype(x[0])>;
    const V c = min(max(x, V{} - 30), V{} + 30);
    const V s = sigmoid(x * (T(1.5957691216057308) + T(0.07135481627260024) * (x * x)));
    return s + c * (s * (1 - s)) * (T(1.5957691216057308) + T(0.21406444881780073) * (c * c));
  }
};
struct GeluErf {
  template <class V>
  static MESHWORK_INLINE V value(V x) {
    using T = std::remove_cvref_t<decltype(x[0])>;
    return x * (T(0.5) * (1 + erf(x * T(0.70710678118654752))));
  }
  template <class V>
  static MESHWORK_INLINE V slope(V x) {
    using T = std::remove_cvref_t<decltype(x[0])>;
    const V c = min(max(x, V{} - 30), V{} + 30);
    return T(0.5) * (1 + erf(x * T(0.70710678118654752))) + c * (exp(c * c * T(-0.5)) * T(0.39894228040143268));
  }
};
struct Relu {
  template <class V>
  static MESHWORK_INLINE V value(V x) {
    return x < 0 ? V{} : x;
  }
  template <class V>
  static MESHWORK_INLINE V slope(V x) {
    return x > 0 ? V{} + 1 : V{};
  }
};

template <class T>
T* rowOf(const Operand& operand, int64_t row) {
  return operand.as<T>() + row * operand.stride(0);
}

template <class T, class Act>
void gate(const Call& call) {
  using A = Compute<T>;
  const Operand &a = call.in[0], &b = call.in[1], &y = call.out[0];
  const int64_t width = a.dim(1), rows = Groups(call.in[2], a.dim(0)).total();
  forRows(call, 0, rows, width, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const T *left = rowOf<T>(a, r), *right = rowOf<T>(b, r);
      T* to = rowOf<T>(y, r);
      forVectors<A>(width, [&](int64_t i, int n) {
        storeSome(to + i, Act::value(loadSome(left + i, n)) * loadSome(right + i, n), n);
      });
    }
  });
  zeroRows(call, y, rows, y.dim(0));
}

template <class T, class Act>
void gateGrad(const Call& call) {
  using A = Compute<T>;
  const Operand &a = call.in[0], &b = call.in[1], &dy = call.in[3], &da = call.out[0], &db = call.out[1];
  const int64_t width = a.dim(1), rows = Groups(call.in[2], a.dim(0)).total();
  forRows(call, 0, rows, width, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      forVectors<A>(width, [&](int64_t i, int n) {
        const Vec<A> left = loadSome(rowOf<T>(a, r) + i, n), right = loadSome(rowOf<T>(b, r) + i, n);
        const Vec<A> d = loadSome(rowOf<T>(dy, r) + i, n);
        storeSome(rowOf<T>(da, r) + i, d * right * Act::slope(left), n);
        storeSome(rowOf<T>(db, r) + i, d * Act::value(left), n);
      });
    }
  });
  zeroRows(call, da, rows, da.dim(0));
  zeroRows(call, db, rows, db.dim(0));
}

template <class T, class Act>
struct Gate {
  static void run(const Call& call) { gate<T, Act>(call); }
};
template <class T, class Act>
struct GateGrad {
  static void run(const Call& call) { gateGrad<T, Act>(call); }
};

template <template <class, class> class Kernel, class T>
void runActivation(const Call& call) {
  switch (call.attrs[0]) {
    case 0:
      return Kernel<T, Silu>::run(call);
    case 1:
      return Kernel<T, GeluTanh>::run(call);
    case 2:
      return Kernel<T, GeluErf>::run(call);
    default:
      return Kernel<T, Relu>::run(call);
  }
}

template <template <class, class> class Kernel>
void runTyped(const Call& call) {
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return runActivation<Kernel, double>(call);
    case DType::bf16:
      return runActivation<Kernel, bf16>(call);
    case DType::f16:
      return runActivation<Kernel, f16>(call);
    default:
      return runActivation<Kernel, float>(call);
  }
}

void runGate(const Call& call) { runTyped<Gate>(call); }
void runGateGrad(const Call& call) { runTyped<GateGrad>(call); }

// ---- sums over a token's choices ----

template <class T>
void combine(const Call& call) {
  using A = Compute<T>;
  const Operand &x = call.in[0], &weights = call.in[1], &y = call.out[0];
  const int64_t choices = x.dim(1), width = x.dim(2);
  forRows(call, 0, x.dim(0), width * choices, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const T *rows = rowOf<T>(x, r), *weight = weights.as<T>() + r * choices;
      T* to = rowOf<T>(y, r);
      forVectors<A>(width, [&](int64_t i, int n) {
        Vec<A> sum = {};
        for (int64_t j = 0; j < choices; ++j) {
          sum = sum + loadSome(rows + j * x.stride(1) + i, n) * static_cast<A>(widenOne(weight[j]));
        }
        storeSome(to + i, sum, n);
      });
    }
  });
}

template <class T>
void combineGrad(const Call& call) {
  const Operand &x = call.in[0], &dy = call.in[1], &weights = call.out[0];
  const int64_t choices = x.dim(1), width = x.dim(2);
  forRows(call, 0, x.dim(0), width * choices, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      for (int64_t j = 0; j < choices; ++j) {
        const T *row = rowOf<T>(x, r) + j * x.stride(1), *d = rowOf<T>(dy, r);
        Accumulator<double, SumOf> sum(0);
        sum.addVectors(width,
                       [&](int64_t i, int n) { return loadSomeAs<double>(row + i, n) * loadSomeAs<double>(d + i, n); });
        weights.as<T>()[r * choices + j] = narrowOne<T>(static_cast<Compute<T>>(sum.total()));
      }
    }
  });
}

void runCombine(const Call& call) {
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return combine<double>(call);
    case DType::bf16:
      return combine<bf16>(call);
    case DType::f16:
      return combine<f16>(call);
    default:
      return combine<float>(call);
  }
}

void runCombineGrad(const Call& call) {
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return combineGrad<double>(call);
    case DType::bf16:
      return combineGrad<bf16>(call);
    case DType::f16:
      return combineGrad<f16>(call);
    default:
      return combineGrad<float>(call);
  }
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(experts, {Op::grouped_matmul, checkGroupedMatmul, runGroupedMatmul},
                 {Op::grouped_matmul_grad, checkGroupedMatmulGrad, runGroupedMatmulGrad},
                 {Op::expert_gate, checkExpertGate, runGate}, {Op::expert_gate_grad, checkExpertGateGrad, runGateGrad},
                 {Op::expert_combine, checkExpertCombine, runCombine},
                 {Op::expert_combine_grad, checkExpertCombineGrad, runCombineGrad})
