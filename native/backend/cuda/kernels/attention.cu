// attention: softmax(scale q k^T + mask) v by blocks of keys with a running maximum and sum, never storing t x s.
// bfloat16 and float16 with up to 128 features go through matrix instructions, all else through fused multiply-adds.
#include <cmath>

#include "backend/cuda/kernels/attention_mma.h"

namespace meshwork::cuda {
namespace {

constexpr int kFmaKeys = 64;  // of a tile
constexpr int kMmaKeys = 64;

// Which rows a block computes. The last tiles of queries come first: with a causal mask they are the longest.
struct Rows {
  int64_t batch, head, first;
  __device__ Rows(const AttentionShape& x, int64_t each) {
    const int64_t others = x.batch * x.heads, tiles = (x.length + each - 1) / each, at = blockIdx.x;
    first = (tiles - 1 - at / others) * each;
    batch = at % others / x.heads;
    head = at % others % x.heads;
  }
};

// T is the storage type, S the type of the sums; a thread has kRows rows and kColumns columns of the result.
template <class T, class S, int kRows, int kColumns>
__global__ void __launch_bounds__(kFmaThreads) attentionByFma(AttentionShape x, Heads<const T> q, Heads<const T> k,
                                                              Heads<const T> v, Heads<T> out, Norms<Compute<T>> lse) {
  constexpr int kTileRows = 16 * kRows, kScores = kFmaKeys / 16;
  MESHWORK_DYNAMIC_SHARED(memory);
  S* left = reinterpret_cast<S*>(memory);
  S* right = left + kTileRows * kFmaPitch;
  S* weights = right + kFmaKeys * kFmaPitch;
  const int tx = static_cast<int>(threadIdx.x % 16), ty = static_cast<int>(threadIdx.x / 16);
  const Rows rows(x, kTileRows);
  const int64_t group = rows.head / x.repeats;
  const Ranges seen = x.queryRanges(rows.batch, rows.first, kTileRows);
  const S scale = static_cast<S>(x.scale);
  Place places[kRows];
  S sums[kRows][kColumns] = {}, most[kRows], total[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    places[r] = x.query(rows.batch, rows.first + ty * kRows + r);
    most[r] = noScore<S>();
    total[r] = 0;
  }
  for (int64_t key = 0; key < x.keys; key += kFmaKeys) {
    if (x.sight(seen, x.keyRanges(rows.batch, key, kFmaKeys)) == Sight::none) continue;
    S scores[kRows][kScores] = {};
    multiplyRows(scores, left, right, q, k, rows.batch, rows.first, x.length, rows.head, key, x.keys, group,
                 x.features);
    Place others[kScores];
#pragma unroll
    for (int c = 0; c < kScores; ++c) others[c] = x.key(rows.batch, key + tx + 16 * c);
    __syncthreads();  // the last tile's weights have been read
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      S highest = most[r];
#pragma unroll
      for (int c = 0; c < kScores; ++c) {
        const bool inside = key + tx + 16 * c < x.keys && x.visible(places[r], others[c]);
        scores[r][c] = inside ? scores[r][c] * scale : noScore<S>();
        highest = fmax(highest, scores[r][c]);
      }
#pragma unroll
      for (int lanes = 8; lanes > 0; lanes /= 2) highest = fmax(highest, __shfl_xor_sync(kAllLanes, highest, lanes));
      const S base = highest == noScore<S>() ? S(0) : highest;  // of blind rows: e^-inf is 0
      const S factor = exponential(most[r] - base);
      S sum = 0;
#pragma unroll
      for (int c = 0; c < kScores; ++c) {
        const S weight = exponential(scores[r][c] - base);
        weights[(ty * kRows + r) * (kFmaKeys + 1) + tx + 16 * c] = weight;
        sum += weight;
      }
      total[r] = multiplyAdd(total[r], factor, sum);
      most[r] = highest;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sums[r][c] *= factor;
    }
    addWeighted<kFmaKeys>(sums, weights, right, v, rows.batch, key, x.keys, group, x.valueFeatures);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) total[r] += __shfl_xor_sync(kAllLanes, total[r], lanes);
    const int64_t i = rows.first + ty * kRows + r;
    if (i >= x.length) continue;
    const bool blind = most[r] == noScore<S>();
    if (tx == 0) {
      lse.at(rows.batch, rows.head, i) = static_cast<Compute<T>>(blind ? noScore<S>() : most[r] + logarithm(total[r]));
    }
    const S factor = blind ? S(0) : S(1) / total[r];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = tx + 16 * c;
      if (column < x.valueFeatures) out.at(rows.batch, i, rows.head)[column] = narrow<T>(sums[r][c] * factor);
    }
  }
}

