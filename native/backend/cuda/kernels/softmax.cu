// Softmax of rows, and its gradient.
#include "backend/checks/softmax.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/exp_rows.h"

namespace meshwork::cuda {
namespace {

// y may be x: a thread writes only what it alone has read.
template <class T, int kWidth, bool kBlock>
__global__ void __launch_bounds__(kGroupThreads) softmaxRows(Rows<T> y, Rows<T> x, int64_t rows, int64_t width) {
  using A = Compute<T>;
  const Group<kBlock> group;
  for (int64_t row = group.first(); row < rows; row += group.step()) {
    const ExpSum<A> total = sumExpRow<kWidth>(group, x[row], width);
    const A scale = A(1) / total.sum;
    for (int64_t i = int64_t{kWidth} * group.lane(); i < width; i += kWidth * group.kSize) {
      A v[kWidth];
      load(v, x[row] + i);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) v[k] = expOf(v[k] - total.max) * scale;
      store(y[row] + i, v);
    }
  }
}

template <class T, int kWidth, bool kBlock>
__global__ void __launch_bounds__(kGroupThreads)
    softmaxGradRows(Rows<T> dx, Rows<T> y, Rows<T> dy, int64_t rows, int64_t width) {
  using A = Compute<T>;
  const Group<kBlock> group;
  for (int64_t row = group.first(); row < rows; row += group.step()) {
    A sum = 0;
    for (int64_t i = int64_t{kWidth} * group.lane(); i < width; i += kWidth * group.kSize) {
      A p[kWidth], d[kWidth];
      load(p, y[row] + i);
      load(d, dy[row] + i);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum += p[k] * d[k];
    }
    const A dot = group.template reduce<SumOf>(sum);
    for (int64_t i = int64_t{kWidth} * group.lane(); i < width; i += kWidth * group.kSize) {
      A p[kWidth], d[kWidth];
      load(p, y[row] + i);
      load(d, dy[row] + i);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) p[k] *= d[k] - dot;
      store(dx[row] + i, p);
    }
  }
}

void runSoftmax(const Call& call) {
  const Operand &x = call.in[0], &y = call.out[0];
  const int64_t rows = x.dim(0), width = x.dim(1);
  if (rows == 0 || width == 0) return;
  withFloat(x.view->dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    withBool(takesBlock(width * dtypeSize(x.view->dtype)), [&](auto block) {
      withBool(wideRows(x) && wideRows(y), [&](auto wide) {
        constexpr int kWidth = wide ? kWide<T> : 1;
        launchGroups<block>(deviceOf(call), rows, softmaxRows<T, kWidth, block>, rowsOf<T>(y), rowsOf<T>(x), rows,
                            width);
      });
    });
  });
}

void runSoftmaxGrad(const Call& call) {
  const Operand &y = call.in[0], &dy = call.in[1], &dx = call.out[0];
  const int64_t rows = y.dim(0), width = y.dim(1);
  if (rows == 0 || width == 0) return;
  withFloat(y.view->dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    withBool(takesBlock(width * dtypeSize(y.view->dtype)), [&](auto block) {
      withBool(wideRows(y) && wideRows(dy) && wideRows(dx), [&](auto wide) {
        constexpr int kWidth = wide ? kWide<T> : 1;
        launchGroups<block>(deviceOf(call), rows, softmaxGradRows<T, kWidth, block>, rowsOf<T>(dx), rowsOf<T>(y),
                            rowsOf<T>(dy), rows, width);
      });
    });
  });
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(softmax, {Op::softmax, checkSoftmax, runSoftmax},
                      {Op::softmax_grad, checkSoftmaxGrad, runSoftmaxGrad})
