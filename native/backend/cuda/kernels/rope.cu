// Rotary positions: every pair (i, i + d/2) of a head's features is rotated by position * inv_freq[i].
#include "backend/checks/rope.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/elements.h"
#include "backend/cuda/launch.h"

namespace meshwork::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ void turnOf(float angle, float& sine, float& cosine) {
  sine = sinf(angle);
  cosine = cosf(angle);
}
__device__ __forceinline__ void turnOf(double angle, double& sine, double& cosine) {
  sine = sin(angle);
  cosine = cos(angle);
}

template <class T>
struct Rope {
  T* y;
  const T* x;
  const int32_t* positions;
  const void* frequencies;
  bool wideFrequencies, inverse;
  int64_t rows, length, heads, half;
  int64_t xStrides[3], yStrides[3], positionStrides[2], frequencyStride;
};

// A thread takes kWidth neighbouring pairs of one (batch, position), for all its heads: their sines are computed once.
// y may be x: it reads both halves of a pair before it writes them.
template <int kWidth, class T>
__global__ void __launch_bounds__(kThreads) ropePairs(Rope<T> r) {
  using S = Compute<T>;
  const int64_t packs = r.half / kWidth, count = r.rows * packs;
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < count; at += int64_t{gridDim.x} * kThreads) {
    const int64_t row = at / packs, i = (at - row * packs) * kWidth, b = row / r.length, t = row - b * r.length;
    const S position = static_cast<S>(r.positions[b * r.positionStrides[0] + t * r.positionStrides[1]]);
    S sine[kWidth], cosine[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const int64_t f = (i + k) * r.frequencyStride;
      const S frequency = r.wideFrequencies ? static_cast<S>(static_cast<const double*>(r.frequencies)[f])
                                            : static_cast<S>(static_cast<const float*>(r.frequencies)[f]);
      turnOf(position * frequency, sine[k], cosine[k]);
      if (r.inverse) sine[k] = -sine[k];
    }
    const T* x = r.x + b * r.xStrides[0] + t * r.xStrides[1] + i;
    T* y = r.y + b * r.yStrides[0] + t * r.yStrides[1] + i;
    for (int64_t h = 0; h < r.heads; ++h, x += r.xStrides[2], y += r.yStrides[2]) {
      S u[kWidth], v[kWidth];
      load(u, x);
      load(v, x + r.half);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const S first = u[k] * cosine[k] - v[k] * sine[k];
        v[k] = v[k] * cosine[k] + u[k] * sine[k];
        u[k] = first;
      }
      store(y, u);
      store(y + r.half, v);
    }
  }
}

// Whether every head's halves begin at a multiple of 16 bytes.
bool wideHeads(const Operand& x) {
  const int64_t size = dtypeSize(x.view->dtype);
  bool wide = alignedTo(x.data, 16) && x.dim(3) / 2 * size % 16 == 0;
  for (int d = 0; d < 3; ++d) wide = wide && (x.dim(d) <= 1 || x.stride(d) * size % 16 == 0);
  return wide;
}

void runRope(const Call& call) {
  const Operand &x = call.in[0], &positions = call.in[1], &frequencies = call.in[2], &y = call.out[0];
  if (x.view->count() == 0) return;
  withFloat(x.view->dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const Rope<T> r{y.as<T>(),
                    x.as<T>(),
                    positions.as<int32_t>(),
                    frequencies.data,
                    frequencies.view->dtype == DType::f64,
                    call.attrs[attr::rope::inverse] == 1,
                    x.dim(0) * x.dim(1),
                    x.dim(1),
                    x.dim(2),
                    x.dim(3) / 2,
                    {x.stride(0), x.stride(1), x.stride(2)},
                    {y.stride(0), y.stride(1), y.stride(2)},
                    {positions.stride(0), positions.stride(1)},
                    frequencies.stride(0)};
    withBool(wideHeads(x) && wideHeads(y), [&](auto wide) {
      constexpr int kWidth = wide ? kWide<T> : 1;
      Device& device = deviceOf(call);
      launch(device, blocksFor(device, r.rows * (r.half / kWidth), kThreads), kThreads, 0, ropePairs<kWidth, T>, r);
    });
  });
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(rope, {Op::rope, checkRope, runRope})
