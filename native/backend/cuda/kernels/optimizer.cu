// The parameter updates (AdamW, SGD) and the sum of squares for gradient norms, on contiguous memory.
#include "backend/checks/optimizer.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/groups.h"
#include "backend/cuda/kernels/parts.h"

namespace meshwork::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float rootOf(float x) { return sqrtf(x); }
__device__ __forceinline__ double rootOf(double x) { return sqrt(x); }

// ---- updates: in place, and nothing is written unless the gate is 1 ----

template <class T>
struct Adamw {
  const T *p, *grad, *m, *v, *lr, *correction1, *correction2, *scale;
  const int32_t* gate;
  T *newP, *newM, *newV;
  double beta1, beta2, weightDecay;
  T eps;
  int64_t count;
};

template <int kWidth, class T>
__global__ void __launch_bounds__(kThreads) adamwUpdate(Adamw<T> a) {
  if (*a.gate != 1) return;
  const double lr = static_cast<double>(*a.lr);
  const T step = static_cast<T>(lr / static_cast<double>(*a.correction1));
  const T unbias = static_cast<T>(1 / static_cast<double>(*a.correction2));
  const T scale = *a.scale, keep = static_cast<T>(1 - lr * a.weightDecay);
  const T take1 = static_cast<T>(1 - a.beta1), keep2 = static_cast<T>(a.beta2), take2 = static_cast<T>(1 - a.beta2);
  const int64_t grid = int64_t{gridDim.x} * kThreads * kWidth;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth; i < a.count; i += grid) {
    T p[kWidth], g[kWidth], m[kWidth], v[kWidth];
    load(p, a.p + i);
    load(g, a.grad + i);
    load(m, a.m + i);
    load(v, a.v + i);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const T gradient = g[k] * scale;
      m[k] = m[k] + take1 * (gradient - m[k]);
      v[k] = keep2 * v[k] + take2 * (gradient * gradient);
      p[k] = p[k] * keep - step * m[k] / (rootOf(v[k] * unbias) + a.eps);
    }
    store(a.newP + i, p);
    store(a.newM + i, m);
    store(a.newV + i, v);
  }
}

template <class T>
struct Sgd {
  const T *p, *grad, *buf, *lr, *scale;
  const int32_t* gate;
  T *newP, *newBuf;
  T momentum, weightDecay;
  bool nesterov;
  int64_t count;
};

template <int kWidth, class T>
__global__ void __launch_bounds__(kThreads) sgdUpdate(Sgd<T> a) {
  if (*a.gate != 1) return;
  const T lr = *a.lr, scale = *a.scale;
  const int64_t grid = int64_t{gridDim.x} * kThreads * kWidth;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth; i < a.count; i += grid) {
    T p[kWidth], g[kWidth], buf[kWidth];
    load(p, a.p + i);
    load(g, a.grad + i);
    load(buf, a.buf + i);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const T gradient = g[k] * scale + a.weightDecay * p[k];
      buf[k] = a.momentum * buf[k] + gradient;
      p[k] = p[k] - lr * (a.nesterov ? gradient + a.momentum * buf[k] : buf[k]);
    }
    store(a.newP + i, p);
    store(a.newBuf + i, buf);
  }
}

// Whether the first `inputs` and all outputs can be read and written 16 bytes at a time.
bool allWide(const Call& call, int inputs) {
  bool wide = call.in[0].view->count() * dtypeSize(call.in[0].view->dtype) % 16 == 0;
  for (int i = 0; i < inputs; ++i) wide = wide && alignedTo(call.in[i].data, 16);
  for (int i = 0; i < call.outputs; ++i) wide = wide && alignedTo(call.out[i].data, 16);
  return wide;
}

// f(Type<T>(), width) for the dtype of the parameters, f32 or f64.
template <class F>
void forUpdate(const Call& call, int inputs, const F& f) {
  if (call.in[0].view->count() == 0) return;
  if (call.in[0].view->dtype == DType::f64) return f(Type<double>(), std::integral_constant<int, 1>());
  if (allWide(call, inputs)) return f(Type<float>(), std::integral_constant<int, kWide<float>>());
  f(Type<float>(), std::integral_constant<int, 1>());
}

