// What attention and attention_grad share: dims, which query sees which key, and scratch memory.
//
// Scores are held transposed, [key][query], so that a vector's lanes are queries: the softmax needs no sums across
// lanes, and the probabilities are the right side of the next product as they lie.
#pragma once
#include <limits>

#include "backend/checks/attention.h"
#include "backend/cpu/gemm.h"
#include "runtime/pool.h"

namespace meshwork::MESHWORK_ISA {

MESHWORK_INLINE int64_t attentionCeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
template <class S>
MESHWORK_INLINE int64_t wholeVectors(int64_t n) {
  return attentionCeilDiv(n, kLanes<S>) * kLanes<S>;
}

// Queries and keys of one block, by the features' size alone.
template <class S>
MESHWORK_INLINE int64_t attentionBlock(int64_t features) {
  return features * static_cast<int64_t>(sizeof(S)) <= 1024 ? 128 : 64;
}

// Hands out pieces of a thread's workspace, each on its own cache lines. Without a workspace it only counts.
class Scratch {
 public:
  explicit Scratch(std::byte* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  size_t bytes_ = 0;
};

// Scores are held in the unit whose power is cheapest: with float32 a score is an exponent of 2, with float64 of e.
template <class S>
constexpr double kScoreUnit = std::is_same_v<S, float> ? 1.4426950408889634 : 1;

// 2^x with a relative error below 2^-22: 0 below 2^-127, a NaN stays. By fma, where the set has it.
MESHWORK_INLINE F32 power(F32 x) {
  constexpr float kLeast = MESHWORK_ISA_LEVEL == 2 ? -200.0f : -127.0f;
  const F32 clamped = min(splat(128.0f), max(splat(kLeast), x));  // in this order a NaN passes
  const F32 n = roundEven(clamped);
  const F32 f = clamped - n;
  F32 p = splat(1.326472731e-03f);
  p = fma(p, f, splat(9.671512991e-03f));
  p = fma(p, f, splat(5.550733581e-02f));
  p = fma(p, f, splat(2.402224243e-01f));
  p = fma(p, f, splat(6.931470037e-01f));
  p = fma(p, f, splat(1.0f));
#if MESHWORK_ISA_LEVEL == 2
  return (F32)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return p * bitCast<F32>((__builtin_convertvector(n, I32) + 127) << 23);
#endif
}
MESHWORK_INLINE F64 power(F64 x) { return exp(x); }

// The operands of either op; `base` is the number of inputs before the optional ones.
struct AttentionOperands {
  const Operand &q, &k, &v;
  const Operand *positionsQ = nullptr, *positionsK = nullptr, *segmentsQ = nullptr, *segmentsK = nullptr;
  bool causal;
  double scale;
  int64_t batch, length, keys, heads, groups, repeats, features, valueFeatures;  // b, t, s, h, g, r, d, e

  AttentionOperands(const Call& call, int base) : q(call.in[0]), k(call.in[1]), v(call.in[2]) {
    const int32_t flags = call.attrs[attr::attention::flags];
    causal = (flags & attention_flag::causal) != 0;
    scale = call.floatAttr(attr::attention::scale);
    int next = base;
    if (flags & attention_flag::positions) {
      positionsQ = &call.in[next++];
      positionsK = &call.in[next++];
    }
    if (flags & attention_flag::segments) {
      segmentsQ = &call.in[next++];
      segmentsK = &call.in[next];
    }
    batch = q.dim(0), length = q.dim(1), keys = k.dim(1), heads = q.dim(2), groups = k.dim(2);
    repeats = groups > 0 ? heads / groups : 0;
    features = q.dim(3), valueFeatures = v.dim(3);
  }
};

// Whether float32 attention computes in float64, and bfloat16 attention in float32 throughout, without rounding
// probabilities to multiply pairs: small problems do, as small products do (see matmul.cc).
inline bool isSmall(const AttentionOperands& x) {
  constexpr double kMostProducts = 1 << 20;  // b h t s d
  double products = static_cast<double>(std::max(x.features, x.valueFeatures));
  for (int64_t dim : {x.batch, x.heads, x.length, x.keys}) products *= static_cast<double>(dim);
  return products <= kMostProducts;
}

// Element [b, i, head, 0] of a [b, t, h, d] operand.
template <class T>
MESHWORK_INLINE T* headRow(const Operand& x, int64_t b, int64_t i, int64_t head) {
  return x.as<T>() + b * x.stride(0) + i * x.stride(1) + head * x.stride(2);
}

// Positions and segments of a run of queries or keys, in integers as wide as S.
template <class S>
struct Indices {
  using Int = std::conditional_t<sizeof(S) == 8, int64_t, int32_t>;
  Int* position;
  Int* segment;
  Int leastPosition, mostPosition, leastSegment, mostSegment;

