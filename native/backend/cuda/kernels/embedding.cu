// Rows of a table chosen by ids, and the sum of gradients back into them. Ids outside of the table are skipped.
#include "backend/checks/embedding.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/groups.h"

namespace meshwork::cuda {
namespace {

// ---- forward ----

template <int kWidth, bool kBlock, class T>
__global__ void __launch_bounds__(kGroupThreads)
    gatherRows(Rows<T> y, Rows<const T> table, Rows<const int32_t> ids, int64_t start, int64_t tableRows, int64_t rows,
               int64_t width) {
  const Group<kBlock> group;
  for (int64_t i = group.first(); i < rows; i += group.step()) {
    const int64_t row = int64_t{*ids[i]} - start;
    const bool here = row >= 0 && row < tableRows;
    for (int64_t j = int64_t{kWidth} * group.lane(); j < width; j += kWidth * group.kSize) {
      Pack<T, kWidth> pack = {};
      if (here) pack = *reinterpret_cast<const Pack<T, kWidth>*>(table[row] + j);
      *reinterpret_cast<Pack<T, kWidth>*>(y[i] + j) = pack;
    }
  }
}

// Moves elements of any type of the same size.
template <class T>
void embedding(const Call& call) {
  const Operand &table = call.in[0], &ids = call.in[1], &y = call.out[0];
  const int64_t rows = y.dim(0), width = y.dim(1);
  withBool(takesBlock(width * dtypeSize(y.view->dtype)), [&](auto block) {
    withBool(wideRows(table) && wideRows(y), [&](auto wide) {
      constexpr int kWidth = wide ? 16 / static_cast<int>(sizeof(T)) : 1;
      launchGroups<block>(deviceOf(call), rows, gatherRows<kWidth, block, T>, rowsOf<T>(y), rowsOf<const T>(table),
                          rowsOf<const int32_t>(ids), int64_t{call.tableAttr(attr::embedding::start)}, table.dim(0),
                          rows, width);
    });
  });
}

void runEmbedding(const Call& call) {
  if (call.out[0].dim(1) == 0) return;
  switch (dtypeSize(call.out[0].view->dtype)) {
    case 2:
      return embedding<uint16_t>(call);
    case 4:
      return embedding<uint32_t>(call);
    default:
      return embedding<uint64_t>(call);
  }
}

// ---- backward: every sum in ascending order of the ids, as on the CPU ----

constexpr int kTableRows = 64;  // of the table, that a block sums
constexpr int kListed = 1024;   // occurrences of its rows that a block holds at a time
constexpr uint32_t kNothing = 0xffffffffu;

// An occurrence of one of the block's rows as a number: ordered by row, then by position in the list, which is the
// order of the ids.
struct Occurrence {
  static __device__ __forceinline__ uint32_t key(uint32_t row, uint32_t position) { return row << 16 | position; }
  static __device__ __forceinline__ uint32_t rowOf(uint32_t key) { return key >> 16; }
  static __device__ __forceinline__ uint32_t positionOf(uint32_t key) { return key & 0xffffu; }
};

template <class T>
struct EmbeddingGrad {
  using A = Compute<T>;
  Rows<A> table;
  Rows<const T> dy;
  Rows<const int32_t> ids;
  int64_t start, tableRows, count, width;
};

// Sorts kListed keys, rising.
__device__ void sortKeys(uint32_t* keys) {
  for (uint32_t size = 2; size <= kListed; size *= 2) {
    for (uint32_t step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      for (uint32_t i = threadIdx.x; i < kListed; i += kGroupThreads) {
        const uint32_t j = i ^ step;
        if (j <= i) continue;
        const uint32_t a = keys[i], b = keys[j];
        if ((a > b) == ((i & size) == 0)) {
          keys[i] = b;
          keys[j] = a;
        }
      }
    }
  }
  __syncthreads();
}

// Adds the listed occurrences to the block's rows: a warp takes a row and a slab of columns.
template <int kWidth, class T>
__device__ void addListed(const EmbeddingGrad<T>& e, int64_t firstRow, const uint32_t* keys, const int32_t* where,
                          const int* begins) {
  using A = Compute<T>;
  constexpr int kAhead = 4;  // rows of dy that are read before the first is added
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t slabs = (e.width + kWarp * kWidth - 1) / (kWarp * kWidth);
  for (int64_t unit = warp; unit < kTableRows * slabs; unit += kGroupThreads / kWarp) {
    const auto row = static_cast<int>(unit / slabs);
    const int begin = begins[row], end = begins[row + 1];
    const int64_t column = (unit % slabs * kWarp + lane) * kWidth;
    if (begin == end || column >= e.width) continue;
    A* to = e.table[firstRow + row] + column;
    A sum[kWidth];
    load(sum, to);
    for (int i = begin; i < end; i += kAhead) {
      A v[kAhead][kWidth];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (i + k < end) load(v[k], e.dy[where[Occurrence::positionOf(keys[i + k])]] + column);
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (i + k >= end) break;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sum[j] += v[k][j];
      }
    }
    store(to, sum);
  }
}

// A block goes through all ids in order and sums what falls on its kTableRows rows.
template <int kWidth, class T>
__global__ void __launch_bounds__(kGroupThreads) scatterRows(EmbeddingGrad<T> e) {
  using A = Compute<T>;
  constexpr int kWarps = kGroupThreads / kWarp;
  MESHWORK_SHARED_ARRAY(uint32_t, keys, [kListed]);
  MESHWORK_SHARED_ARRAY(int32_t, where, [kListed]);
  MESHWORK_SHARED_ARRAY(int, begins, [kTableRows + 1]);
  MESHWORK_SHARED_ARRAY(int, counts, [kWarps]);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t firstRow = int64_t{blockIdx.x} * kTableRows;
  const int64_t rows = min(int64_t{kTableRows}, e.tableRows - firstRow);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t j = threadIdx.x; j < e.width; j += kGroupThreads) e.table[firstRow + row][j] = A(0);
  }
  int listed = 0;  // the same in all threads
  const auto flush = [&] {
    for (int i = listed + threadIdx.x; i < kListed; i += kGroupThreads) keys[i] = kNothing;
    sortKeys(keys);
    for (int row = threadIdx.x; row <= kTableRows; row += kGroupThreads) {
      int low = 0, high = listed;  // the first key of this row or a later one
      while (low < high) {
        const int middle = (low + high) / 2;
        if (Occurrence::rowOf(keys[middle]) < static_cast<uint32_t>(row)) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      begins[row] = low;
    }
    __syncthreads();
    addListed<kWidth>(e, firstRow, keys, where, begins);
    __syncthreads();
    listed = 0;
  };
  for (int64_t base = 0; base < e.count; base += kGroupThreads) {
    const int64_t i = base + threadIdx.x;
    const int64_t row = i < e.count ? int64_t{*e.ids[i]} - e.start - firstRow : -1;
    const bool here = row >= 0 && row < rows;
    if (__syncthreads_or(here) == 0) continue;
    if (listed + kGroupThreads > kListed) flush();
    const uint32_t votes = __ballot_sync(kAllLanes, here);
    if (lane == 0) counts[warp] = __popc(votes);
    __syncthreads();
    int before = 0, total = 0;
    for (int w = 0; w < kWarps; ++w) {
      before += w < warp ? counts[w] : 0;
      total += counts[w];
    }
    if (here) {
      const int at = listed + before + __popc(votes & ((1u << lane) - 1));
      keys[at] = Occurrence::key(static_cast<uint32_t>(row), static_cast<uint32_t>(at));
      where[at] = static_cast<int32_t>(i);
    }
    listed += total;
    __syncthreads();
  }
  if (listed > 0) flush();
}

void runEmbeddingGrad(const Call& call) {
  const Operand &dy = call.in[0], &ids = call.in[1], &table = call.out[0];
  if (table.view->count() == 0) return;
  withFloat(dy.view->dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Compute<T>;
    const EmbeddingGrad<T> e{rowsOf<A>(table),
                             rowsOf<const T>(dy),
                             rowsOf<const int32_t>(ids),
                             call.tableAttr(attr::embedding_grad::start),
                             table.dim(0),
                             dy.dim(0),
                             table.dim(1)};
    withBool(wideRows(dy) && wideRows(table), [&](auto wide) {
      constexpr int kWidth = wide ? kWide<T> : 1;
      launch(deviceOf(call), static_cast<unsigned>((e.tableRows + kTableRows - 1) / kTableRows), kGroupThreads, 0,
             scatterRows<kWidth, T>, e);
    });
  });
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(embedding, {Op::embedding, checkEmbedding, runEmbedding},
                      {Op::embedding_grad, checkEmbeddingGrad, runEmbeddingGrad})
