// attention_grad: dq, dk and dv from probabilities recomputed block by block.
//
// Either one task per (batch, key head) does everything, or, when the gradients of all queries do not fit in a
// workspace or such tasks are too few, one round of tasks by keys gives dk and dv and another by queries gives dq. Both
// add the same terms in the same order (heads, then query blocks; for dq key blocks), so the choice changes no bits.
#include "backend/cpu/kernels/attention.h"
#include "backend/cpu/kernels/attention_grad_pairs.h"

namespace meshwork::MESHWORK_ISA {
namespace {

// What a task computes: keys and query heads of one key head, and which gradients of them.
struct Part {
  int64_t batch, group, head, heads;  // query heads, of this key head's
  int64_t key, keys, query, queries;
  bool forKeys, forQueries;
};

// T is the storage type, S the type of the sums. kPairs: by products of pairs.
template <class T, class S = Compute<T>, bool kPairs = false>
class AttentionGrad {
  using V = Vec<S>;
  static constexpr int kWidth = kLanes<S>;
  static constexpr int64_t kMostPanels = 128 / kTileColumns<S>;  // of queries in a block

 public:
  explicit AttentionGrad(const Call& call)
      : x_(call, 6),
        out_(call.in[3]),
        lse_(call.in[4]),
        dout_(call.in[5]),
        dq_(call.out[0]),
        dk_(call.out[1]),
        dv_(call.out[2]),
        pool_(*call.pool) {
    block_ = attentionBlock<S>(std::max(x_.features, x_.valueFeatures));
    queryBlocks_ = attentionCeilDiv(x_.length, block_);
    features_ = wholeVectors<S>(x_.features);
    valueFeatures_ = wholeVectors<S>(x_.valueFeatures);
  }

  void run() {
    const int64_t headGroups = x_.batch * x_.groups;
    if (headGroups == 0) return;
    const Part whole = {0, 0, 0, x_.repeats, 0, x_.keys, 0, x_.length, true, true};
    const bool fits = Task(*this, whole, Scratch(nullptr)).bytes <= pool_.workspaceBytes();
    if (fits && (pool_.threads() == 1 || headGroups >= 2 * pool_.threads())) {
      pool_.run(headGroups, [&](int64_t task, int thread) {
        runPart({task / x_.groups, task % x_.groups, 0, x_.repeats, 0, x_.keys, 0, x_.length, true, true}, thread);
      });
      return;
    }
    const int64_t keyBlocks = attentionCeilDiv(x_.keys, block_);
    pool_.run(headGroups * keyBlocks, [&](int64_t task, int thread) {
      const int64_t first = task % keyBlocks * block_, group = task / keyBlocks;
      runPart({group / x_.groups, group % x_.groups, 0, x_.repeats, first, std::min(block_, x_.keys - first), 0,
               x_.length, true, false},
              thread);
    });
    pool_.run(x_.batch * x_.heads * queryBlocks_, [&](int64_t task, int thread) {
      const int64_t first = (queryBlocks_ - 1 - task % queryBlocks_) * block_, head = task / queryBlocks_;
      runPart({head / x_.heads, head % x_.heads / x_.repeats, head % x_.repeats, 1, 0, x_.keys, first,
               std::min(block_, x_.length - first), false, true},
              thread);
    });
  }

 private:
  void runPart(const Part& part, int thread) const { Task(*this, part, Scratch(pool_.workspace(thread))).run(); }

  static void writeRows(const Operand& to, int64_t b, int64_t first, int64_t head, int64_t count, int64_t features,
                        const S* from, int64_t width) {
    for (int64_t i = 0; i < count; ++i, from += width) {
      T* row = headRow<T>(to, b, first + i, head);
      for (int64_t c = 0; c < features; c += kWidth) {
        storePartial(row + c, load(from + c), static_cast<int>(std::min<int64_t>(kWidth, features - c)));
      }
    }
  }

#if MESHWORK_PAIRS
  friend struct PairGradTask<AttentionGrad, Part>;
  struct WideTask;
  using Task = std::conditional_t<kPairs, PairGradTask<AttentionGrad, Part>, WideTask>;
#else
  struct WideTask;
  using Task = WideTask;
#endif

  struct WideTask {
    const AttentionGrad& op;
    const AttentionOperands& x;
    const Part part;
    S *keysLeft, *valuesLeft, *keysAcross;  // left sides: keys by features, values by features, features by keys
    S *queriesRight, *doutRight;            // right sides: features by queries
    S *queryRows, *doutRows;                // rows of whole vectors
    S *weights, *gradients, *packed;        // P and dS, [key][query]; either one as a left side, keys by queries
    S *dk, *dv, *dq;                        // [key][feature]; [head][query block][feature][query]
    S *lse, *delta;
    Indices<S> queryIndices, keyIndices;
    size_t bytes;  // of the workspace
    int64_t loadedHead = -1, loadedQuery = -1;
    int64_t queries = 0, lanes = 0;  // of the loaded block; lanes: rounded up to whole vectors

