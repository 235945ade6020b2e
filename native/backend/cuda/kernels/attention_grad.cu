// attention_grad: dq, dk and dv from probabilities recomputed tile by tile. One pass by keys gives dk and dv, one by
// queries gives dq: every sum is one block's, in a fixed order (heads, then tiles), and nothing is added atomically.
#include <cmath>

#include "backend/cuda/kernels/attention_mma.h"
#include "backend/cuda/kernels/parts.h"

namespace meshwork::cuda {
namespace {

// The operands of a pass; T is the storage type, S the type of the sums.
template <class T, class S>
struct Operands {
  AttentionShape x;
  Heads<const T> q, k, v, out, dout;
  Norms<const Compute<T>> lse;
  Heads<T> dq, dk, dv;
  const S* delta;  // [b, h, t]: the sums of out * dout; null where the workspace is too small for them

  __device__ S deltaOf(int64_t b, int64_t h, int64_t i) const {
    if (delta != nullptr) return delta[(b * x.heads + h) * x.length + i];
    S sum = 0;
    for (int e = 0; e < x.valueFeatures; ++e) {
      sum = multiplyAdd(static_cast<S>(widen(out.at(b, i, h)[e])), static_cast<S>(widen(dout.at(b, i, h)[e])), sum);
    }
    return sum;
  }
  // Queries that saw no key, and rows beyond the queries, get no probability: e^-inf.
  __device__ S normOf(int64_t b, int64_t h, int64_t i) const {
    if (i >= x.length) return -noScore<S>();
    const S norm = static_cast<S>(lse.at(b, h, i));
    return norm == noScore<S>() ? -norm : norm;
  }
};

// A row a thread, in the order in which deltaOf() adds.
template <class T, class S>
__global__ void __launch_bounds__(kFmaThreads) sumDelta(Operands<T, S> o, S* delta) {
  const int64_t rows = o.x.batch * o.x.heads * o.x.length;
  const int64_t step = int64_t{gridDim.x} * kFmaThreads;
  for (int64_t at = int64_t{blockIdx.x} * kFmaThreads + threadIdx.x; at < rows; at += step) {
    const int64_t i = at % o.x.length, head = at / o.x.length;
    delta[at] = o.deltaOf(head / o.x.heads, head % o.x.heads, i);
  }
}

// What a block computes: the tile of keys of a key head from `first` on, for all its query heads, or the tile of
// queries of one head. The other tiles it meets are numbered through the heads.
template <bool kForKeys>
struct Part {
  int64_t batch, group, head, heads, first, count, others;

