// The parameter updates (AdamW, SGD) and the sum of squares for gradient norms, on contiguous memory.
#include "backend/checks/optimizer.h"

#include <algorithm>

#include "backend/cpu/kernels/lanes.h"
#include "runtime/pool.h"

namespace meshwork::MESHWORK_ISA {
namespace {

constexpr int64_t kTask = 16384;  // elements

template <class T, class F>
void forEachVector(Pool& pool, int64_t count, const F& f) {
  pool.run((count + kTask - 1) / kTask, [&](int64_t task, int) {
    const int64_t begin = task * kTask;
    forVectors<T>(std::min(kTask, count - begin), [&](int64_t i, int n) { f(begin + i, n); });
  });
}

template <class T>
double scalarOf(const Operand& operand) {
  return static_cast<double>(*operand.as<T>());
}

template <class T>
void adamw(const Call& call) {
  const T *p = call.in[0].as<T>(), *grad = call.in[1].as<T>(), *m = call.in[2].as<T>(), *v = call.in[3].as<T>();
  T *newP = call.out[0].as<T>(), *newM = call.out[1].as<T>(), *newV = call.out[2].as<T>();
  const double lr = scalarOf<T>(call.in[4]);
  const double beta1 = call.floatAttr(attr::adamw::beta1), beta2 = call.floatAttr(attr::adamw::beta2);
  const T step = static_cast<T>(lr / scalarOf<T>(call.in[5]));
  const T unbias = static_cast<T>(1 / scalarOf<T>(call.in[6]));
  const T scale = *call.in[7].as<T>();
  const T keep = static_cast<T>(1 - lr * call.floatAttr(attr::adamw::weightDecay));
  const T take1 = static_cast<T>(1 - beta1), keep2 = static_cast<T>(beta2), take2 = static_cast<T>(1 - beta2);
  const T eps = static_cast<T>(call.floatAttr(attr::adamw::eps));
  forEachVector<T>(*call.pool, call.in[0].view->count(), [&](int64_t i, int n) {
    const Vec<T> g = loadSome(grad + i, n) * scale, oldM = loadSome(m + i, n);
    const Vec<T> first = oldM + take1 * (g - oldM);
    const Vec<T> second = keep2 * loadSome(v + i, n) + take2 * (g * g);
    const Vec<T> update = step * first / (sqrt(second * unbias) + eps);
    storeSome(newP + i, loadSome(p + i, n) * keep - update, n);
    storeSome(newM + i, first, n);
    storeSome(newV + i, second, n);
  });
}

void runAdamw(const Call& call) {
  if (call.in[0].view->count() == 0 || *call.in[8].as<int32_t>() != 1) return;
  call.in[0].view->dtype == DType::f64 ? adamw<double>(call) : adamw<float>(call);
}

template <class T>
void sgd(const Call& call) {
  const T *p = call.in[0].as<T>(), *grad = call.in[1].as<T>(), *buf = call.in[2].as<T>();
  T *newP = call.out[0].as<T>(), *newBuf = call.out[1].as<T>();
  const T lr = *call.in[3].as<T>(), scale = *call.in[4].as<T>();
  const T momentum = static_cast<T>(call.floatAttr(attr::sgd::momentum));
  const T decay = static_cast<T>(call.floatAttr(attr::sgd::weightDecay));
  const bool nesterov = call.attrs[attr::sgd::nesterov] != 0;
  forEachVector<T>(*call.pool, call.in[0].view->count(), [&](int64_t i, int n) {
    const Vec<T> old = loadSome(p + i, n);
    const Vec<T> g = loadSome(grad + i, n) * scale + decay * old;
    const Vec<T> moved = momentum * loadSome(buf + i, n) + g;
    storeSome(newP + i, old - lr * (nesterov ? g + momentum * moved : moved), n);
    storeSome(newBuf + i, moved, n);
  });
}

void runSgd(const Call& call) {
  if (call.in[0].view->count() == 0 || *call.in[5].as<int32_t>() != 1) return;
  call.in[0].view->dtype == DType::f64 ? sgd<double>(call) : sgd<float>(call);
}

// Cut into at most kMaxParts equal parts, whose sums (in float64) are added in order.
template <class T>
double squareSum(const T* x, int64_t count, Pool& pool) {
  using A = std::conditional_t<kIsShort<T>, float, double>;  // float32's squares need float64
  constexpr int64_t kMaxParts = 1024;
  const int64_t part = std::max(kTask, ((count + kMaxParts - 1) / kMaxParts + kWide - 1) / kWide * kWide);
  const int64_t parts = (count + part - 1) / part;
  double partial[kMaxParts];
  pool.run(parts, [&](int64_t task, int) {
    RowSum<A> sum;
    const T* from = x + task * part;
    sum.addVectors(std::min(part, count - task * part), [from](int64_t i, int n) {
      const Vec<A> v = loadSomeAs<A>(from + i, n);
      return v * v;
    });
    partial[task] = sum.total();
  });
  double total = 0;
  for (int64_t i = 0; i < parts; ++i) total += partial[i];
  return total;
}

void runSquareSum(const Call& call) {
  const Operand &x = call.in[0], &y = call.out[0];
  const int64_t count = x.view->count();
  switch (x.view->dtype) {
    case DType::f64:
      *y.as<double>() = squareSum(x.as<double>(), count, *call.pool);
      return;
    case DType::bf16:
      *y.as<float>() = static_cast<float>(squareSum(x.as<bf16>(), count, *call.pool));
      return;
    case DType::f16:
      *y.as<float>() = static_cast<float>(squareSum(x.as<f16>(), count, *call.pool));
      return;
    default:
      *y.as<float>() = static_cast<float>(squareSum(x.as<float>(), count, *call.pool));
      return;
  }
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(optimizer, {Op::adamw, checkAdamw, runAdamw}, {Op::sgd, checkSgd, runSgd},
                 {Op::square_sum, checkSquareSum, runSquareSum})
