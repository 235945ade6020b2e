// Work on rows that lie expert after expert: products with a matrix each, gates, and the weighted sum of a token's
// rows. How many rows a group has is data, so that grids are as large as any counts need and blocks find what is
// theirs.
#include "backend/checks/experts.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/groups.h"

// clang-format off: it includes nothing, so it comes after what declares CUDA's words
#include "backend/cuda/elementwise/functions.h"
// clang-format on

namespace meshwork::cuda {
namespace {

// The rows of the groups, one after the other. Counts may be anything.
struct GroupRows {
  const int32_t* counts;
  int64_t groups, rows;

  __device__ __forceinline__ int64_t size(int64_t group, int64_t first) const {
    return min(max(int64_t{counts[group]}, int64_t{0}), rows - first);
  }
  __device__ __forceinline__ int64_t firstOf(int64_t group) const {
    int64_t first = 0;
    for (int64_t g = 0; g < group; ++g) first += size(g, first);
    return first;
  }
};

GroupRows groupRows(const Operand& counts, int64_t rows) { return {counts.as<int32_t>(), counts.dim(0), rows}; }

// ---- products: tiles of kTile x kTile, 4 x 4 a thread, kDepth deep in shared memory ----

constexpr int kTile = 64, kDepth = 16, kEach = 4;

__device__ __forceinline__ float multiplyAdd(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiplyAdd(double a, double b, double c) { return fma(a, b, c); }

// A matrix whose elements outside of its dims are zeros.
template <class T>
struct Matrix {
  const T* data;
  int64_t rows, columns, rowStride, columnStride;
  __device__ __forceinline__ Compute<T> at(int64_t row, int64_t column) const {
    if (row >= rows || column >= columns) return Compute<T>(0);
    return widen(data[row * rowStride + column * columnStride]);
  }
};

// sums += the tile at (row, column) of a b.
template <class T>
__device__ void multiplyTile(Compute<T> (&sums)[kEach][kEach], const Matrix<T>& a, const Matrix<T>& b, int64_t row,
                             int64_t column) {
  using A = Compute<T>;
  MESHWORK_SHARED_ARRAY(A, tileA, [kDepth][kTile + 1]);
  MESHWORK_SHARED_ARRAY(A, tileB, [kDepth][kTile + 1]);
  const int down = threadIdx.x / (kTile / kEach), across = threadIdx.x % (kTile / kEach);
  for (int64_t k = 0; k < a.columns; k += kDepth) {
    __syncthreads();
    for (int i = threadIdx.x; i < kTile * kDepth; i += kGroupThreads) {
      // Neighbouring threads read neighbouring memory, whichever dim that is.
      const int ka = a.columnStride == 1 ? i % kDepth : i / kTile, ia = a.columnStride == 1 ? i / kDepth : i % kTile;
      const int kb = b.columnStride == 1 ? i / kTile : i % kDepth, jb = b.columnStride == 1 ? i % kTile : i / kDepth;
      tileA[ka][ia] = a.at(row + ia, k + ka);
      tileB[kb][jb] = b.at(k + kb, column + jb);
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      A u[kEach], v[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) u[i] = tileA[d][down + i * (kTile / kEach)];
#pragma unroll
      for (int j = 0; j < kEach; ++j) v[j] = tileB[d][across + j * (kTile / kEach)];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) sums[i][j] = multiplyAdd(u[i], v[j], sums[i][j]);
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void storeTile(T* d, int64_t rowStride, const Compute<T> (&sums)[kEach][kEach], int64_t row,
                                          int64_t column, int64_t rows, int64_t columns) {
  const int down = threadIdx.x / (kTile / kEach), across = threadIdx.x % (kTile / kEach);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int64_t r = row + down + i * (kTile / kEach), c = column + across + j * (kTile / kEach);
      if (r < rows && c < columns) d[r * rowStride + c] = narrow<T>(sums[i][j]);
    }
  }
}

template <class T>
struct GroupedMatmul {
  Rows<const T> x;
  Rows<T> y;
  const T* w;
  int64_t wStrides[3];
  int64_t depth, columns, experts, start;
  GroupRows groups;
};

// A block makes one tile of columns of one tile of rows. Tiles of rows are counted group after group, and the rows
// behind the last are one more. Rows of no group of ours become zeros.
template <class T>
__global__ void __launch_bounds__(kGroupThreads) groupedMatmul(GroupedMatmul<T> m) {
  const int64_t across = (m.columns + kTile - 1) / kTile;
  int64_t tile = blockIdx.x / across, first = 0, size = 0, group = 0;
  for (; group <= m.groups.groups; ++group) {
    size = group < m.groups.groups ? m.groups.size(group, first) : m.groups.rows - first;
    const int64_t tiles = (size + kTile - 1) / kTile;
    if (tile < tiles) break;
    tile -= tiles;
    first += size;
  }
  if (group > m.groups.groups) return;
  Compute<T> sums[kEach][kEach] = {};
  const int64_t expert = group - m.start, row = tile * kTile, column = blockIdx.x % across * kTile;
  if (group < m.groups.groups && expert >= 0 && expert < m.experts) {
    const Matrix<T> a{m.x[first], size, m.depth, m.x.stride, 1};
    const Matrix<T> b{m.w + expert * m.wStrides[0], m.depth, m.columns, m.wStrides[1], m.wStrides[2]};
    multiplyTile(sums, a, b, row, column);
  }
  storeTile(m.y[first], m.y.stride, sums, row, column, size, m.columns);
}

void runGroupedMatmul(const Call& call) {
  const Operand &x = call.in[0], &w = call.in[2], &y = call.out[0];
  if (y.view->count() == 0) return;
  const GroupRows groups = groupRows(call.in[1], x.dim(0));
  withFloat(x.view->dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const GroupedMatmul<T> m{rowsOf<const T>(x),
                             rowsOf<T>(y),
                             w.as<T>(),
                             {w.stride(0), w.stride(1), w.stride(2)},
                             x.dim(1),
                             y.dim(1),
                             w.dim(0),
                             call.tableAttr(attr::grouped_matmul::start),
                             groups};
    const int64_t tiles = (groups.rows / kTile + groups.groups + 1) * ((m.columns + kTile - 1) / kTile);
    launch(deviceOf(call), static_cast<unsigned>(tiles), kGroupThreads, 0, groupedMatmul<T>, m);
  });
}

template <class T>
struct GroupedMatmulGrad {
  Rows<const T> a, b;
  T* d;
  int64_t expertStride, rowStride;
  int64_t rows, columns, start;
  GroupRows groups;
};

template <class T>
__global__ void __launch_bounds__(kGroupThreads) groupedMatmulGrad(GroupedMatmulGrad<T> m) {
  const int64_t across = (m.columns + kTile - 1) / kTile, down = (m.rows + kTile - 1) / kTile;
  const int64_t tile = blockIdx.x / across, expert = tile / down, group = expert + m.start;
  const int64_t row = tile % down * kTile, column = blockIdx.x % across * kTile;
  Compute<T> sums[kEach][kEach] = {};
  if (group >= 0 && group < m.groups.groups) {
    const int64_t first = m.groups.firstOf(group), size = m.groups.size(group, first);
    const Matrix<T> a{m.a[first], m.rows, size, 1, m.a.stride}, b{m.b[first], size, m.columns, m.b.stride, 1};
    multiplyTile(sums, a, b, row, column);
  }
  storeTile(m.d + expert * m.expertStride, m.rowStride, sums, row, column, m.rows, m.columns);
}

void runGroupedMatmulGrad(const Call& call) {
  const Operand &a = call.in[0], &b = call.in[1], &d = call.out[0];
  if (d.view->count() == 0) return;
  withFloat(a.view->dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const GroupedMatmulGrad<T> m{rowsOf<const T>(a),
                                 rowsOf<const T>(b),
                                 d.as<T>(),
                                 d.stride(0),
                                 d.stride(1),
                                 d.dim(1),
                                 d.dim(2),
                                 call.tableAttr(attr::grouped_matmul_grad::start),
                                 groupRows(call.in[2], a.dim(0))};
    const int64_t tiles = d.dim(0) * ((m.rows + kTile - 1) / kTile) * ((m.columns + kTile - 1) / kTile);
    launch(deviceOf(call), static_cast<unsigned>(tiles), kGroupThreads, 0, groupedMatmulGrad<T>, m);
  });
}

// ---- gates: act(a) b ----

template <class A>
__device__ __forceinline__ A activation(int kind, A x) {
  namespace f = meshwork_fused;
  if (kind == 0) return f::op_silu(x);
  if (kind == 1) return f::op_gelu(x);
  if (kind == 2) return x * (A(0.5) * (A(1) + f::op_erf(x * A(0.70710678118654752))));
  return x < A(0) ? A(0) : x;
}

// dy times the derivative.
template <class A>
__device__ __forceinline__ A activationGrad(int kind, A x, A dy) {
  namespace f = meshwork_fused;
  if (kind == 0) return f::op_silu_grad(x, dy);
  if (kind == 1) return f::op_gelu_grad(x, dy);
  if (kind == 2) {
    const A c = f::clampTo(x, A(30));
    return dy * (A(0.5) * (A(1) + f::op_erf(x * A(0.70710678118654752))) +
                 c * (f::op_exp(c * c * A(-0.5)) * A(0.39894228040143268)));
  }
  return x > A(0) ? dy : A(0);
}

template <class T>
struct Gate {
  Rows<const T> a, b, dy;
  Rows<T> y, db;  // y: da where kGrad
  GroupRows groups;
  int64_t width;
  int kind;
};

template <bool kGrad, int kWidth, bool kBlock, class T>
__global__ void __launch_bounds__(kGroupThreads) gateRows(Gate<T> g) {
  using A = Compute<T>;
  const Group<kBlock> group;
  const int64_t total = g.groups.firstOf(g.groups.groups);
  for (int64_t row = group.first(); row < g.groups.rows; row += group.step()) {
    for (int64_t i = int64_t{kWidth} * group.lane(); i < g.width; i += kWidth * group.kSize) {
      A a[kWidth] = {}, b[kWidth] = {};
      if (row < total) {
        load(a, g.a[row] + i);
        load(b, g.b[row] + i);
        A d[kWidth];
        if constexpr (kGrad) load(d, g.dy[row] + i);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          if constexpr (kGrad) {
            const A left = a[k];
            a[k] = activationGrad(g.kind, left, d[k] * b[k]);
            b[k] = d[k] * activation(g.kind, left);
          } else {
            a[k] = activation(g.kind, a[k]) * b[k];
          }
        }
      }
      store(g.y[row] + i, a);
      if constexpr (kGrad) store(g.db[row] + i, b);
    }
  }
}

