// Counter-based random numbers, Philox4x32-10: element i of the global tensor is lane i % 4 of counter i / 4, wherever
// it is computed. The same bits as the CPU's: its polynomials, in its order, and nothing contracted.
#include "backend/checks/random.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/elements.h"
#include "backend/cuda/launch.h"
#include "backend/philox.h"

namespace meshwork::cuda {
namespace {

constexpr int kThreads = 256;

enum Kind { kBits = 0, kUniform = 1, kNormal = 2 };

// ---- numbers from words ----

__device__ __forceinline__ float uniformOf(uint32_t bits) {
  return static_cast<float>(static_cast<int32_t>(bits >> 8)) * 0x1p-24f;
}

// log x for x in (0, 1]: x = 2^e m, m in [sqrt(1/2), sqrt 2).
__device__ __forceinline__ float exactLog(float x) {
  const int32_t bits = __float_as_int(x);
  const int32_t shift = (bits - 0x3f3504f3) >> 23;
  const float e = static_cast<float>(shift);
  const float f = __int_as_float(bits - static_cast<int32_t>(static_cast<uint32_t>(shift) << 23)) - 1.0f;
  float p = 6.913567334e-02f;
  p = p * f - 1.178925037e-01f;
  p = p * f + 1.187342629e-01f;
  p = p * f - 1.238446161e-01f;
  p = p * f + 1.421861649e-01f;
  p = p * f - 1.666924357e-01f;
  p = p * f + 2.000222802e-01f;
  p = p * f - 2.499998659e-01f;
  p = p * f + 3.333331048e-01f;
  const float square = f * f;
  const float tail = ((p * f) * square + e * -2.12194440e-4f) - 0.5f * square;
  return (tail + f) + e * 0.693359375f;
}

// cos and sin of 2 pi u for u in [0, 1). u - quarters / 4 is exact, so that the angle is rounded once.
__device__ __forceinline__ void exactTurn(float u, float& cosine, float& sine) {
  const float quarters = rintf(u * 4.0f);
  const float r = (u - quarters * 0.25f) * 6.283185307f;
  const float s = r * r;
  float p = 2.718274483e-6f;
  p = p * s - 1.983933100e-4f;
  p = p * s + 8.333329374e-3f;
  p = p * s - 1.666666664e-1f;
  const float sinR = r + r * (s * p);
  float q = 2.443278505e-5f;
  q = q * s - 1.388731306e-3f;
  q = q * s + 4.166664562e-2f;
  const float cosR = 1.0f - 0.5f * s + s * s * q;
  const int32_t k = static_cast<int32_t>(quarters) & 3;
  sine = (k & 1) != 0 ? cosR : sinR;
  cosine = (k & 1) != 0 ? sinR : cosR;
  if (k >= 2) sine = -sine;
  if (k == 1 || k == 2) cosine = -cosine;
}

// ---- placing them ----

// Where the numbers of y lie in the global tensor.
struct Layout {
  int rank;
  int64_t dims[kMaxRank], strides[kMaxRank];
  uint64_t start[kMaxRank], step[kMaxRank];  // of the global index, per dim
  const int32_t* indices[kMaxRank];          // the global indices of a dim, or null
  int64_t indexStrides[kMaxRank];

  __device__ __forceinline__ uint64_t indexOf(int d, int64_t i) const {
    if (indices[d] != nullptr) return static_cast<uint64_t>(int64_t{indices[d][i * indexStrides[d]]});
    return start[d] + static_cast<uint64_t>(i);
  }
};

struct Generator {
  const int32_t* key;
  int64_t keyStride;
  uint32_t site;
  int kind;