  void allot(Scratch& scratch, int64_t count) {
    position = scratch.take<Int>(count);
    segment = scratch.take<Int>(count);
  }
  // Entries [0, count) from elements [first, first + count); without an operand, the index and segment 0.
  void read(const Operand* positions, const Operand* segments, int64_t b, int64_t first, int64_t count) {
    fill(positions, b, first, count, true, position, leastPosition, mostPosition);
    fill(segments, b, first, count, false, segment, leastSegment, mostSegment);
  }

 private:
  static void fill(const Operand* from, int64_t b, int64_t first, int64_t count, bool indices, Int* to, Int& least,
                   Int& most) {
    least = std::numeric_limits<Int>::max();
    most = std::numeric_limits<Int>::lowest();
    for (int64_t i = 0; i < count; ++i) {
      const Int value = from
                            ? static_cast<Int>(from->as<int32_t>()[b * from->stride(0) + (first + i) * from->stride(1)])
                        : indices ? static_cast<Int>(first + i)
                                  : Int{0};
      to[i] = value;
      least = std::min(least, value);
      most = std::max(most, value);
    }
  }
};

enum class Sight { none, some, all };

// What the queries of a block see of the keys of a block, as far as the ranges of positions and segments tell.
template <class S>
Sight sight(const Indices<S>& queries, const Indices<S>& keys, bool causal) {
  const bool apart = queries.mostSegment < keys.leastSegment || keys.mostSegment < queries.leastSegment;
  if (apart || (causal && keys.leastPosition > queries.mostPosition)) return Sight::none;
  const bool alike = queries.leastSegment == queries.mostSegment && keys.leastSegment == keys.mostSegment;
  return alike && (!causal || keys.mostPosition <= queries.leastPosition) ? Sight::all : Sight::some;
}

// Lanes `at` onwards of the queries that see key `key`.
template <class S>
MESHWORK_INLINE auto visible(const Indices<S>& queries, int64_t at, const Indices<S>& keys, int64_t key, bool causal) {
  using Int = typename Indices<S>::Int;
  auto seen = load(queries.segment + at) == splat<Int>(keys.segment[key]);
  if (causal) seen = seen & (load(queries.position + at) >= splat<Int>(keys.position[key]));
  return seen;
}

// How many of the first `count` keys a causal mask leaves to queries up to `position`: whole panels of a packed left
// side.
template <class S>
int64_t keyLimit(const Indices<S>& keys, int64_t count, typename Indices<S>::Int position) {
  int64_t limit = count;
  while (limit > 0 && keys.position[limit - 1] > position) --limit;
  return std::min(count, attentionCeilDiv(limit, kTileRows) * kTileRows);
}

// The last position among `count` queries from lane `at` on.
template <class S>
typename Indices<S>::Int lastPosition(const Indices<S>& queries, int64_t at, int64_t count) {
  return *std::max_element(queries.position + at, queries.position + at + count);
}

// Copies `count` rows as S, `width` apart, with zeros from `features` to `width` (whole vectors).
template <class T, class S>
void copyRows(const T* from, int64_t stride, int64_t count, int64_t features, S* to, int64_t width) {
  for (int64_t i = 0; i < count; ++i) {
    packStraight(from + i * stride, 0, static_cast<int>(features), 1, to + i * width, static_cast<int>(width));
  }
}

}  // namespace meshwork::MESHWORK_ISA
