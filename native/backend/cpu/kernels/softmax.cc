// Softmax of rows, and its gradient.
#include "backend/checks/softmax.h"

#include "backend/cpu/kernels/exp_rows.h"
#include "backend/cpu/kernels/row_tasks.h"

namespace meshwork::MESHWORK_ISA {
namespace {

template <class T>
void softmax(const Call& call) {
  using A = Compute<T>;
  const int64_t width = call.in[0].dim(1);
  forEachRow(call, [&](int64_t row) {
    const T* x = rowOf<T>(call.in[0], row);
    const A max = rowMax(x, width);
    const A scale = static_cast<A>(1 / sumExp(x, width, max));
    mapRow(rowOf<T>(call.out[0], row), x, width, [&](Vec<A> v) { return exp(v - max) * scale; });
  });
}

template <class T>
void softmaxGrad(const Call& call) {
  using A = Compute<T>;
  const int64_t width = call.in[0].dim(1);
  forEachRow(call, [&](int64_t row) {
    const T *y = rowOf<T>(call.in[0], row), *dy = rowOf<T>(call.in[1], row);
    T* dx = rowOf<T>(call.out[0], row);
    Accumulator<double, SumOf> sum(0);
    sum.addVectors(width,
                   [&](int64_t i, int n) { return loadSomeAs<double>(y + i, n) * loadSomeAs<double>(dy + i, n); });
    const A dot = static_cast<A>(sum.total());
    forVectors<A>(width,
                  [&](int64_t i, int n) { storeSome(dx + i, loadSome(y + i, n) * (loadSome(dy + i, n) - dot), n); });
  });
}

void runSoftmax(const Call& call) {
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return softmax<double>(call);
    case DType::bf16:
      return softmax<bf16>(call);
    case DType::f16:
      return softmax<f16>(call);
    default:
      return softmax<float>(call);
  }
}

void runSoftmaxGrad(const Call& call) {
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return softmaxGrad<double>(call);
    case DType::bf16:
      return softmaxGrad<bf16>(call);
    case DType::f16:
      return softmaxGrad<f16>(call);
    default:
      return softmaxGrad<float>(call);
  }
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(softmax, {Op::softmax, checkSoftmax, runSoftmax}, {Op::softmax_grad, checkSoftmaxGrad, runSoftmaxGrad})
