// Routing to experts: the best few of a row, capacity, the stable order by expert, rows moved to it and back.
#include <algorithm>

#include "backend/checks/experts.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/groups.h"
#include "backend/cuda/kernels/parts.h"

namespace meshwork::cuda {
namespace {

// ---- the best of a row: a warp finds one after the other ----

// Whether a comes before b: larger, or not a number where b is one. Of equal ones the lower index comes first.
template <class A>
__device__ __forceinline__ bool before(A a, int64_t i, A b, int64_t j) {
  if (a > b || (a != a && b == b)) return true;
  const bool equal = a == b || (a != a && b != b);
  return equal && i < j;
}

template <class T>
__global__ void __launch_bounds__(kGroupThreads)
    bestOfRows(Rows<T> values, Rows<int32_t> indices, Rows<const T> x, int64_t rows, int64_t width, int64_t wanted) {
  using A = Compute<T>;
  const Group<false> group;
  for (int64_t row = group.first(); row < rows; row += group.step()) {
    A last{};
    int64_t lastIndex = -1;
    for (int64_t k = 0; k < wanted; ++k) {
      A best{};
      int64_t index = -1;  // none yet
      for (int64_t i = group.lane(); i < width; i += kWarp) {
        const A value = widen(x[row][i]);
        if (lastIndex >= 0 && !before(last, lastIndex, value, i)) continue;  // found already
        if (index < 0 || before(value, i, best, index)) {
          best = value;
          index = i;
        }
      }
#pragma unroll
      for (int step = kWarp / 2; step > 0; step /= 2) {
        const A otherValue = __shfl_xor_sync(kAllLanes, best, step);
        const int64_t otherIndex = __shfl_xor_sync(kAllLanes, static_cast<long long>(index), step);
        if (otherIndex >= 0 && (index < 0 || before(otherValue, otherIndex, best, index))) {
          best = otherValue;
          index = otherIndex;
        }
      }
      if (group.lane() == 0) {
        values[row][k] = x[row][index];
        indices[row][k] = static_cast<int32_t>(index);
      }
      last = best;
      lastIndex = index;
    }
  }
}

void runTopk(const Call& call) {
  const Operand &x = call.in[0], &values = call.out[0];
  if (values.view->count() == 0) return;
  withFloat(x.view->dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launchGroups<false>(deviceOf(call), x.dim(0), bestOfRows<T>, rowsOf<T>(values), rowsOf<int32_t>(call.out[1]),
                        rowsOf<const T>(x), x.dim(0), x.dim(1), values.dim(1));
  });
}

// ---- capacity: a warp goes through a sample's choices in order ----

__global__ void __launch_bounds__(kWarp)
    keepWithinCapacity(int32_t* kept, const int32_t* ids, int32_t* taken, int64_t samples, int64_t tokens,
                       int64_t choices, int32_t experts, int32_t capacity) {
  const int lane = threadIdx.x;
  int32_t* counts = taken + int64_t{blockIdx.x} * experts;
  for (int64_t sample = blockIdx.x; sample < samples; sample += gridDim.x) {
    for (int32_t e = lane; e < experts; e += kWarp) counts[e] = 0;
    __syncwarp();
    const int64_t base = sample * tokens * choices, all = tokens * choices;
    for (int64_t first = 0; first < all; first += kWarp) {
      const int64_t i = first + lane, j = i / tokens, at = base + (i - j * tokens) * choices + j;
      const int32_t id = i < all ? ids[at] : -1;
      const bool known = id >= 0 && id < experts;
      int earlier = 0, later = 0;  // lanes with the same expert
      for (int other = 0; other < kWarp; ++other) {
        const bool same = __shfl_sync(kAllLanes, id, other) == id;
        earlier += same && other < lane;
        later += same && other > lane;
      }
      const int32_t before = known ? counts[id] : 0;
      __syncwarp();
      if (known && later == 0) counts[id] = min(before + earlier + 1, INT32_MAX / 2);
      if (i < all) kept[at] = known && before + earlier < capacity ? id : -1;
      __syncwarp();
    }
  }
}

void runCapacity(const Call& call) {
  const Operand &ids = call.in[0], &kept = call.out[0];
  if (ids.view->count() == 0) return;
  Device& device = deviceOf(call);
  const int32_t experts = call.attrs[attr::expert_capacity::experts];
  const int64_t room = kWorkspaceBytes / (std::max<int64_t>(1, experts) * static_cast<int64_t>(sizeof(int32_t)));
  const auto blocks = static_cast<unsigned>(std::min<int64_t>({ids.dim(0), room, 4096}));
  launch(device, blocks, kWarp, 0, keepWithinCapacity, kept.as<int32_t>(), ids.as<int32_t>(),
         reinterpret_cast<int32_t*>(device.workspace), ids.dim(0), ids.dim(1), ids.dim(2), experts,
         call.attrs[attr::expert_capacity::capacity]);
}

// ---- the stable order: a block collects one expert's rows, the last block those of none ----

__global__ void __launch_bounds__(kGroupThreads)
    sortByExpert(int32_t* order, int32_t* place, int32_t* counts, const int32_t* ids, int64_t n, int64_t experts) {
  constexpr int kWarps = kGroupThreads / kWarp;
  MESHWORK_SHARED_ARRAY(int, found, [kWarps]);
  const Group<true> group;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t expert = blockIdx.x; expert <= experts; expert += gridDim.x) {
    int before = 0;  // rows of the experts before this one
    for (int64_t i = threadIdx.x; i < n; i += kGroupThreads) before += ids[i] >= 0 && ids[i] < expert;
    int next = group.reduce<SumOf>(before);
    const int first = next;
    for (int64_t base = 0; base < n; base += kGroupThreads) {
      const int64_t i = base + threadIdx.x;
      const int32_t id = i < n ? ids[i] : 0;
      const bool mine = i < n && (expert < experts ? id == expert : id < 0 || id >= experts);
      const uint32_t votes = __ballot_sync(kAllLanes, mine);
      __syncthreads();  // the last counts have been read
      if (lane == 0) found[warp] = __popc(votes);
      __syncthreads();
      int at = next + __popc(votes & ((1u << lane) - 1));
      for (int w = 0; w < kWarps; ++w) {
        at += w < warp ? found[w] : 0;
        next += found[w];
      }
      if (mine) {
        order[at] = static_cast<int32_t>(i);
        place[i] = at;
      }
    }
    if (threadIdx.x == 0 && expert < experts) counts[expert] = next - first;
  }
}