// Scores of 16 rows by kMmaKeys, in the order of mmaShort's C, become weights; the running state follows. Scores are
// taken times log2(e).
struct Running {
  float most[2], total[2];

  template <int kCount>
  __device__ void add(float (&scores)[kMmaKeys / 8][4], float (&sums)[kCount][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = noScore<float>();
#pragma unroll
      for (int n = 0; n < kMmaKeys / 8; ++n) {
        highest = fmaxf(highest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 2));
      highest = fmaxf(most[half], highest);
      const float base = highest == noScore<float>() ? 0.0f : highest;
      const float factor = exp2f(most[half] - base);
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kMmaKeys / 8; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[n][i] = exp2f(scores[n][i] - base);
          sum += scores[n][i];
        }
      }
      total[half] = fmaf(total[half], factor, sum);
      most[half] = highest;
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
        sums[n][2 * half] *= factor;
        sums[n][2 * half + 1] *= factor;
      }
    }
  }
};

template <class T, int kFeatures>
__global__ void __launch_bounds__(kMmaThreads) attentionByMma(AttentionShape x, Heads<const T> q, Heads<const T> k,
                                                              Heads<const T> v, Heads<T> out, Norms<float> lse) {
  constexpr int kTile = kMmaKeys * (kFeatures + 8);
  MESHWORK_DYNAMIC_SHARED(memory);
  T* queries = reinterpret_cast<T*>(memory);
  T* tiles = queries + kMmaRows * (kFeatures + 8);  // keys and values, twice
  const int lane = static_cast<int>(threadIdx.x % 32), row = static_cast<int>(threadIdx.x / 32) * 16;
  const Rows rows(x, kMmaRows);
  const int64_t group = rows.head / x.repeats;
  const Ranges seen = x.queryRanges(rows.batch, rows.first, kMmaRows);
  const auto sightOf = [&](int64_t key) { return x.sight(seen, x.keyRanges(rows.batch, key, kMmaKeys)); };
  const auto nextSeen = [&](int64_t key) {
    while (key < x.keys && sightOf(key) == Sight::none) key += kMmaKeys;
    return key;
  };
  const auto start = [&](int64_t key, int stage) {
    if (key < x.keys) {
      copyTile<kMmaKeys, kFeatures>(tiles + 2 * stage * kTile, k, rows.batch, key, x.keys, group, x.features);
      copyTile<kMmaKeys, kFeatures>(tiles + (2 * stage + 1) * kTile, v, rows.batch, key, x.keys, group,
                                    x.valueFeatures);
    }
    commitCopies();
  };
  copyTile<kMmaRows, kFeatures>(queries, q, rows.batch, rows.first, x.length, rows.head, x.features);
  const Place places[2] = {x.query(rows.batch, rows.first + row + lane / 4),
                           x.query(rows.batch, rows.first + row + lane / 4 + 8)};
  const float scale = static_cast<float>(x.scale) * kLog2E;
  float sums[kFeatures / 8][4] = {};
  Running running = {{noScore<float>(), noScore<float>()}, {0, 0}};
  int64_t key = nextSeen(0);
  start(key, 0);
  for (int stage = 0; key < x.keys; stage ^= 1) {
    const int64_t next = nextSeen(key + kMmaKeys);
    start(next, stage ^ 1);
    waitCopies<1>();
    __syncthreads();
    float scores[kMmaKeys / 8][4] = {};
    multiplyTiles<kFeatures, kMmaKeys>(scores, queries, row, tiles + 2 * stage * kTile);
    const bool masked = key + kMmaKeys > x.keys || sightOf(key) != Sight::all;
#pragma unroll
    for (int n = 0; n < kMmaKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] *= scale;
    }
    if (masked) {
#pragma unroll
      for (int n = 0; n < kMmaKeys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int64_t j = key + n * 8 + lane % 4 * 2 + c;
          const Place place = x.key(rows.batch, j);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            if (j >= x.keys || !x.visible(places[half], place)) scores[n][2 * half + c] = noScore<float>();
          }
        }
      }
    }
    running.add(scores, sums);
    addTiles<kFeatures, kMmaKeys>(sums, scores, tiles + (2 * stage + 1) * kTile);
    __syncthreads();  // before the stage is filled again
    key = next;
  }
  waitCopies<0>();
  float factors[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = running.total[half];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    const bool blind = running.most[half] == noScore<float>();
    factors[half] = blind ? 0.0f : 1.0f / total;
    const int64_t i = rows.first + row + lane / 4 + 8 * half;
    if (lane % 4 == 0 && i < x.length) {
      lse.at(rows.batch, rows.head, i) = blind ? noScore<float>() : running.most[half] / kLog2E + logf(total);
    }
  }
  writeTile<kFeatures>(out, rows.batch, rows.first, x.length, rows.head, x.valueFeatures, row, sums, factors);
}

