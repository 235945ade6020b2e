// Cross-entropy of rows of logits: whole vocabularies, shards of one, and the gradient.
#include "backend/checks/loss.h"

#include <cstring>

#include "backend/cpu/kernels/exp_rows.h"
#include "backend/cpu/kernels/row_tasks.h"

namespace meshwork::MESHWORK_ISA {
namespace {

template <class A>
MESHWORK_INLINE A& at(const Operand& operand, int64_t row) {
  return *rowOf<A>(operand, row);
}

template <class T>
void crossEntropy(const Call& call) {
  using A = Compute<T>;
  const Operand &logits = call.in[0], &targets = call.in[1], &nll = call.out[0], &lse = call.out[1];
  const int64_t width = logits.dim(1);
  const int32_t ignore = call.attrs[attr::cross_entropy::ignore];
  forEachRow(call, [&](int64_t row, int) {
    const T* x = rowOf<T>(logits, row);
    const A shift = shiftOf(rowMax(x, width));
    const double total = static_cast<double>(shift) + __builtin_log(sumExp(x, width, shift));
    const int32_t target = at<int32_t>(targets, row);
    const bool counts = target != ignore && target >= 0 && target < width;
    at<A>(lse, row) = static_cast<A>(total);
    at<A>(nll, row) = counts ? static_cast<A>(total - static_cast<double>(widenOne(x[target]))) : A(0);
  });
}

template <class T>
void crossEntropyPartial(const Call& call) {
  using A = Compute<T>;
  const Operand &logits = call.in[0], &targets = call.in[1], &max = call.in[2];
  const Operand &sums = call.out[0], &chosen = call.out[1];
  const int64_t width = logits.dim(1), start = call.tableAttr(attr::cross_entropy_partial::start);
  const int32_t ignore = call.attrs[attr::cross_entropy_partial::ignore];
  forEachRow(call, [&](int64_t row, int) {
    const T* x = rowOf<T>(logits, row);
    const int32_t target = at<int32_t>(targets, row);
    const int64_t column = static_cast<int64_t>(target) - start;
    const bool here = target != ignore && column >= 0 && column < width;
    at<A>(sums, row) = static_cast<A>(sumExp(x, width, shiftOf(at<A>(max, row))));
    at<A>(chosen, row) = here ? static_cast<A>(widenOne(x[column])) : A(0);
  });
}

template <class T>
void crossEntropyGrad(const Call& call) {
  using A = Compute<T>;
  const Operand &logits = call.in[0], &targets = call.in[1], &lse = call.in[2], &dnll = call.in[3], &out = call.out[0];
  const int64_t width = logits.dim(1), start = call.tableAttr(attr::cross_entropy_grad::start);
  const int32_t ignore = call.attrs[attr::cross_entropy_grad::ignore];
  forEachRow(call, [&](int64_t row, int) {
    const T* x = rowOf<T>(logits, row);
    T* y = rowOf<T>(out, row);
    const int32_t target = at<int32_t>(targets, row);
    if (target == ignore || target < 0) {
      std::memset(y, 0, static_cast<size_t>(width) * sizeof(T));
      return;
    }
    const int64_t column = static_cast<int64_t>(target) - start;
    const bool here = column >= 0 && column < width;
    const A shift = at<A>(lse, row), scale = at<A>(dnll, row);
    const A hit = here ? (expOne(static_cast<A>(widenOne(x[column])) - shift) - 1) * scale : A(0);
    forVectors<A>(width, [&](int64_t i, int n) { storeSome(y + i, expRow(loadSome(x + i, n) - shift) * scale, n); });
    if (here) y[column] = narrowOne<T>(hit);
  });
}

void runCrossEntropy(const Call& call) {
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return crossEntropy<double>(call);
    case DType::bf16:
      return crossEntropy<bf16>(call);
    case DType::f16:
      return crossEntropy<f16>(call);
    default:
      return crossEntropy<float>(call);
  }
}

void runCrossEntropyPartial(const Call& call) {
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return crossEntropyPartial<double>(call);
    case DType::bf16:
      return crossEntropyPartial<bf16>(call);
    case DType::f16:
      return crossEntropyPartial<f16>(call);
    default:
      return crossEntropyPartial<float>(call);
  }
}

void runCrossEntropyGrad(const Call& call) {
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return crossEntropyGrad<double>(call);
    case DType::bf16:
      return crossEntropyGrad<bf16>(call);
    case DType::f16:
      return crossEntropyGrad<f16>(call);
    default:
      return crossEntropyGrad<float>(call);
  }
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(loss, {Op::cross_entropy, checkCrossEntropy, runCrossEntropy},
                 {Op::cross_entropy_partial, checkCrossEntropyPartial, runCrossEntropyPartial},
                 {Op::cross_entropy_grad, checkCrossEntropyGrad, runCrossEntropyGrad})
