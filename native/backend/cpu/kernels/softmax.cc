// Softmax of rows, and its gradient.
#include "backend/checks/softmax.h"

#include "backend/cpu/kernels/exp_rows.h"
#include "backend/cpu/kernels/row_tasks.h"

namespace meshwork::MESHWORK_ISA {
namespace {

// The exponentials are kept until their sum is known: in the result where that is as wide as they are, else in the
// thread's workspace as far as that goes. What is not kept is computed again.
template <class T>
void softmax(const Call& call) {
  using A = Compute<T>;
  const int64_t width = call.in[0].dim(1);
  const int64_t kept =
      __is_same(T, A) ? width : std::min(width, static_cast<int64_t>(Pool::kWorkspaceBytes / sizeof(A)));
  forEachRow(call, [&](int64_t row, int thread) {
    const T* x = rowOf<T>(call.in[0], row);
    T* y = rowOf<T>(call.out[0], row);
    A* e = reinterpret_cast<A*>(__is_same(T, A) ? reinterpret_cast<std::byte*>(y) : call.pool->workspace(thread));
    const A max = rowMax(x, width);
    RowSum<A> sum;
    sum.addVectors(kept, [&](int64_t i, int n) {
      const Vec<A> value = expRow(loadSome(x + i, n) - max);
      storeSome(e + i, value, n);
      return value;
    });
    const auto again = [&](int64_t i, int n) { return expRow(loadSome(x + kept + i, n) - max); };
    sum.addVectors(width - kept, again);
    const A scale = static_cast<A>(1 / sum.total());
    forVectors<A>(kept, [&](int64_t i, int n) { storeSome(y + i, loadSome(e + i, n) * scale, n); });
    forVectors<A>(width - kept, [&](int64_t i, int n) { storeSome(y + kept + i, again(i, n) * scale, n); });
  });
}

template <class T>
void softmaxGrad(const Call& call) {
  using A = Compute<T>;
  const int64_t width = call.in[0].dim(1);
  forEachRow(call, [&](int64_t row, int) {
    const T *y = rowOf<T>(call.in[0], row), *dy = rowOf<T>(call.in[1], row);
    T* dx = rowOf<T>(call.out[0], row);
    RowSum<A> sum;
    sum.addVectors(width, [&](int64_t i, int n) { return loadSome(y + i, n) * loadSome(dy + i, n); });
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