  __device__ Part(const AttentionShape& x, int64_t each) {
    const int64_t perBatch = kForKeys ? x.groups : x.heads, blocks = x.batch * perBatch, at = blockIdx.x;
    count = kForKeys ? x.keys : x.length;
    others = kForKeys ? x.length : x.keys;
    const int64_t tiles = (count + each - 1) / each, tile = at / blocks;
    first = (kForKeys ? tile : tiles - 1 - tile) * each;  // the longest first, where the mask is causal
    batch = at % blocks / perBatch;
    const int64_t which = at % blocks % perBatch;
    group = kForKeys ? which : which / x.repeats;
    head = kForKeys ? which * x.repeats : which;
    heads = kForKeys ? x.repeats : 1;
  }
  __device__ Ranges own(const AttentionShape& x, int each) const {
    return kForKeys ? x.keyRanges(batch, first, each) : x.queryRanges(batch, first, each);
  }
  __device__ Sight sight(const AttentionShape& x, const Ranges& mine, int64_t other, int each) const {
    return kForKeys ? x.sight(x.queryRanges(batch, other, each), mine) : x.sight(mine, x.keyRanges(batch, other, each));
  }
};

// ---- by fused multiply-adds ----

constexpr int kFmaOthers = 32;

template <class T, class S, int kRows, int kColumns, bool kForKeys>
__global__ void __launch_bounds__(kFmaThreads) gradByFma(Operands<T, S> o) {
  constexpr int kTileRows = 16 * kRows, kScores = kFmaOthers / 16, kPitch = kFmaOthers + 1;
  const AttentionShape& x = o.x;
  MESHWORK_DYNAMIC_SHARED(memory);
  S* left = reinterpret_cast<S*>(memory);
  S* right = left + kTileRows * kFmaPitch;
  S* weights = right + kFmaOthers * kFmaPitch;
  S* gradients = weights + kTileRows * kPitch;
  const int tx = static_cast<int>(threadIdx.x % 16), ty = static_cast<int>(threadIdx.x / 16);
  const Part<kForKeys> part(x, kTileRows);
  const Ranges mine = part.own(x, kTileRows);
  const S scale = static_cast<S>(x.scale);
  const int64_t b = part.batch;
  S first[kRows][kColumns] = {};                  // dk or dq
  S second[kForKeys ? kRows : 1][kColumns] = {};  // dv
  for (int64_t head = part.head; head < part.head + part.heads; ++head) {
    for (int64_t other = 0; other < part.others; other += kFmaOthers) {
      if (part.sight(x, mine, other, kFmaOthers) == Sight::none) continue;
      S scores[kRows][kScores] = {}, changes[kRows][kScores] = {};
      const int64_t mineHead = kForKeys ? part.group : head, otherHead = kForKeys ? head : part.group;
      multiplyRows(scores, left, right, kForKeys ? o.k : o.q, kForKeys ? o.q : o.k, b, part.first, part.count, mineHead,
                   other, part.others, otherHead, x.features);
      multiplyRows(changes, left, right, kForKeys ? o.v : o.dout, kForKeys ? o.dout : o.v, b, part.first, part.count,
                   mineHead, other, part.others, otherHead, x.valueFeatures);
      __syncthreads();  // the last tile's weights have been read
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int c = 0; c < kScores; ++c) {
          const int row = ty * kRows + r, column = tx + 16 * c;
          const int64_t i = kForKeys ? other + column : part.first + row;
          const int64_t j = kForKeys ? part.first + row : other + column;
          S weight = 0, gradient = 0;
          if (i < x.length && j < x.keys && x.visible(x.query(b, i), x.key(b, j))) {
            weight = exponential(multiplyAdd(scores[r][c], scale, -o.normOf(b, head, i)));
            gradient = weight * (changes[r][c] - o.deltaOf(b, head, i)) * scale;
          }
          weights[row * kPitch + column] = weight;
          gradients[row * kPitch + column] = gradient;
        }
      }
      addWeighted<kFmaOthers>(first, gradients, right, kForKeys ? o.q : o.k, b, other, part.others, otherHead,
                              x.features);
      if constexpr (kForKeys) {
        addWeighted<kFmaOthers>(second, weights, right, o.dout, b, other, part.others, otherHead, x.valueFeatures);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = part.first + ty * kRows + r;
    if (row >= part.count) continue;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = tx + 16 * c;
      if (column < x.features) {
        (kForKeys ? o.dk : o.dq).at(b, row, kForKeys ? part.group : part.head)[column] = narrow<T>(first[r][c]);
      }
      if constexpr (kForKeys) {
        if (column < x.valueFeatures) o.dv.at(b, row, part.group)[column] = narrow<T>(second[r][c]);
      }
    }
  }
}

// ---- by matrix instructions ----

constexpr int kMmaOthers = 32;

template <class T, int kFeatures, bool kForKeys>
__global__ void __launch_bounds__(kMmaThreads) gradByMma(Operands<T, float> o) {
  constexpr int kPitch = kFeatures + 8, kTile = kMmaOthers * kPitch, kTiles = kMmaOthers / 8;
  const AttentionShape& x = o.x;
  MESHWORK_DYNAMIC_SHARED(memory);
  T* leftScores = reinterpret_cast<T*>(memory);
  T* leftChanges = leftScores + kMmaRows * kPitch;
  T* tiles = leftChanges + kMmaRows * kPitch;  // the other tiles of both, twice
  const int lane = static_cast<int>(threadIdx.x % 32), row = static_cast<int>(threadIdx.x / 32) * 16;
  const Part<kForKeys> part(x, kMmaRows);
  const Ranges mine = part.own(x, kMmaRows);
  const int64_t b = part.batch;
  const Heads<const T>&mineFirst = kForKeys ? o.k : o.q, &mineSecond = kForKeys ? o.v : o.dout,
                    &otherFirst = kForKeys ? o.q : o.k, &otherSecond = kForKeys ? o.dout : o.v;
  // Other tiles, numbered through the heads; the number after the last is `end`.
  const int64_t perHead = (part.others + kMmaOthers - 1) / kMmaOthers, end = perHead * part.heads;
  const auto otherOf = [&](int64_t at) { return at % perHead * kMmaOthers; };
  const auto nextSeen = [&](int64_t at) {
    while (at < end && part.sight(x, mine, otherOf(at), kMmaOthers) == Sight::none) ++at;
    return at;
  };
  const auto start = [&](int64_t at, int stage) {
    if (at < end) {
      const int64_t head = kForKeys ? part.head + at / perHead : part.group;
      copyTile<kMmaOthers, kFeatures>(tiles + 2 * stage * kTile, otherFirst, b, otherOf(at), part.others, head,
                                      x.features);
      copyTile<kMmaOthers, kFeatures>(tiles + (2 * stage + 1) * kTile, otherSecond, b, otherOf(at), part.others, head,
                                      x.valueFeatures);
    }
    commitCopies();
  };
  const int64_t mineHead = kForKeys ? part.group : part.head;
  copyTile<kMmaRows, kFeatures>(leftScores, mineFirst, b, part.first, part.count, mineHead, x.features);
  copyTile<kMmaRows, kFeatures>(leftChanges, mineSecond, b, part.first, part.count, mineHead, x.valueFeatures);
  const int64_t own[2] = {part.first + row + lane / 4, part.first + row + lane / 4 + 8};
  Place places[2];
  float norms[2] = {0, 0}, deltas[2] = {0, 0};  // of own queries, times log2(e) as scores are
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    places[half] = kForKeys ? x.key(b, own[half]) : x.query(b, own[half]);
    if constexpr (!kForKeys) {
      norms[half] = o.normOf(b, part.head, own[half]) * kLog2E;
      deltas[half] = own[half] < x.length ? o.deltaOf(b, part.head, own[half]) : 0.0f;
    }
  }
  const float scale = static_cast<float>(x.scale);
  float first[kFeatures / 8][4] = {};                  // dk or dq
  float second[kForKeys ? kFeatures / 8 : 1][4] = {};  // dv
  int64_t at = nextSeen(0);
  start(at, 0);
  for (int stage = 0; at < end; stage ^= 1) {
    const int64_t next = nextSeen(at + 1), other = otherOf(at), head = part.head + at / perHead;
    start(next, stage ^ 1);
    waitCopies<1>();
    __syncthreads();
    const T *rightScores = tiles + 2 * stage * kTile, *rightChanges = rightScores + kTile;
    float scores[kTiles][4] = {}, changes[kTiles][4] = {};
    multiplyTiles<kFeatures, kMmaOthers>(scores, leftScores, row, rightScores);
    multiplyTiles<kFeatures, kMmaOthers>(changes, leftChanges, row, rightChanges);
    const bool masked = part.sight(x, mine, other, kMmaOthers) != Sight::all;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int64_t column = other + n * 8 + lane % 4 * 2 + c;
        const bool inside = column < part.others;
        const Place place = !masked ? Place{0, 0} : kForKeys ? x.query(b, column) : x.key(b, column);
        const float norm = kForKeys ? o.normOf(b, head, column) * kLog2E : 0;
        const float delta = kForKeys && inside ? o.deltaOf(b, head, column) : 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int i = 2 * half + c;
          const bool seen = inside && own[half] < part.count &&
                            (!masked || (kForKeys ? x.visible(place, places[half]) : x.visible(places[half], place)));
          const float weight = exp2f(fmaf(scores[n][i], scale * kLog2E, -(kForKeys ? norm : norms[half])));
          scores[n][i] = seen ? weight : 0.0f;
          changes[n][i] = scores[n][i] * (changes[n][i] - (kForKeys ? delta : deltas[half])) * scale;
        }
      }
    }
    addTiles<kFeatures, kMmaOthers>(first, changes, rightScores);
    if constexpr (kForKeys) addTiles<kFeatures, kMmaOthers>(second, scores, rightChanges);
    __syncthreads();  // before the stage is filled again
    at = next;
  }
  waitCopies<0>();
  const float factors[2] = {1, 1};
  writeTile<kFeatures>(kForKeys ? o.dk : o.dq, b, part.first, part.count, mineHead, x.features, row, first, factors);
  if constexpr (kForKeys) {
    writeTile<kFeatures>(o.dv, b, part.first, part.count, mineHead, x.valueFeatures, row, second, factors);
  }
}

