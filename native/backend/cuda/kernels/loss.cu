// Cross-entropy of rows of logits, fused with their log-softmax: whole vocabularies, shards of one, and the gradient.
#include "backend/checks/loss.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/exp_rows.h"

namespace meshwork::cuda {
namespace {

template <class T>
struct Loss {
  using A = Compute<T>;
  Rows<const T> logits;
  Rows<const int32_t> targets;
  int64_t rows, width;
  int64_t start;  // of a shard of the vocabulary
  int32_t ignore;
};

template <int kWidth, bool kBlock, class T>
__global__ void __launch_bounds__(kGroupThreads)
    crossEntropy(Loss<T> loss, Rows<Compute<T>> nll, Rows<Compute<T>> lse) {
  using A = Compute<T>;
  const Group<kBlock> group;
  for (int64_t row = group.first(); row < loss.rows; row += group.step()) {
    const T* x = loss.logits[row];
    const ExpSum<A> total = sumExpRow<kWidth>(group, x, loss.width);
    if (group.lane() != 0) continue;
    const int32_t target = *loss.targets[row];
    const bool counts = target != loss.ignore && target >= 0 && target < loss.width;
    const A tail = logOf(total.sum);
    *lse[row] = total.max + tail;
    *nll[row] = counts ? (total.max - static_cast<A>(widen(x[target]))) + tail : A(0);
  }
}

template <int kWidth, bool kBlock, class T>
__global__ void __launch_bounds__(kGroupThreads)
    crossEntropyPartial(Loss<T> loss, Rows<const Compute<T>> max, Rows<Compute<T>> sums, Rows<Compute<T>> chosen) {
  using A = Compute<T>;
  const Group<kBlock> group;
  for (int64_t row = group.first(); row < loss.rows; row += group.step()) {
    const T* x = loss.logits[row];
    const A shift = shiftOf(*max[row]);
    A sum = 0;
    for (int64_t i = int64_t{kWidth} * group.lane(); i < loss.width; i += kWidth * group.kSize) {
      A v[kWidth];
      load(v, x + i);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum += expOf(v[k] - shift);
    }
    sum = group.template reduce<SumOf>(sum);
    if (group.lane() != 0) continue;
    const int32_t target = *loss.targets[row];
    const int64_t column = int64_t{target} - loss.start;
    const bool here = target != loss.ignore && column >= 0 && column < loss.width;
    *sums[row] = sum;
    *chosen[row] = here ? static_cast<A>(widen(x[column])) : A(0);
  }
}

// out may be logits: a thread writes only what it alone has read.
template <int kWidth, bool kBlock, class T>
__global__ void __launch_bounds__(kGroupThreads)
    crossEntropyGrad(Loss<T> loss, Rows<const Compute<T>> lse, Rows<const Compute<T>> dnll, Rows<T> out) {
  using A = Compute<T>;
  const Group<kBlock> group;
  for (int64_t row = group.first(); row < loss.rows; row += group.step()) {
    const int32_t target = *loss.targets[row];
    const int64_t column = int64_t{target} - loss.start;
    const bool ignored = target == loss.ignore || target < 0;
    const A shift = *lse[row], scale = *dnll[row];
    for (int64_t i = int64_t{kWidth} * group.lane(); i < loss.width; i += kWidth * group.kSize) {
      A v[kWidth];
      load(v, loss.logits[row] + i);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const A p = expOf(v[k] - shift);
        v[k] = ignored ? A(0) : (i + k == column ? p - A(1) : p) * scale;
      }
      store(out[row] + i, v);
    }
  }
}

template <class T>
Loss<T> lossOf(const Call& call, int32_t ignore, int64_t start) {
  const Operand& logits = call.in[0];
  return {rowsOf<const T>(logits), rowsOf<const int32_t>(call.in[1]), logits.dim(0), logits.dim(1), start, ignore};
}

// f(Type<T>(), width, block) for logits' dtype, how many of them are read at a time, and whether a block takes a row.
template <class F>
void forLogits(const Operand& logits, bool wideRest, const F& f) {
  withFloat(logits.view->dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    withBool(takesBlock(logits.dim(1) * dtypeSize(logits.view->dtype)), [&](auto block) {
      withBool(wideRest && wideRows(logits),
               [&](auto wide) { f(type, std::integral_constant < int, wide ? kWide<T> : 1 > (), block); });
    });
  });
}

void runCrossEntropy(const Call& call) {
  forLogits(call.in[0], true, [&](auto type, auto width, auto block) {
    using T = typename decltype(type)::type;
    using A = Compute<T>;
    const Loss<T> loss = lossOf<T>(call, call.attrs[attr::cross_entropy::ignore], 0);
    launchGroups<block>(deviceOf(call), loss.rows, crossEntropy<width, block, T>, loss, rowsOf<A>(call.out[0]),
                        rowsOf<A>(call.out[1]));
  });
}

void runCrossEntropyPartial(const Call& call) {
  forLogits(call.in[0], true, [&](auto type, auto width, auto block) {
    using T = typename decltype(type)::type;
    using A = Compute<T>;
    namespace at = attr::cross_entropy_partial;
    const Loss<T> loss = lossOf<T>(call, call.attrs[at::ignore], call.tableAttr(at::start));
    launchGroups<block>(deviceOf(call), loss.rows, crossEntropyPartial<width, block, T>, loss,
                        rowsOf<const A>(call.in[2]), rowsOf<A>(call.out[0]), rowsOf<A>(call.out[1]));
  });
}

void runCrossEntropyGrad(const Call& call) {
  forLogits(call.in[0], wideRows(call.out[0]), [&](auto type, auto width, auto block) {
    using T = typename decltype(type)::type;
    using A = Compute<T>;
    namespace at = attr::cross_entropy_grad;
    const Loss<T> loss = lossOf<T>(call, call.attrs[at::ignore], call.tableAttr(at::start));
    launchGroups<block>(deviceOf(call), loss.rows, crossEntropyGrad<width, block, T>, loss, rowsOf<const A>(call.in[2]),
                        rowsOf<const A>(call.in[3]), rowsOf<T>(call.out[0]));
  });
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(loss, {Op::cross_entropy, checkCrossEntropy, runCrossEntropy},
                      {Op::cross_entropy_partial, checkCrossEntropyPartial, runCrossEntropyPartial},
                      {Op::cross_entropy_grad, checkCrossEntropyGrad, runCrossEntropyGrad})