void runSort(const Call& call) {
  const int64_t n = call.in[0].dim(0), experts = call.out[2].dim(0);
  Device& device = deviceOf(call);
  launch(device, blocksFor(device, experts + 1, 1), kGroupThreads, 0, sortByExpert, call.out[0].as<int32_t>(),
         call.out[1].as<int32_t>(), call.out[2].as<int32_t>(), call.in[0].as<int32_t>(), n, experts);
}

// ---- moving rows ----

template <int kWidth, bool kBlock, class T>
__global__ void __launch_bounds__(kGroupThreads)
    permuteRows(Rows<T> y, const T* x, int64_t stride, int64_t choiceStride, int64_t choices, int64_t sources,
                const int32_t* index, int64_t rows, int64_t width) {
  const Group<kBlock> group;
  for (int64_t i = group.first(); i < rows; i += group.step()) {
    const int64_t source = index[i];
    const bool here = source >= 0 && source < sources;
    const int64_t row = here ? source / choices : 0, choice = here ? source - row * choices : 0;
    const T* from = x + row * stride + choice * choiceStride;
    for (int64_t j = int64_t{kWidth} * group.lane(); j < width; j += kWidth * group.kSize) {
      Pack<T, kWidth> pack = {};
      if (here) pack = *reinterpret_cast<const Pack<T, kWidth>*>(from + j);
      *reinterpret_cast<Pack<T, kWidth>*>(y[i] + j) = pack;
    }
  }
}

// Moves elements of any type of the same size.
template <class T>
void permute(const Call& call) {
  const Operand &x = call.in[0], &index = call.in[1], &y = call.out[0];
  const int64_t rows = y.dim(0), width = y.dim(1), size = sizeof(T);
  const bool aligned = wideRows(y) && alignedTo(x.data, 16) && (x.dim(0) <= 1 || x.stride(0) * size % 16 == 0) &&
                       (x.dim(1) <= 1 || x.stride(1) * size % 16 == 0);
  withBool(takesBlock(width * size), [&](auto block) {
    withBool(aligned, [&](auto wide) {
      constexpr int kWidth = wide ? 16 / static_cast<int>(sizeof(T)) : 1;
      launchGroups<block>(deviceOf(call), rows, permuteRows<kWidth, block, T>, rowsOf<T>(y),
                          static_cast<const T*>(x.as<T>()), x.stride(0), x.stride(1), x.dim(1), x.dim(0) * x.dim(1),
                          static_cast<const int32_t*>(index.as<int32_t>()), rows, width);
    });
  });
}

void runPermute(const Call& call) {
  if (call.out[0].view->count() == 0) return;
  switch (dtypeSize(call.out[0].view->dtype)) {
    case 2:
      return permute<uint16_t>(call);
    case 4:
      return permute<uint32_t>(call);
    default:
      return permute<uint64_t>(call);
  }
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(routing, {Op::topk, checkTopk, runTopk}, {Op::expert_capacity, checkExpertCapacity, runCapacity},
                      {Op::expert_sort, checkExpertSort, runSort}, {Op::permute_rows, checkPermuteRows, runPermute})
