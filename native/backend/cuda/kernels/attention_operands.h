// What attention and attention_grad share: operands, which query sees which key, and the choice of a way to compute.
#pragma once
#include "backend/checks/attention.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/elements.h"
#include "backend/cuda/launch.h"

namespace meshwork::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

template <class S>
__device__ __forceinline__ S noScore() {
  return static_cast<S>(-INFINITY);
}

// A [b, t, h, d] operand with unit stride in d.
template <class T>
struct Heads {
  T* data;
  int64_t batch, row, head;  // strides
  bool aligned;              // every row begins at 16 bytes

  __device__ T* at(int64_t b, int64_t i, int64_t h) const { return data + b * batch + i * row + h * head; }
};

template <class T>
Heads<T> headsOf(const Operand& x) {
  constexpr int64_t kEach = 16 / sizeof(T);
  bool aligned = alignedTo(x.data, 16);
  for (int d = 0; d < 3; ++d) aligned = aligned && (x.dim(d) <= 1 || x.stride(d) % kEach == 0);
  return {x.as<T>(), x.stride(0), x.stride(1), x.stride(2), aligned};
}

// Log-sum-exps [b, h, t].
template <class S>
struct Norms {
  S* data;
  int64_t batch, head, row;

  __device__ S& at(int64_t b, int64_t h, int64_t i) const { return data[b * batch + h * head + i * row]; }
};
template <class S>
Norms<S> normsOf(const Operand& x) {
  return {x.as<S>(), x.stride(0), x.stride(1), x.stride(2)};
}

// Positions or segments [b, t]; without an operand, the index or 0.
struct Indices {
  const int32_t* data = nullptr;
  int64_t batch = 0, row = 0;
  int32_t step = 0;  // 1: the index, 0: 0

  __device__ int32_t at(int64_t b, int64_t i) const {
    return data != nullptr ? data[b * batch + i * row] : step * static_cast<int32_t>(i);
  }
};

struct Range {
  int32_t least, most;
};

// Of indices [first, first + count), count > 0. All lanes of the warp call it together, and all get the range.
__device__ __forceinline__ Range rangeOf(const Indices& of, int64_t b, int64_t first, int count) {
  if (of.data == nullptr) return {of.at(b, first), of.at(b, first + count - 1)};
  Range range = {INT32_MAX, INT32_MIN};
  for (int i = static_cast<int>(threadIdx.x % 32); i < count; i += 32) {
    const int32_t value = of.at(b, first + i);
    range.least = min(range.least, value);
    range.most = max(range.most, value);
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    range.least = min(range.least, __shfl_xor_sync(kAllLanes, range.least, lanes));
    range.most = max(range.most, __shfl_xor_sync(kAllLanes, range.most, lanes));
  }
  return range;
}

struct Place {
  int32_t position, segment;
};
struct Ranges {
  Range position, segment;
};

enum class Sight { none, some, all };

// The operands of either op.
struct AttentionShape {
  int64_t batch, length, keys, heads, groups, repeats;  // b, t, s, h, g, r
  int features, valueFeatures;                          // d, e
  bool causal;
  double scale;
  Indices positionsQ, positionsK, segmentsQ, segmentsK;

  __device__ Place query(int64_t b, int64_t i) const {
    return i < length ? Place{positionsQ.at(b, i), segmentsQ.at(b, i)} : Place{0, 0};
  }
  __device__ Place key(int64_t b, int64_t j) const {
    return j < keys ? Place{positionsK.at(b, j), segmentsK.at(b, j)} : Place{0, 0};
  }
  // Of rows [first, first + most) as far as there are any.
  __device__ Ranges queryRanges(int64_t b, int64_t first, int most) const {
    const int count = static_cast<int>(min(int64_t{most}, length - first));
    return {rangeOf(positionsQ, b, first, count), rangeOf(segmentsQ, b, first, count)};
  }
  __device__ Ranges keyRanges(int64_t b, int64_t first, int most) const {
    const int count = static_cast<int>(min(int64_t{most}, keys - first));
    return {rangeOf(positionsK, b, first, count), rangeOf(segmentsK, b, first, count)};
  }
  __device__ bool visible(const Place& query, const Place& key) const {
    return query.segment == key.segment && (!causal || key.position <= query.position);
  }
  // As far as ranges tell.
  __device__ Sight sight(const Ranges& query, const Ranges& key) const {
    const Range &q = query.segment, &k = key.segment;
    if (q.most < k.least || k.most < q.least) return Sight::none;
    if (causal && key.position.least > query.position.most) return Sight::none;
    const bool alike = q.least == q.most && k.least == k.most;
    return alike && (!causal || key.position.most <= query.position.least) ? Sight::all : Sight::some;
  }
};

// `base` is the number of inputs before the optional ones.
inline AttentionShape attentionShape(const Call& call, int base) {
  const Operand &q = call.in[0], &k = call.in[1], &v = call.in[2];
  const int32_t flags = call.attrs[attr::attention::flags];
  AttentionShape x = {};
  x.batch = q.dim(0), x.length = q.dim(1), x.keys = k.dim(1), x.heads = q.dim(2), x.groups = k.dim(2);
  x.repeats = x.groups > 0 ? x.heads / x.groups : 0;
  x.features = static_cast<int>(q.dim(3)), x.valueFeatures = static_cast<int>(v.dim(3));
  x.causal = (flags & attention_flag::causal) != 0;
  x.scale = call.floatAttr(attr::attention::scale);
  x.positionsQ.step = x.positionsK.step = 1;
  const auto read = [&](Indices& to) {
    const Operand& from = call.in[base++];
    to.data = from.as<int32_t>(), to.batch = from.stride(0), to.row = from.stride(1);
  };
  if (flags & attention_flag::positions) read(x.positionsQ), read(x.positionsK);
  if (flags & attention_flag::segments) read(x.segmentsQ), read(x.segmentsK);
  return x;
}

