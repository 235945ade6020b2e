// Copies between any two layouts of the same dims, and of the part of a tensor that is this device's shard: as elements
// of up to 16 bytes where both sides allow it, transpositions by tiles through shared memory, else element by element
// in y's order.
#include <algorithm>

#include "backend/checks/copy.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/elements.h"
#include "backend/cuda/launch.h"
#include "backend/nest.h"

namespace meshwork::cuda {
namespace {

constexpr int kThreads = 256;

// 0 is y, so that y is written in memory order; 1 is x. At least one loop.
using Loops = Nest<2>;

// ---- element by element ----

template <class T, class Index>
__global__ void __launch_bounds__(kThreads) copyStrided(T* y, const T* x, Loops loops, Index count) {
  const Index step = static_cast<Index>(gridDim.x) * kThreads;
  for (Index i = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    Index left = i;
    int64_t to = 0, from = 0;
    for (int d = loops.rank - 1; d > 0; --d) {
      const auto size = static_cast<Index>(loops.dims[d]);
      const Index outer = left / size, at = left - outer * size;
      to += static_cast<int64_t>(at) * loops.strides[0][d];
      from += static_cast<int64_t>(at) * loops.strides[1][d];
      left = outer;
    }
    to += static_cast<int64_t>(left) * loops.strides[0][0];
    from += static_cast<int64_t>(left) * loops.strides[1][0];
    y[to] = x[from];
  }
}

template <class T>
void copyElements(Device& device, const Loops& loops, std::byte* y, const std::byte* x) {
  const int64_t count = loops.count(loops.rank);
  const unsigned blocks = blocksFor(device, count, kThreads, 32);
  auto* to = reinterpret_cast<T*>(y);
  const auto* from = reinterpret_cast<const T*>(x);
  if (count < int64_t{1} << 31) {
    launch(device, blocks, kThreads, 0, copyStrided<T, uint32_t>, to, from, loops, static_cast<uint32_t>(count));
  } else {
    launch(device, blocks, kThreads, 0, copyStrided<T, uint64_t>, to, from, loops, static_cast<uint64_t>(count));
  }
}

// ---- transpositions: y is contiguous along the last loop, x along the one before it ----

template <class T>
constexpr int kTile = sizeof(T) <= 2 ? 64 : 32;

template <class T>
__global__ void __launch_bounds__(kThreads) copyTiles(T* y, const T* x, Loops loops, int64_t tiles) {
  constexpr int kSize = kTile<T>, kPad = sizeof(T) >= 4 ? 1 : 4 / static_cast<int>(sizeof(T));
  MESHWORK_SHARED_ARRAY(T, tile, [kSize][kSize + kPad]);
  const int last = loops.rank - 1, lane = threadIdx.x % kSize, first = threadIdx.x / kSize;
  constexpr int kRows = kThreads / kSize;
  const int64_t rows = loops.dims[last - 1], columns = loops.dims[last];
  const int64_t across = (columns + kSize - 1) / kSize, down = (rows + kSize - 1) / kSize;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t square = t / across, outer = square / down;
    const int64_t column = (t - square * across) * kSize, row = (square - outer * down) * kSize;
    const T* from = x + loops.offset(1, outer, last - 1);
    T* to = y + loops.offset(0, outer, last - 1);
    __syncthreads();  // the last tile has been written
    for (int c = first; c < kSize; c += kRows) {
      if (column + c < columns && row + lane < rows)
        tile[c][lane] = from[(column + c) * loops.strides[1][last] + row + lane];
    }
    __syncthreads();
    for (int r = first; r < kSize; r += kRows) {
      if (row + r < rows && column + lane < columns)
        to[(row + r) * loops.strides[0][last - 1] + column + lane] = tile[lane][r];
    }
  }
}

template <class T>
void transpose(Device& device, Loops loops, int other, std::byte* y, const std::byte* x) {
  const int last = loops.rank - 1;
  for (int d = other; d + 1 < last; ++d) {  // loop `other` moves next to the last
    std::swap(loops.dims[d], loops.dims[d + 1]);
    for (auto& strides : loops.strides) std::swap(strides[d], strides[d + 1]);
  }
  constexpr int64_t size = kTile<T>;
  const int64_t tiles =
      loops.count(last - 1) * ((loops.dims[last - 1] + size - 1) / size) * ((loops.dims[last] + size - 1) / size);
  launch(device, blocksFor(device, tiles, 1, 32), kThreads, 0, copyTiles<T>, reinterpret_cast<T*>(y),
         reinterpret_cast<const T*>(x), loops, tiles);
}

// ---- choosing ----

// The largest element, up to 16 bytes, that both sides can be taken as made of; the loops are changed to count those.
int64_t widenElements(Loops& loops, int64_t size, const std::byte* y, const std::byte* x) {
  const int last = loops.rank - 1;
  if (loops.strides[0][last] != 1 || loops.strides[1][last] != 1) return size;
  for (int64_t wide = 16; wide > size; wide /= 2) {
    const int64_t n = wide / size;
    bool fits = alignedTo(y, wide) && alignedTo(x, wide) && loops.dims[last] % n == 0;
    for (int d = 0; d < last; ++d) fits = fits && loops.strides[0][d] % n == 0 && loops.strides[1][d] % n == 0;
    if (!fits) continue;
    loops.dims[last] /= n;
    for (int d = 0; d < last; ++d) {
      for (auto& strides : loops.strides) strides[d] /= n;
    }
    return wide;
  }
  return size;
}

// The loop along which x is contiguous, where y is along the last one only; -1 for none that is worth tiles.
int transposedLoop(const Loops& loops) {
  const int last = loops.rank - 1;
  if (loops.strides[0][last] != 1 || loops.strides[1][last] <= 1 || loops.dims[last] < 8) return -1;
  for (int d = 0; d < last; ++d) {
    if (loops.strides[1][d] == 1 && loops.dims[d] >= 8) return d;
  }
  return -1;
}

template <class T>
void copyAs(Device& device, const Loops& loops, std::byte* y, const std::byte* x) {
  const int other = transposedLoop(loops);
  other < 0 ? copyElements<T>(device, loops, y, x) : transpose<T>(device, loops, other, y, x);
}

// Copies into y as many elements from x's memory, beginning at `from`, in x's layout.
void copyFrom(const Call& call, const std::byte* from) {
  const View &x = *call.in[0].view, &y = *call.out[0].view;
  if (y.count() == 0) return;
  Device& device = deviceOf(call);
  std::byte* to = call.out[0].data;
  Loops loops;
  for (int d = 0; d < y.rank; ++d) loops.add(y.dims[d], {y.strides[d], x.strides[d]});
  loops.join();
  if (loops.rank == 0) {
    loops.rank = 1;
    loops.dims[0] = loops.strides[0][0] = loops.strides[1][0] = 1;
  }
  switch (widenElements(loops, dtypeSize(y.dtype), to, from)) {
    case 1:
      return copyAs<uint8_t>(device, loops, to, from);
    case 2:
      return copyAs<uint16_t>(device, loops, to, from);
    case 4:
      return copyAs<uint32_t>(device, loops, to, from);
    case 8:
      return copyAs<uint64_t>(device, loops, to, from);
    default:
      return copyElements<uint4>(device, loops, to, from);
  }
}

void runCopy(const Call& call) { copyFrom(call, call.in[0].data); }

void runShardSlice(const Call& call) {
  const Operand &x = call.in[0], &y = call.out[0];
  const int dim = call.attrs[attr::shard_slice::dim];
  // The table is data: a start that does not fit is moved to where it does.
  const int64_t start = std::clamp<int64_t>(call.tableAttr(attr::shard_slice::start), 0, x.dim(dim) - y.dim(dim));
  copyFrom(call, x.data + start * x.stride(dim) * dtypeSize(x.view->dtype));
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(copy, {Op::copy, checkCopy, runCopy}, {Op::shard_slice, checkShardSlice, runShardSlice})