template <bool kGrad>
void runGate(const Call& call) {
  const Operand &a = call.in[0], &b = call.in[1], &y = call.out[0];
  const Operand &dy = kGrad ? call.in[3] : a, &db = kGrad ? call.out[1] : y;
  if (a.view->count() == 0) return;
  withFloat(a.view->dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const Gate<T> g{rowsOf<const T>(a), rowsOf<const T>(b), rowsOf<const T>(dy),
                    rowsOf<T>(y),       rowsOf<T>(db),      groupRows(call.in[2], a.dim(0)),
                    a.dim(1),           call.attrs[0]};
    const bool aligned = wideRows(a) && wideRows(b) && wideRows(dy) && wideRows(y) && wideRows(db);
    withBool(takesBlock(g.width * static_cast<int64_t>(sizeof(T))), [&](auto block) {
      withBool(aligned, [&](auto wide) {
        constexpr int kWidth = wide ? kWide<T> : 1;
        launchGroups<block>(deviceOf(call), a.dim(0), gateRows<kGrad, kWidth, block, T>, g);
      });
    });
  });
}

// ---- sums over a token's choices ----

template <class T>
struct Choices {
  const T* x;
  int64_t stride, choiceStride, rows, choices, width;
  __device__ __forceinline__ const T* at(int64_t row, int64_t choice) const {
    return x + row * stride + choice * choiceStride;
  }
};