  // The four numbers of a counter as bits: of int32, or of float32.
  __device__ __forceinline__ void make(uint64_t counter, uint32_t (&words)[4]) const {
    words[0] = static_cast<uint32_t>(counter);
    words[1] = static_cast<uint32_t>(counter >> 32);
    words[2] = site;
    words[3] = static_cast<uint32_t>(key[2 * keyStride]);
    philox4x32(words, static_cast<uint32_t>(key[0]), static_cast<uint32_t>(key[keyStride]));
    if (kind == kBits) return;
#pragma unroll
    for (int pair = 0; pair < 4; pair += 2) {
      float u1 = uniformOf(words[pair]), u2 = uniformOf(words[pair + 1]);
      if (kind == kNormal) {
        const float r = sqrtf(-2.0f * exactLog(1.0f - u1));
        float cosine, sine;
        exactTurn(u2, cosine, sine);
        u1 = r * cosine;
        u2 = r * sine;
      }
      words[pair] = __float_as_uint(u1);
      words[pair + 1] = __float_as_uint(u2);
    }
  }
};

template <class T>
__device__ __forceinline__ T numberOf(uint32_t bits) {
  if constexpr (std::is_same_v<T, int32_t>) {
    return static_cast<int32_t>(bits);
  } else {
    return narrow<T>(__uint_as_float(bits));
  }
}

// A thread makes the numbers of one counter for one row (all dims but the last, whose global indices are consecutive).
template <class T>
__global__ void __launch_bounds__(kThreads) randomRows(T* y, Layout layout, Generator generator, int64_t rows) {
  const int last = layout.rank - 1;
  const int64_t width = layout.dims[last], stride = layout.strides[last];
  const int64_t counters = (width + 6) / 4;  // at most, wherever the first falls
  const int64_t count = rows * counters, grid = int64_t{gridDim.x} * kThreads;
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < count; at += grid) {
    int64_t row = at / counters, offset = 0;
    const int64_t c = at - row * counters;
    uint64_t global = layout.start[last] * layout.step[last];
    for (int d = last - 1; d >= 0; --d) {
      const int64_t outer = row / layout.dims[d], i = row - outer * layout.dims[d];
      row = outer;
      global += layout.indexOf(d, i) * layout.step[d];
      offset += i * layout.strides[d];
    }
    const uint64_t counter = global / 4 + static_cast<uint64_t>(c);
    const int64_t first = 4 * c - static_cast<int64_t>(global % 4);  // the column of lane 0
    if (first >= width) continue;
    uint32_t words[4];
    generator.make(counter, words);
    T* to = y + offset + first * stride;
    if (stride == 1 && first >= 0 && first + 4 <= width && reinterpret_cast<uintptr_t>(to) % (4 * sizeof(T)) == 0) {
      Pack<T, 4> pack;
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) pack.v[lane] = numberOf<T>(words[lane]);
      *reinterpret_cast<Pack<T, 4>*>(to) = pack;
      continue;
    }
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      if (first + lane >= 0 && first + lane < width) to[lane * stride] = numberOf<T>(words[lane]);
    }
  }
}

// Element by element, where the indices in the last dim are given too.
template <class T>
__global__ void __launch_bounds__(kThreads) randomElements(T* y, Layout layout, Generator generator, int64_t count) {
  const int64_t grid = int64_t{gridDim.x} * kThreads;
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < count; at += grid) {
    int64_t left = at, offset = 0;
    uint64_t global = 0;
    for (int d = layout.rank - 1; d >= 0; --d) {
      const int64_t outer = left / layout.dims[d], i = left - outer * layout.dims[d];
      left = outer;
      global += layout.indexOf(d, i) * layout.step[d];
      offset += i * layout.strides[d];
    }
    uint32_t words[4];
    generator.make(global / 4, words);
    const auto lane = static_cast<unsigned>(global % 4);
    y[offset] = numberOf<T>(lane == 0 ? words[0] : lane == 1 ? words[1] : lane == 2 ? words[2] : words[3]);
  }
}

Layout layoutOf(const Call& call) {
  Layout layout{};
  const View& y = *call.out[0].view;
  layout.rank = y.rank;
  uint64_t step = 1;
  for (int d = y.rank - 1; d >= 0; --d) {
    const int32_t* words = call.attrs + attr::random::count_ + 2 * d;
    layout.dims[d] = y.dims[d];
    layout.strides[d] = y.strides[d];
    layout.start[d] = words[0] < 0 ? 0 : static_cast<uint64_t>(static_cast<int64_t>(call.table[words[0]]));
    layout.step[d] = step;
    step *= static_cast<uint64_t>(static_cast<int64_t>(words[1]));
  }
  int input = 1;
  for (int d = 0; d < y.rank; ++d) {
    if ((call.attrs[attr::random::indexed] >> d & 1) == 0) continue;
    layout.indices[d] = call.in[input].as<int32_t>();
    layout.indexStrides[d] = call.in[input].stride(0);
    ++input;
  }
  if (y.rank == 0) {
    layout.rank = 1;
    layout.dims[0] = layout.strides[0] = 1;
    layout.step[0] = 1;
  }
  return layout;
}

template <class T>
void fill(const Call& call) {
  const Operand& y = call.out[0];
  const int64_t count = y.view->count();
  const Layout layout = layoutOf(call);
  const Operand& key = call.in[0];
  const Generator generator{key.as<int32_t>(), key.stride(0), static_cast<uint32_t>(call.attrs[attr::random::site]),
                            call.attrs[attr::random::kind]};
  Device& device = deviceOf(call);
  const int last = layout.rank - 1;
  if (layout.indices[last] != nullptr) {
    return launch(device, blocksFor(device, count, kThreads), kThreads, 0, randomElements<T>, y.as<T>(), layout,
                  generator, count);
  }
  const int64_t rows = count / layout.dims[last];
  launch(device, blocksFor(device, rows * ((layout.dims[last] + 6) / 4), kThreads), kThreads, 0, randomRows<T>,
         y.as<T>(), layout, generator, rows);
}

void runRandom(const Call& call) {
  if (call.out[0].view->count() == 0) return;
  switch (call.out[0].view->dtype) {
    case DType::i32:
      return fill<int32_t>(call);
    case DType::f64:
      return fill<double>(call);
    case DType::bf16:
      return fill<bf16>(call);
    case DType::f16:
      return fill<f16>(call);
    default:
      return fill<float>(call);
  }
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(random, {Op::random, checkRandom, runRandom})