// ---- on the host ----

template <class T, class S>
Operands<T, S> operandsOf(const Call& call, const AttentionShape& x) {
  Operands<T, S> o = {x,
                      headsOf<const T>(call.in[0]),
                      headsOf<const T>(call.in[1]),
                      headsOf<const T>(call.in[2]),
                      headsOf<const T>(call.in[3]),
                      headsOf<const T>(call.in[5]),
                      normsOf<const Compute<T>>(call.in[4]),
                      headsOf<T>(call.out[0]),
                      headsOf<T>(call.out[1]),
                      headsOf<T>(call.out[2]),
                      nullptr};
  const int64_t rows = x.batch * x.heads * x.length;
  if (rows == 0 || rows > kWorkspaceBytes / static_cast<int64_t>(sizeof(S))) return o;
  Device& device = deviceOf(call);
  S* delta = reinterpret_cast<S*>(device.workspace);
  launch(device, blocksFor(device, rows, kFmaThreads), kFmaThreads, 0, sumDelta<T, S>, o, delta);
  o.delta = delta;
  return o;
}

template <class T, int kFeatures>
void launchMma(const Call& call, const Operands<T, float>& o) {
  constexpr size_t kShared = (2 * kMmaRows + 4 * kMmaOthers) * (kFeatures + 8) * sizeof(T);
  const AttentionShape& x = o.x;
  launch(deviceOf(call), attentionBlocks(tilesOf(x.keys, kMmaRows), x.batch * x.groups), kMmaThreads, kShared,
         gradByMma<T, kFeatures, true>, o);
  launch(deviceOf(call), attentionBlocks(tilesOf(x.length, kMmaRows), x.batch * x.heads), kMmaThreads, kShared,
         gradByMma<T, kFeatures, false>, o);
}

