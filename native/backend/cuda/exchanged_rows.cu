// Moves rows by counts that lie on the device: first where each rank's rows begin, then a warp for every row finds its
// place there and copies it. Nothing depends on how many rows there are but what is in the rows.
#include <algorithm>

#include "backend/cuda/blocks.h"
#include "backend/cuda/exchanged_rows.h"
#include "backend/cuda/kernels/dialect.h"
#include "backend/cuda/launch.h"

namespace meshwork::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kRowsOfBlock = kThreads / kWarp;

// The counts as sums over what comes before. `all` counts expert after expert, in each the ranks in order: how a rank
// has the rows that came to it. `own` counts the experts of one rank: how it has the rows that it brings.
struct Plan {
  int64_t* all;  // [experts * ranks + 1]
  int64_t* own;  // [ranks, experts + 1]
  int64_t ranks, experts;

  __device__ int64_t allBefore(int64_t expert, int64_t rank) const { return all[expert * ranks + rank]; }
  __device__ int64_t ownBefore(int64_t rank, int64_t expert) const { return own[rank * (experts + 1) + expert]; }
};

Plan planOf(const RowExchange& exchange) {
  const auto ranks = static_cast<int64_t>(exchange.owners.size());
  auto* all = reinterpret_cast<int64_t*>(exchange.plan);
  return Plan{all, all + exchange.experts * ranks + 1, ranks, exchange.experts};
}

// Blocks 0 .. ranks - 1 sum the experts of a rank, the last one sums them all. Each thread has a run of the counts.
__global__ void __launch_bounds__(kThreads) sumCounts(Plan plan, const int32_t* counts) {
  MESHWORK_SHARED_ARRAY(int64_t, sums, [kThreads]);
  const int64_t rank = blockIdx.x;
  const bool all = rank == plan.ranks;
  const int64_t n = all ? plan.ranks * plan.experts : plan.experts;
  int64_t* to = all ? plan.all : plan.own + rank * (plan.experts + 1);
  const auto countAt = [&](int64_t i) {
    const int64_t at = all ? i % plan.ranks * plan.experts + i / plan.ranks : rank * plan.experts + i;
    return int64_t{counts[at] > 0 ? counts[at] : 0};
  };
  const int64_t each = (n + kThreads - 1) / kThreads;
  const int64_t begin = min(each * threadIdx.x, n), end = min(begin + each, n);
  int64_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += countAt(i);
  sums[threadIdx.x] = sum;
  __syncthreads();
  int64_t before = 0;
  for (int t = 0; t < static_cast<int>(threadIdx.x); ++t) before += sums[t];
  for (int64_t i = begin; i < end; ++i) {
    to[i] = before;
    before += countAt(i);
  }
  if (threadIdx.x == kThreads - 1) to[n] = before;
}

// Which rows a launch moves. Rows that are packed are those of one rank for one other, in the order of the taker's.
struct Move {
  Plan plan;
  int32_t firstExpert[kMaxReduceRanks + 1];  // of each rank
  int me;
  bool back;
  int64_t units;  // of a row
  const std::byte* sources[kMaxReduceRanks];
  int64_t sourceRows[kMaxReduceRanks];
  uint64_t packed;  // a bit for each source
  std::byte* targets[kMaxReduceRanks];
  int64_t targetRows;
};

struct Place {
  int source = -1;
  int64_t row = 0;
};

// The last i in [begin, end) with before(i) <= at, where before(begin) <= at.
template <class F>
__device__ int64_t lastAtMost(int64_t begin, int64_t end, int64_t at, const F& before) {
  while (end - begin > 1) {
    const int64_t middle = begin + (end - begin) / 2;
    if (before(middle) <= at) {
      begin = middle;
    } else {
      end = middle;
    }
  }
  return begin;
}

// Row i of what comes to `me` on the way there: expert after expert, in each the ranks'.
__device__ Place arriving(const Move& move, int64_t i) {
  const Plan& plan = move.plan;
  const int64_t first = move.firstExpert[move.me], end = move.firstExpert[move.me + 1];
  const int64_t at = plan.all[first * plan.ranks] + i;
  if (at >= plan.all[end * plan.ranks]) return Place{};
  const int64_t s = lastAtMost(first * plan.ranks, end * plan.ranks, at, [&](int64_t n) { return plan.all[n]; });
  const int64_t expert = s / plan.ranks, rank = s % plan.ranks;
  const int64_t begin = (move.packed >> rank & 1u) != 0 ? plan.ownBefore(rank, first) : 0;
  return Place{static_cast<int>(rank), plan.ownBefore(rank, expert) - begin + at - plan.all[s]};
}

// Row i of what `me` brought: expert after expert, from the ranks that have them.
__device__ Place returning(const Move& move, int64_t i) {
  const Plan& plan = move.plan;
  if (i >= plan.ownBefore(move.me, plan.experts)) return Place{};
  const int64_t expert = lastAtMost(0, plan.experts, i, [&](int64_t e) { return plan.ownBefore(move.me, e); });
  const int64_t owner = lastAtMost(0, plan.ranks, expert, [&](int64_t r) { return move.firstExpert[r]; });
  const int64_t first = move.firstExpert[owner];
  if ((move.packed >> owner & 1u) != 0) return Place{static_cast<int>(owner), i - plan.ownBefore(move.me, first)};
  const int64_t before = plan.allBefore(expert, move.me) - plan.allBefore(first, 0);
  return Place{static_cast<int>(owner), before + i - plan.ownBefore(move.me, expert)};
}