void runAdamw(const Call& call) {
  forUpdate(call, 4, [&](auto type, auto width) {
    using T = typename decltype(type)::type;
    namespace at = attr::adamw;
    const auto in = [&](int i) { return call.in[i].as<T>(); };
    const Adamw<T> a{in(0),
                     in(1),
                     in(2),
                     in(3),
                     in(4),
                     in(5),
                     in(6),
                     in(7),
                     call.in[8].as<int32_t>(),
                     call.out[0].as<T>(),
                     call.out[1].as<T>(),
                     call.out[2].as<T>(),
                     call.floatAttr(at::beta1),
                     call.floatAttr(at::beta2),
                     call.floatAttr(at::weightDecay),
                     static_cast<T>(call.floatAttr(at::eps)),
                     call.in[0].view->count()};
    Device& device = deviceOf(call);
    launch(device, blocksFor(device, a.count, kThreads * width), kThreads, 0, adamwUpdate<width, T>, a);
  });
}

void runSgd(const Call& call) {
  forUpdate(call, 3, [&](auto type, auto width) {
    using T = typename decltype(type)::type;
    namespace at = attr::sgd;
    const Sgd<T> a{call.in[0].as<T>(),
                   call.in[1].as<T>(),
                   call.in[2].as<T>(),
                   call.in[3].as<T>(),
                   call.in[4].as<T>(),
                   call.in[5].as<int32_t>(),
                   call.out[0].as<T>(),
                   call.out[1].as<T>(),
                   static_cast<T>(call.floatAttr(at::momentum)),
                   static_cast<T>(call.floatAttr(at::weightDecay)),
                   call.attrs[at::nesterov] != 0,
                   call.in[0].view->count()};
    Device& device = deviceOf(call);
    launch(device, blocksFor(device, a.count, kThreads * width), kThreads, 0, sgdUpdate<width, T>, a);
  });
}

// ---- the sum of squares: a part of x a block, in float64, and the parts in order ----

template <int kWidth, class T>
__global__ void __launch_bounds__(kGroupThreads) squareParts(const T* x, int64_t packs, double* partial) {
  const Group<true> group;
  const int64_t begin = partBegin(packs, blockIdx.x, gridDim.x), end = partBegin(packs, blockIdx.x + 1, gridDim.x);
  double sums[kWidth] = {};
  for (int64_t i = begin + threadIdx.x; i < end; i += kGroupThreads) {
    double v[kWidth];
    load(v, x + i * kWidth);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sums[k] += v[k] * v[k];
  }
  double sum = sums[0];
#pragma unroll
  for (int k = 1; k < kWidth; ++k) sum += sums[k];
  sum = group.reduce<SumOf>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class A>
__global__ void __launch_bounds__(kGroupThreads) addParts(A* y, const double* partial, int parts) {
  const Group<true> group;
  double sum = 0;
  for (int i = threadIdx.x; i < parts; i += kGroupThreads) sum += partial[i];
  sum = group.reduce<SumOf>(sum);
  if (threadIdx.x == 0) *y = static_cast<A>(sum);
}

void runSquareSum(const Call& call) {
  const Operand &x = call.in[0], &y = call.out[0];
  const int64_t count = x.view->count();
  withFloat(x.view->dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    withBool(alignedTo(x.data, 16) && count % kWide<T> == 0, [&](auto wide) {
      constexpr int kWidth = wide ? kWide<T> : 1;
      Device& device = deviceOf(call);
      auto* partial = reinterpret_cast<double*>(device.workspace);
      const int parts = partsOf(count, 16384, 2048, sizeof(double));
      launch(device, static_cast<unsigned>(parts), kGroupThreads, 0, squareParts<kWidth, T>,
             static_cast<const T*>(x.as<T>()), count / kWidth, partial);
      launch(device, 1, kGroupThreads, 0, addParts<Compute<T>>, y.as<Compute<T>>(), partial, parts);
    });
  });
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(optimizer, {Op::adamw, checkAdamw, runAdamw}, {Op::sgd, checkSgd, runSgd},
                      {Op::square_sum, checkSquareSum, runSquareSum})