template <class T, class S, int kRows, int kColumns>
void launchFma(const Call& call, const Operands<T, S>& o) {
  constexpr int kTile = 16 * kRows;
  constexpr size_t kShared = (kTile * (kFmaPitch + 2 * (kFmaOthers + 1)) + kFmaOthers * kFmaPitch) * sizeof(S);
  const AttentionShape& x = o.x;
  launch(deviceOf(call), attentionBlocks(tilesOf(x.keys, kTile), x.batch * x.groups), kFmaThreads, kShared,
         gradByFma<T, S, kRows, kColumns, true>, o);
  launch(deviceOf(call), attentionBlocks(tilesOf(x.length, kTile), x.batch * x.heads), kFmaThreads, kShared,
         gradByFma<T, S, kRows, kColumns, false>, o);
}

void runAttentionGrad(const Call& call) {
  const AttentionShape x = attentionShape(call, 6);
  const DType dtype = call.in[0].view->dtype;
  const int features = std::max(x.features, x.valueFeatures);
  withSums(x, dtype, [&](auto storage, auto sum) {
    using T = typename decltype(storage)::type;
    using S = typename decltype(sum)::type;
    const auto o = operandsOf<T, S>(call, x);
    if constexpr (kIsShort<T>) {
      if (features <= 64) return launchMma<T, 64>(call, o);
      if (features <= kMmaFeatures) return launchMma<T, kMmaFeatures>(call, o);
    }
    features <= kFmaFeatures ? launchFma<T, S, 4, 8>(call, o) : launchFma<T, S, 1, 32>(call, o);
  });
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(attention_grad, {Op::attention_grad, checkAttentionGrad, runAttentionGrad})