    WideTask(const AttentionGrad& grad, const Part& which, Scratch scratch) : op(grad), x(grad.x_), part(which) {
      const int64_t n = op.block_;
      keysLeft = scratch.take<S>(n * x.features);
      valuesLeft = scratch.take<S>(n * x.valueFeatures);
      keysAcross = scratch.take<S>(n * x.features);
      queriesRight = scratch.take<S>(n * x.features);
      doutRight = scratch.take<S>(n * x.valueFeatures);
      queryRows = scratch.take<S>(n * op.features_);
      doutRows = scratch.take<S>(n * op.valueFeatures_);
      weights = scratch.take<S>(n * n);
      gradients = scratch.take<S>(n * n);
      packed = scratch.take<S>(n * n);
      dk = scratch.take<S>(n * op.features_);
      dv = scratch.take<S>(n * op.valueFeatures_);
      lse = scratch.take<S>(n);
      delta = scratch.take<S>(n);
      queryIndices.allot(scratch, n);
      keyIndices.allot(scratch, n);
      dq = scratch.take<S>(part.forQueries ? part.heads * queryBlocks() * n * x.features : 0);
      bytes = scratch.bytes();
    }

    int64_t queryBlocks() const { return attentionCeilDiv(part.queries, op.block_); }
    S* dqBlock(int64_t head, int64_t query) const {
      return dq + (head * queryBlocks() + query / op.block_) * op.block_ * x.features;
    }

    void run() {
      if (part.forQueries) std::fill(dq, dqBlock(part.heads, 0), S{0});
      for (int64_t key = 0; key < part.keys; key += op.block_)
        addKeys(part.key + key, std::min(op.block_, part.keys - key));
      for (int64_t head = 0; part.forQueries && head < part.heads; ++head) {
        for (int64_t query = 0; query < part.queries; query += op.block_) writeQueries(head, query);
      }
    }

    void addKeys(int64_t first, int64_t count) {
      keyIndices.read(x.positionsK, x.segmentsK, part.batch, first, count);
      const T* key = headRow<T>(x.k, part.batch, first, part.group);
      const T* value = headRow<T>(x.v, part.batch, first, part.group);
      packLeftSide<true>(key, x.k.stride(1), count, x.features, keysLeft);
      packLeftSide<true>(value, x.v.stride(1), count, x.valueFeatures, valuesLeft);
      if (part.forQueries) packLeftSide<false>(key, x.k.stride(1), x.features, count, keysAcross);
      if (part.forKeys) {
        std::fill(dk, dk + count * op.features_, S{0});
        std::fill(dv, dv + count * op.valueFeatures_, S{0});
      }
      for (int64_t head = 0; head < part.heads; ++head) {
        for (int64_t query = 0; query < part.queries; query += op.block_) addPair(count, head, query);
      }
      if (!part.forKeys) return;
      writeRows(op.dk_, part.batch, first, part.group, count, x.features, dk, op.features_);
      writeRows(op.dv_, part.batch, first, part.group, count, x.valueFeatures, dv, op.valueFeatures_);
    }

    // The terms of one block of keys and one of queries.
    void addPair(int64_t keys, int64_t head, int64_t query) {
      const int64_t count = std::min(op.block_, part.queries - query);
      queryIndices.read(x.positionsQ, x.segmentsQ, part.batch, part.query + query, count);
      const Sight seen = sight(queryIndices, keyIndices, x.causal);
      if (seen == Sight::none) return;
      loadQueries(head, query, count);
      const bool masked = seen == Sight::some, trimmed = masked && x.causal;
      S* gradient = part.forQueries ? dqBlock(head, query) : nullptr;
      int64_t limits[kMostPanels];
      for (int64_t at = 0; at < lanes; at += kTileColumns<S>) {
        const int64_t width = std::min<int64_t>(kTileColumns<S>, lanes - at);
        const int64_t last = std::min(width, queries - at);
        const int64_t limit = trimmed ? keyLimit(keyIndices, keys, lastPosition(queryIndices, at, last)) : keys;
        limits[at / kTileColumns<S>] = limit;
        differentiatePanel(at, width, keys, limit, masked);
        if (gradient) {
          multiplyPacked<S>(x.features, width, limit, keysAcross, keys, gradients + at, lanes, gradient + at, lanes,
                            true);
        }
      }
      if (!part.forKeys) return;
      addToKeys(keys, limits, weights, doutRows, dv, op.valueFeatures_);
      addToKeys(keys, limits, gradients, queryRows, dk, op.features_);
    }

    // P and dS of one panel of queries with all keys; beyond `limit` keys they are zero.
    void differentiatePanel(int64_t at, int64_t width, int64_t keys, int64_t limit, bool masked) {
      multiplyPacked<S>(limit, width, x.features, keysLeft, x.features, queriesRight + at * x.features, 0, weights + at,
                        lanes, false);
      multiplyPacked<S>(limit, width, x.valueFeatures, valuesLeft, x.valueFeatures, doutRight + at * x.valueFeatures, 0,
                        gradients + at, lanes, false);
      for (int64_t v = at; v < at + width; v += kWidth) differentiate(v, limit, masked);
      for (int64_t key = limit; part.forKeys && key < keys; ++key) {
        std::fill(weights + key * lanes + at, weights + key * lanes + at + width, S{0});
        std::fill(gradients + key * lanes + at, gradients + key * lanes + at + width, S{0});
      }
    }

