// Moves and reduces blocks: many copies a launch, and sums over ranks in their order.
#include <algorithm>

#include "backend/cuda/blocks.h"
#include "backend/cuda/kernels/elements.h"
#include "backend/cuda/launch.h"

namespace meshwork::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBatch = 32;  // copies of one launch: what fits a kernel's parameters

struct CopyBatch {
  BlockCopy blocks[kBatch];
};

// Block row blockIdx.y of the grid moves copy blockIdx.y, in units of T.
template <class T>
__global__ void copyBatch(CopyBatch batch) {
  const BlockCopy& copy = batch.blocks[blockIdx.y];
  const int64_t units = copy.bytes / static_cast<int64_t>(sizeof(T));
  const int64_t total = copy.counts[0] * copy.counts[1] * units;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += step) {
    const int64_t run = i / units, at = i - run * units;
    const int64_t outer = run / copy.counts[1], inner = run - outer * copy.counts[1];
    const auto* from = reinterpret_cast<const T*>(copy.from + outer * copy.fromPitch[0] + inner * copy.fromPitch[1]);
    auto* to = reinterpret_cast<T*>(copy.to + outer * copy.toPitch[0] + inner * copy.toPitch[1]);
    to[at] = from[at];
  }
}

// The widest unit in which every run of a copy begins and ends.
uint64_t unitOf(const BlockCopy& copy) {
  uint64_t bits =
      reinterpret_cast<uint64_t>(copy.to) | reinterpret_cast<uint64_t>(copy.from) | static_cast<uint64_t>(copy.bytes);
  for (int d = 0; d < 2; ++d) {
    if (copy.counts[d] > 1) bits |= static_cast<uint64_t>(copy.toPitch[d]) | static_cast<uint64_t>(copy.fromPitch[d]);
  }
  return std::min<uint64_t>(bits & (~bits + 1), 16);
}

template <class T>
void launchCopies(Device& device, cudaStream_t stream, const CopyBatch& batch, int count) {
  int64_t largest = 0;
  for (int i = 0; i < count; ++i) {
    const BlockCopy& copy = batch.blocks[i];
    largest = std::max(largest, copy.counts[0] * copy.counts[1] * copy.bytes / static_cast<int64_t>(sizeof(T)));
  }
  const dim3 grid(blocksFor(device, largest, kThreads), static_cast<unsigned>(count));
  launchOn(device, stream, grid, dim3(kThreads), 0, copyBatch<T>, batch);
}

template <class A>
__device__ inline A combine(A a, A b, int kind) {
  if (kind == 1) return (a > b || a != a) ? a : b;  // a NaN on either side stays one
  if (kind == 2) return (a < b || a != a) ? a : b;
  return a + b;
}
__device__ inline int32_t combine(int32_t a, int32_t b, int kind) {
  if (kind == 1) return a > b ? a : b;
  if (kind == 2) return a < b ? a : b;
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));  // sums wrap around
}

struct ReduceBatch {
  const std::byte* sources[kMaxReduceRanks];
  std::byte* outputs[kMaxReduceRanks];
  int sourceCount, outputCount;
  int kind;
  int64_t rows, count, sourcePitch, outputPitch;
};

template <class T>
__global__ void reduceBatch(ReduceBatch batch) {
  const int64_t total = batch.rows * batch.count;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += step) {
    const int64_t row = i / batch.count, at = i - row * batch.count;
    const int64_t from = row * batch.sourcePitch + at, to = row * batch.outputPitch + at;
    auto sum = widen(reinterpret_cast<const T*>(batch.sources[0])[from]);
    for (int r = 1; r < batch.sourceCount; ++r) {
      sum = combine(sum, widen(reinterpret_cast<const T*>(batch.sources[r])[from]), batch.kind);
    }
    for (int r = 0; r < batch.outputCount; ++r) reinterpret_cast<T*>(batch.outputs[r])[to] = narrow<T>(sum);
  }
}

}  // namespace

void copyBlocks(Device& device, cudaStream_t stream, std::span<const BlockCopy> blocks) {
  for (size_t begin = 0; begin < blocks.size(); begin += kBatch) {
    const size_t count = std::min<size_t>(kBatch, blocks.size() - begin);
    CopyBatch batch;
    uint64_t unit = 16;
    for (size_t i = 0; i < count; ++i) {
      batch.blocks[i] = blocks[begin + i];
      if (!batch.blocks[i].empty()) unit = std::min(unit, unitOf(batch.blocks[i]));
    }
    const int n = static_cast<int>(count);
    if (unit == 16) launchCopies<uint4>(device, stream, batch, n);
    if (unit == 8) launchCopies<uint64_t>(device, stream, batch, n);
    if (unit == 4) launchCopies<uint32_t>(device, stream, batch, n);
    if (unit == 2) launchCopies<uint16_t>(device, stream, batch, n);
    if (unit == 1) launchCopies<uint8_t>(device, stream, batch, n);
  }
}

void reduceBlocks(Device& device, cudaStream_t stream, const BlockReduce& reduce) {
  if (reduce.rows == 0 || reduce.count == 0) return;
  ReduceBatch batch = {};
  batch.sourceCount = static_cast<int>(reduce.sources.size());
  batch.outputCount = static_cast<int>(reduce.outputs.size());
  std::copy(reduce.sources.begin(), reduce.sources.end(), batch.sources);
  std::copy(reduce.outputs.begin(), reduce.outputs.end(), batch.outputs);
  batch.kind = reduce.kind;
  batch.rows = reduce.rows;
  batch.count = reduce.count;
  batch.sourcePitch = reduce.sourcePitch;
  batch.outputPitch = reduce.outputPitch;
  const dim3 grid(blocksFor(device, reduce.rows * reduce.count, kThreads));
  switch (reduce.dtype) {
    case DType::f32:
      return launchOn(device, stream, grid, dim3(kThreads), 0, reduceBatch<float>, batch);
    case DType::f64:
      return launchOn(device, stream, grid, dim3(kThreads), 0, reduceBatch<double>, batch);
    case DType::bf16:
      return launchOn(device, stream, grid, dim3(kThreads), 0, reduceBatch<bf16>, batch);
    case DType::f16:
      return launchOn(device, stream, grid, dim3(kThreads), 0, reduceBatch<f16>, batch);
    default:
      return launchOn(device, stream, grid, dim3(kThreads), 0, reduceBatch<int32_t>, batch);
  }
}

}  // namespace meshwork::cuda