// Whether float32 attention computes in float64: small problems do, as on the CPU.
inline bool sumsInDouble(const AttentionShape& x) {
  constexpr double kMostProducts = 1 << 20;  // b h t s d
  double products = std::max(x.features, x.valueFeatures);
  for (int64_t dim : {x.batch, x.heads, x.length, x.keys}) products *= static_cast<double>(dim);
  return products <= kMostProducts;
}

// f(storage, sums) with both as Type<>.
template <class F>
void withSums(const AttentionShape& x, DType dtype, const F& f) {
  if (dtype == DType::f64) return f(Type<double>(), Type<double>());
  if (dtype == DType::bf16) return f(Type<bf16>(), Type<float>());
  if (dtype == DType::f16) return f(Type<f16>(), Type<float>());
  if (sumsInDouble(x)) return f(Type<float>(), Type<double>());
  f(Type<float>(), Type<float>());
}

inline unsigned attentionBlocks(int64_t tiles, int64_t others) { return static_cast<unsigned>(tiles * others); }
inline int64_t tilesOf(int64_t count, int64_t each) { return (count + each - 1) / each; }

// ---- products by fused multiply-adds: 256 threads as 16 x 16 ----

constexpr int kFmaThreads = 256;
constexpr int kFmaChunk = 32;  // features, or value features, in shared memory at a time
constexpr int kFmaPitch = kFmaChunk + 1;
constexpr int kFmaFeatures = 128;  // up to here a thread holds 4 rows by 8 columns of a result, else 1 by 32

__device__ __forceinline__ float multiplyAdd(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiplyAdd(double a, double b, double c) { return fma(a, b, c); }
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

// Rows [first, first + rows) of a head, columns [column, column + kFmaChunk), into shared memory; zeros beyond.
template <class T, class S>
__device__ __forceinline__ void loadChunk(S* to, int rows, const Heads<T>& from, int64_t b, int64_t first,
                                          int64_t count, int64_t h, int column, int features) {
  for (int at = static_cast<int>(threadIdx.x); at < rows * kFmaChunk; at += kFmaThreads) {
    const int row = at / kFmaChunk, c = at % kFmaChunk;
    const bool inside = first + row < count && column + c < features;
    to[row * kFmaPitch + c] = inside ? static_cast<S>(widen(from.at(b, first + row, h)[column + c])) : S(0);
  }
}

// scores[r][c] += left[ty * kRows + r] . right[tx + 16 c] over the features.
template <int kRows, int kColumns, class T, class S>
__device__ __forceinline__ void multiplyRows(S (&scores)[kRows][kColumns], S* left, S* right, const Heads<T>& a,
                                             const Heads<T>& b, int64_t batch, int64_t firstA, int64_t countA,
                                             int64_t headA, int64_t firstB, int64_t countB, int64_t headB,
                                             int features) {
  const int tx = static_cast<int>(threadIdx.x % 16), ty = static_cast<int>(threadIdx.x / 16);
  for (int column = 0; column < features; column += kFmaChunk) {
    __syncthreads();
    loadChunk(left, 16 * kRows, a, batch, firstA, countA, headA, column, features);
    loadChunk(right, 16 * kColumns, b, batch, firstB, countB, headB, column, features);
    __syncthreads();
#pragma unroll 8
    for (int f = 0; f < kFmaChunk; ++f) {
      S x[kRows], y[kColumns];
#pragma unroll
      for (int r = 0; r < kRows; ++r) x[r] = left[(ty * kRows + r) * kFmaPitch + f];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) y[c] = right[(tx + 16 * c) * kFmaPitch + f];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) scores[r][c] = multiplyAdd(x[r], y[c], scores[r][c]);
      }
    }
  }
}

// sums[r][c] += weights[ty * kRows + r] . right[...][tx + 16 c] over the other tile's kOthers rows. The weights have
// been written, with no barrier since.
template <int kOthers, int kRows, int kColumns, class T, class S>
__device__ __forceinline__ void addWeighted(S (&sums)[kRows][kColumns], const S* weights, S* right, const Heads<T>& b,
                                            int64_t batch, int64_t first, int64_t count, int64_t head, int features) {
  const int tx = static_cast<int>(threadIdx.x % 16), ty = static_cast<int>(threadIdx.x / 16);
#pragma unroll
  for (int pair = 0; pair < kColumns / 2; ++pair) {
    if (pair * kFmaChunk >= features) break;
    __syncthreads();
    loadChunk(right, kOthers, b, batch, first, count, head, pair * kFmaChunk, features);
    __syncthreads();
#pragma unroll 4
    for (int j = 0; j < kOthers; ++j) {
      const S low = right[j * kFmaPitch + tx], high = right[j * kFmaPitch + tx + 16];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const S weight = weights[(ty * kRows + r) * (kOthers + 1) + j];
        sums[r][2 * pair] = multiplyAdd(weight, low, sums[r][2 * pair]);
        sums[r][2 * pair + 1] = multiplyAdd(weight, high, sums[r][2 * pair + 1]);
      }
    }
  }
}

// ---- products by matrix instructions: 4 warps of 16 rows each ----

constexpr int kMmaThreads = 128;
constexpr int kMmaRows = 64;
constexpr int kMmaFeatures = 128;  // up to here
constexpr float kLog2E = 1.4426950408889634f;

}  // namespace meshwork::cuda