template <class T, int kFeatures>
void launchMma(const Call& call, const AttentionShape& x) {
  constexpr size_t kShared = (kMmaRows + 4 * kMmaKeys) * (kFeatures + 8) * sizeof(T);
  launch(deviceOf(call), attentionBlocks(tilesOf(x.length, kMmaRows), x.batch * x.heads), kMmaThreads, kShared,
         attentionByMma<T, kFeatures>, x, headsOf<const T>(call.in[0]), headsOf<const T>(call.in[1]),
         headsOf<const T>(call.in[2]), headsOf<T>(call.out[0]), normsOf<float>(call.out[1]));
}

template <class T, class S, int kRows, int kColumns>
void launchFma(const Call& call, const AttentionShape& x) {
  constexpr size_t kShared = (16 * kRows * (kFmaPitch + kFmaKeys + 1) + kFmaKeys * kFmaPitch) * sizeof(S);
  launch(deviceOf(call), attentionBlocks(tilesOf(x.length, 16 * kRows), x.batch * x.heads), kFmaThreads, kShared,
         attentionByFma<T, S, kRows, kColumns>, x, headsOf<const T>(call.in[0]), headsOf<const T>(call.in[1]),
         headsOf<const T>(call.in[2]), headsOf<T>(call.out[0]), normsOf<Compute<T>>(call.out[1]));
}

void runAttention(const Call& call) {
  const AttentionShape x = attentionShape(call, 3);
  if (x.batch == 0 || x.length == 0 || x.heads == 0) return;
  const DType dtype = call.in[0].view->dtype;
  const int features = std::max(x.features, x.valueFeatures);
  withSums(x, dtype, [&](auto storage, auto sum) {
    using T = typename decltype(storage)::type;
    using S = typename decltype(sum)::type;
    if constexpr (kIsShort<T>) {
      if (features <= 64) return launchMma<T, 64>(call, x);
      if (features <= kMmaFeatures) return launchMma<T, kMmaFeatures>(call, x);
    }
    x.valueFeatures <= kFmaFeatures ? launchFma<T, S, 4, 8>(call, x) : launchFma<T, S, 1, 32>(call, x);
  });
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(attention, {Op::attention, checkAttention, runAttention})