// Row i of what `me` has for rank `to`.
__device__ Place leaving(const Move& move, int64_t to, int64_t i) {
  const Plan& plan = move.plan;
  const int64_t begin = move.back ? move.firstExpert[move.me] : move.firstExpert[to];
  const int64_t end = move.back ? move.firstExpert[move.me + 1] : move.firstExpert[to + 1];
  const int64_t bringer = move.back ? to : move.me;
  const int64_t at = plan.ownBefore(bringer, begin) + i;
  if (at >= plan.ownBefore(bringer, end)) return Place{};
  if (!move.back) return Place{0, at};
  const int64_t expert = lastAtMost(begin, end, at, [&](int64_t e) { return plan.ownBefore(bringer, e); });
  const int64_t before = plan.allBefore(expert, bringer) - plan.allBefore(begin, 0);
  return Place{0, before + at - plan.ownBefore(bringer, expert)};
}

// A warp for a row of a target (blockIdx.y), in units of T.
template <class T, bool kPack>
__global__ void __launch_bounds__(kThreads) moveRows(Move move) {
  std::byte* const target = move.targets[blockIdx.y];
  if (target == nullptr) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t step = int64_t{gridDim.x} * kRowsOfBlock;
  for (int64_t i = int64_t{blockIdx.x} * kRowsOfBlock + threadIdx.x / kWarp; i < move.targetRows; i += step) {
    const Place place = kPack ? leaving(move, blockIdx.y, i) : move.back ? returning(move, i) : arriving(move, i);
    const bool there = place.source >= 0 && place.row < move.sourceRows[max(place.source, 0)];
    if (kPack && !there) continue;
    T* const to = reinterpret_cast<T*>(target) + i * move.units;
    if (there) {
      const T* const from = reinterpret_cast<const T*>(move.sources[place.source]) + place.row * move.units;
      for (int64_t u = lane; u < move.units; u += kWarp) to[u] = from[u];
    } else {
      for (int64_t u = lane; u < move.units; u += kWarp) to[u] = T{};
    }
  }
}

Move moveOf(const RowExchange& exchange) {
  Move move = {};
  move.plan = planOf(exchange);
  move.me = exchange.me;
  move.back = exchange.back;
  int32_t first = 0;
  for (size_t r = 0; r < exchange.owners.size(); ++r) {
    move.firstExpert[r] = first;
    first += exchange.owners[r];
  }
  move.firstExpert[exchange.owners.size()] = first;
  return move;
}

template <class T, bool kPack>
void launchAs(Device& device, cudaStream_t stream, Move& move, int64_t width, unsigned targets) {
  move.units = width / static_cast<int64_t>(sizeof(T));
  const dim3 grid(blocksFor(device, move.targetRows, kRowsOfBlock), targets);
  launchOn(device, stream, grid, dim3(kThreads), 0, moveRows<T, kPack>, move);
}

// In the widest unit in which all rows begin and end.
template <bool kPack>
void launchMove(Device& device, cudaStream_t stream, Move& move, int64_t width, unsigned targets) {
  auto bits = static_cast<uint64_t>(width);
  for (const std::byte* source : move.sources) bits |= reinterpret_cast<uint64_t>(source);
  for (const std::byte* target : move.targets) bits |= reinterpret_cast<uint64_t>(target);
  const uint64_t unit = std::min<uint64_t>(bits & (~bits + 1), 16);
  if (unit == 16) return launchAs<uint4, kPack>(device, stream, move, width, targets);
  if (unit == 8) return launchAs<uint64_t, kPack>(device, stream, move, width, targets);
  if (unit == 4) return launchAs<uint32_t, kPack>(device, stream, move, width, targets);
  if (unit == 2) return launchAs<uint16_t, kPack>(device, stream, move, width, targets);
  if (unit == 1) return launchAs<uint8_t, kPack>(device, stream, move, width, targets);
}

}  // namespace

void planRows(Device& device, cudaStream_t stream, const RowExchange& exchange) {
  const dim3 blocks(static_cast<unsigned>(exchange.owners.size()) + 1);
  launchOn(device, stream, blocks, dim3(kThreads), 0, sumCounts, planOf(exchange), exchange.counts);
}

void packRows(Device& device, cudaStream_t stream, const RowExchange& exchange, const Rows& own,
              std::span<std::byte* const> slots, int64_t room) {
  Move move = moveOf(exchange);
  move.sources[0] = own.data;
  move.sourceRows[0] = own.count;
  std::copy(slots.begin(), slots.end(), move.targets);
  move.targetRows = room;
  if (exchange.width == 0) return;
  launchMove<true>(device, stream, move, exchange.width, static_cast<unsigned>(slots.size()));
}

void takeRows(Device& device, cudaStream_t stream, const RowExchange& exchange, std::span<const RowSource> sources,
              const Rows& to) {
  Move move = moveOf(exchange);
  for (size_t r = 0; r < sources.size(); ++r) {
    move.sources[r] = sources[r].data;
    move.sourceRows[r] = sources[r].count;
    if (sources[r].packed) move.packed |= uint64_t{1} << r;
  }
  move.targets[0] = to.data;
  move.targetRows = to.count;
  if (exchange.width == 0) return;
  launchMove<false>(device, stream, move, exchange.width, 1);
}

}  // namespace meshwork::cuda