template <class T>
Choices<T> choicesOf(const Operand& x) {
  return {x.as<T>(), x.stride(0), x.stride(1), x.dim(0), x.dim(1), x.dim(2)};
}

template <class T>
__global__ void __launch_bounds__(kGroupThreads) combineChoices(Rows<T> y, Choices<T> c, const T* weights) {
  using A = Compute<T>;
  const int64_t count = c.rows * c.width, grid = int64_t{gridDim.x} * kGroupThreads;
  for (int64_t at = int64_t{blockIdx.x} * kGroupThreads + threadIdx.x; at < count; at += grid) {
    const int64_t row = at / c.width, i = at - row * c.width;
    A sum = 0;
    for (int64_t j = 0; j < c.choices; ++j) sum += widen(c.at(row, j)[i]) * widen(weights[row * c.choices + j]);
    y[row][i] = narrow<T>(sum);
  }
}

// A warp a weight.
template <class T>
__global__ void __launch_bounds__(kGroupThreads) combineGrad(T* weights, Choices<T> c, Rows<const T> dy) {
  const Group<false> group;
  for (int64_t unit = group.first(); unit < c.rows * c.choices; unit += group.step()) {
    const int64_t row = unit / c.choices;
    const T* x = c.at(row, unit - row * c.choices);
    double sum = 0;
    for (int64_t i = group.lane(); i < c.width; i += kWarp) {
      sum += static_cast<double>(widen(x[i])) * static_cast<double>(widen(dy[row][i]));
    }
    sum = group.reduce<SumOf>(sum);
    if (group.lane() == 0) weights[unit] = narrow<T>(sum);
  }
}

void runCombine(const Call& call) {
  const Operand &x = call.in[0], &weights = call.in[1], &y = call.out[0];
  if (y.view->count() == 0) return;
  withFloat(x.view->dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    Device& device = deviceOf(call);
    launch(device, blocksFor(device, y.view->count(), kGroupThreads, 32), kGroupThreads, 0, combineChoices<T>,
           rowsOf<T>(y), choicesOf<T>(x), weights.as<T>());
  });
}

void runCombineGrad(const Call& call) {
  const Operand &x = call.in[0], &dy = call.in[1], &weights = call.out[0];
  withFloat(x.view->dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launchGroups<false>(deviceOf(call), weights.view->count(), combineGrad<T>, weights.as<T>(), choicesOf<T>(x),
                        rowsOf<const T>(dy));
  });
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(experts, {Op::grouped_matmul, checkGroupedMatmul, runGroupedMatmul},
                      {Op::grouped_matmul_grad, checkGroupedMatmulGrad, runGroupedMatmulGrad},
                      {Op::expert_gate, checkExpertGate, runGate<false>},
                      {Op::expert_gate_grad, checkExpertGateGrad, runGate<true>},
                      {Op::expert_combine, checkExpertCombine, runCombine},
                      {Op::expert_combine_grad, checkExpertCombineGrad, runCombineGrad})