    // to[key][...] += sum over queries of left[key][query] * rows[query][...], from the first panel of queries that
    // sees any of a panel of keys.
    void addToKeys(int64_t keys, const int64_t* limits, const S* left, const S* rows, S* to, int64_t width) {
      packLeftSide<true>(left, lanes, keys, queries, packed);
      for (int64_t key = 0; key < keys; key += kTileRows) {
        const int64_t count = std::min<int64_t>(kTileRows, keys - key);
        int64_t first = 0;
        while (first < queries && limits[first / kTileColumns<S>] <= key) first += kTileColumns<S>;
        if (first >= queries) continue;
        multiplyPacked<S>(count, width, queries - first, packed + key * queries + first * count, queries,
                          rows + first * width, width, to + key * width, width, true);
      }
    }

    // Scores become probabilities P, and dP becomes dS = P (dP - delta) scale, for one vector of queries.
    void differentiate(int64_t at, int64_t keys, bool masked) {
      const V scale = splat(static_cast<S>(x.scale)), unit = splat(static_cast<S>(x.scale * kScoreUnit<S>));
      const V norm = load(lse + at) * static_cast<S>(kScoreUnit<S>), mean = load(delta + at);
      for (int64_t key = 0; key < keys; ++key) {
        S* weight = weights + key * lanes + at;
        S* gradient = gradients + key * lanes + at;
        V p = power(fma(load(weight), unit, -norm));
        if (masked) p = visible(queryIndices, at, keyIndices, key, x.causal) ? p : V{};
        store(weight, p);
        store(gradient, p * (load(gradient) - mean) * scale);
      }
    }

    void loadQueries(int64_t head, int64_t query, int64_t count) {
      if (head == loadedHead && query == loadedQuery) return;
      loadedHead = head;
      loadedQuery = query;
      queries = count;
      lanes = wholeVectors<S>(count);
      const int64_t first = part.query + query;
      const int64_t h = part.group * x.repeats + part.head + head;
      copyRows(headRow<T>(x.q, part.batch, first, h), x.q.stride(1), count, x.features, queryRows, op.features_);
      copyRows(headRow<T>(op.dout_, part.batch, first, h), op.dout_.stride(1), count, x.valueFeatures, doutRows,
               op.valueFeatures_);
      packRightSide(queryRows, op.features_, count, x.features, queriesRight);
      packRightSide(doutRows, op.valueFeatures_, count, x.valueFeatures, doutRight);
      // Lanes beyond the queries, and queries that saw no key, get no probability: e^-inf.
      for (int64_t i = 0; i < lanes; ++i) lse[i] = std::numeric_limits<S>::infinity(), delta[i] = 0;
      for (int64_t i = 0; i < count; ++i) {
        const S norm = op.lse_.template as<Compute<T>>()[part.batch * op.lse_.stride(0) + h * op.lse_.stride(1) +
                                                         (first + i) * op.lse_.stride(2)];
        if (norm != -std::numeric_limits<S>::infinity()) lse[i] = norm;
        delta[i] = outTimesDout(headRow<T>(op.out_, part.batch, first + i, h), doutRows + i * op.valueFeatures_);
      }
    }

    S outTimesDout(const T* out, const S* dout) const {
      V sum = {};
      for (int64_t e = 0; e < x.valueFeatures; e += kWidth) {
        const int count = static_cast<int>(std::min<int64_t>(kWidth, x.valueFeatures - e));
        sum = fma(loadPartialAs<S>(out + e, count), load(dout + e), sum);
      }
      return reduceAdd(sum);
    }

    void writeQueries(int64_t head, int64_t query) {
      const int64_t count = std::min(op.block_, part.queries - query);
      packTransposed(dqBlock(head, query), wholeVectors<S>(count), static_cast<int>(x.features), count, queryRows,
                     static_cast<int>(op.features_));
      writeRows(op.dq_, part.batch, part.query + query, part.group * x.repeats + part.head + head, count, x.features,
                queryRows, op.features_);
    }
  };

  const AttentionOperands x_;
  const Operand &out_, &lse_, &dout_, &dq_, &dk_, &dv_;
  Pool& pool_;
  int64_t block_, queryBlocks_, features_, valueFeatures_;  // features: rounded up to whole vectors
};

void runAttentionGrad(const Call& call) {
  const bool small = isSmall(AttentionOperands(call, 6));
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return AttentionGrad<double>(call).run();
    case DType::bf16:
#if MESHWORK_PAIRS
      if (!small) return AttentionGrad<bf16, float, true>(call).run();
#endif
      return AttentionGrad<bf16>(call).run();
    case DType::f16:
      return AttentionGrad<f16>(call).run();
    default:
      return small ? AttentionGrad<float, double>(call).run() : AttentionGrad<float>(call).run();
  }
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(attention_grad, {Op::attention_grad, checkAttentionGrad, runAttentionGrad})
