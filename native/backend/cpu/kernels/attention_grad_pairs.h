// attention_grad of bfloat16 by products of pairs (see pairs.h). Scores are made a panel of pairs::kColumns queries at
// a time, [key][query]; P and dS are kept as bfloat16 rows of a key, the left sides of the products for dk and dv.
#pragma once
#include "backend/cpu/kernels/attention.h"
#include "backend/cpu/pairs.h"

#if MESHWORK_PAIRS
namespace meshwork::MESHWORK_ISA {

// What a task does. Op and Part are those of attention_grad.cc.
template <class Op, class Part>
struct PairGradTask {
  const Op& op;
  const AttentionOperands& x;
  const Part part;
  uint32_t *keysLeft, *valuesLeft, *keysAcross;  // left sides: keys by features, values by features, features by keys
  uint32_t *queriesRight, *doutRight;            // right sides: features by queries
  uint32_t *queriesDown, *doutDown;              // right sides: queries by features
  float *scores, *products;                      // of one panel: [key][query]
  uint32_t* changes;                             // dS of one panel, a right side: keys by queries
  bf16 *weights, *gradients;                     // P and dS, [key][query]
  uint32_t* packed;                              // either one as a left side, keys by queries
  float *dk, *dv, *dq;  // panels of features: [panel][key][32]; [head][block][panel][feature][32]
  float *rows, *lse, *delta;
  Indices<float> queryIndices, keyIndices;
  size_t bytes;  // of the workspace
  int64_t loadedHead = -1, loadedQuery = -1;
  int64_t queries = 0, lanes = 0;  // of the loaded block; lanes: rounded up to whole panels

  PairGradTask(const Op& grad, const Part& which, Scratch scratch) : op(grad), x(grad.x_), part(which) {
    using namespace pairs;
    const int64_t n = op.block_, d = x.features, e = x.valueFeatures;
    keysLeft = scratch.take<uint32_t>(wholeRows(n) * wholeSteps(d) / 2);
    valuesLeft = scratch.take<uint32_t>(wholeRows(n) * wholeSteps(e) / 2);
    keysAcross = scratch.take<uint32_t>(wholeRows(d) * wholeSteps(n) / 2);
    queriesRight = scratch.take<uint32_t>(n * wholeSteps(d) / 2);
    doutRight = scratch.take<uint32_t>(n * wholeSteps(e) / 2);
    queriesDown = scratch.take<uint32_t>(wholeColumns(d) * n / 2);
    doutDown = scratch.take<uint32_t>(wholeColumns(e) * n / 2);
    scores = scratch.take<float>(wholeRows(n) * kColumns);
    products = scratch.take<float>(wholeRows(n) * kColumns);
    changes = scratch.take<uint32_t>(wholeSteps(n) / 2 * kColumns);
    weights = scratch.take<bf16>(n * n);
    gradients = scratch.take<bf16>(n * n);
    packed = scratch.take<uint32_t>(wholeRows(n) * n / 2);
    dk = scratch.take<float>(wholeColumns(d) * wholeRows(n));
    dv = scratch.take<float>(wholeColumns(e) * wholeRows(n));
    rows = scratch.take<float>(kColumns * wholeVectors<float>(d));
    lse = scratch.take<float>(n);
    delta = scratch.take<float>(n);
    queryIndices.allot(scratch, n);
    keyIndices.allot(scratch, n);
    dq = scratch.take<float>(part.forQueries ? part.heads * queryBlocks() * n * wholeRows(d) : 0);
    bytes = scratch.bytes();
  }

  int64_t queryBlocks() const { return attentionCeilDiv(part.queries, op.block_); }
  float* dqBlock(int64_t head, int64_t query) const {
    return dq + (head * queryBlocks() + query / op.block_) * op.block_ * pairs::wholeRows(x.features);
  }

  void run() {
    const pairs::Unit unit;
    if (part.forQueries) std::fill(dq, dqBlock(part.heads, 0), 0.0f);
    for (int64_t key = 0; key < part.keys; key += op.block_)
      addKeys(part.key + key, std::min(op.block_, part.keys - key));
    for (int64_t head = 0; part.forQueries && head < part.heads; ++head) {
      for (int64_t query = 0; query < part.queries; query += op.block_) writeQueries(head, query);
    }
  }

  void addKeys(int64_t first, int64_t count) {
    keyIndices.read(x.positionsK, x.segmentsK, part.batch, first, count);
    const bf16* key = headRow<bf16>(x.k, part.batch, first, part.group);
    const bf16* value = headRow<bf16>(x.v, part.batch, first, part.group);
    pairs::packLeftSide(key, true, x.k.stride(1), count, x.features, keysLeft);
    pairs::packLeftSide(value, true, x.v.stride(1), count, x.valueFeatures, valuesLeft);
    if (part.forQueries) pairs::packLeftSide(key, false, x.k.stride(1), x.features, count, keysAcross);
    if (part.forKeys) {
      std::fill(dk, dk + pairs::wholeColumns(x.features) * pairs::wholeRows(op.block_), 0.0f);
      std::fill(dv, dv + pairs::wholeColumns(x.valueFeatures) * pairs::wholeRows(op.block_), 0.0f);
    }
    for (int64_t head = 0; head < part.heads; ++head) {
      for (int64_t query = 0; query < part.queries; query += op.block_) addPair(count, head, query);
    }
    if (!part.forKeys) return;
    writeKeys(op.dk_, first, count, x.features, dk);
    writeKeys(op.dv_, first, count, x.valueFeatures, dv);
  }

  // The terms of one block of keys and one of queries.
  void addPair(int64_t keys, int64_t head, int64_t query) {
    const int64_t count = std::min(op.block_, part.queries - query);
    queryIndices.read(x.positionsQ, x.segmentsQ, part.batch, part.query + query, count);
    const Sight seen = sight(queryIndices, keyIndices, x.causal);
    if (seen == Sight::none) return;
    loadQueries(head, query, count);
    const bool masked = seen == Sight::some, trimmed = masked && x.causal;
    float* gradient = part.forQueries ? dqBlock(head, query) : nullptr;
    int64_t limits[128 / pairs::kColumns];
    for (int64_t at = 0; at < lanes; at += pairs::kColumns) {
      const int columns = static_cast<int>(std::min<int64_t>(pairs::kColumns, queries - at));
      const int64_t limit = trimmed ? keyLimit(keyIndices, keys, lastPosition(queryIndices, at, columns)) : keys;
      limits[at / pairs::kColumns] = limit;
      differentiatePanel(at, columns, keys, limit, masked);
      if (gradient) {
        pairs::multiplyPanel(x.features, columns, limit, keysAcross, keys, changes,
                             gradient + at * pairs::wholeRows(x.features), true);
      }
    }
    if (!part.forKeys) return;
    addToKeys(keys, limits, weights, doutDown, dv, x.valueFeatures);
    addToKeys(keys, limits, gradients, queriesDown, dk, x.features);
  }

  // P and dS of one panel of queries with all keys; beyond `limit` keys they are zero.
  void differentiatePanel(int64_t at, int columns, int64_t keys, int64_t limit, bool masked) {
    const int64_t computed = std::min(keys, pairs::wholeRows(limit));
    pairs::multiplyPanel(computed, columns, x.features, keysLeft, x.features,
                         queriesRight + at * pairs::wholeSteps(x.features) / 2, scores, false);
    pairs::multiplyPanel(computed, columns, x.valueFeatures, valuesLeft, x.valueFeatures,
                         doutRight + at * pairs::wholeSteps(x.valueFeatures) / 2, products, false);
    const int64_t width = pairs::panelWidth(columns);
    for (int64_t v = 0; v < width; v += 16) differentiate(at, v, width, limit, masked);
    if (!part.forKeys) return;
    // Rows are read as whole panels of queries.
    for (int64_t key = 0; key < keys; ++key) {
      const int64_t from = key < limit ? width : 0;
      std::fill(weights + key * lanes + at + from, weights + key * lanes + at + pairs::kColumns, bf16{0});
      std::fill(gradients + key * lanes + at + from, gradients + key * lanes + at + pairs::kColumns, bf16{0});
    }
  }

  // Scores become probabilities P, and dP becomes dS = P (dP - delta) scale, for one vector of queries.
  void differentiate(int64_t panel, int64_t v, int64_t width, int64_t keys, bool masked) {
    const int64_t at = panel + v;
    const F32 scale = splat(static_cast<float>(x.scale));
    const F32 unit = splat(static_cast<float>(x.scale * kScoreUnit<float>));
    const F32 norm = load(lse + at) * static_cast<float>(kScoreUnit<float>), mean = load(delta + at);
    auto change = [&](int64_t key) {
      F32 p = power(fma(load(scores + key * pairs::kColumns + v), unit, -norm));
      if (masked) p = visible(queryIndices, at, keyIndices, key, x.causal) ? p : F32{};
      const F32 ds = p * (load(products + key * pairs::kColumns + v) - mean) * scale;
      storeResult(weights + key * lanes + at, p);
      storeResult(gradients + key * lanes + at, ds);
      return ds;
    };
    uint32_t* to = changes + v;
    int64_t key = 0;
    for (; key + 2 <= keys; key += 2, to += width) {
      const F32 low = change(key);
      store(to, pairs::pairsOf(low, change(key + 1)));
    }
    if (key < keys) {
      store(to, pairs::pairsOf(change(key), F32{}));
      key += 2, to += width;
    }
    for (; key < pairs::wholeSteps(keys); key += 2, to += width) store(to, U32{});
  }

  // to[...][key][...] += sum over queries of left[key][query] * right[query][...], from the first panel of queries that
  // sees any of a panel of keys.
  void addToKeys(int64_t keys, const int64_t* limits, const bf16* left, const uint32_t* right, float* to,
                 int64_t features) {
    for (int64_t key = 0; key < keys; key += pairs::kRows) {
      const int rows_ = static_cast<int>(std::min<int64_t>(pairs::kRows, keys - key));
      int64_t first = 0;
      while (first < lanes && limits[first / pairs::kColumns] <= key) first += pairs::kColumns;
      if (first >= lanes) continue;
      pairs::packLeft(left + key * lanes + first, true, lanes, rows_, lanes - first, packed);
      for (int64_t f = 0; f < features; f += pairs::kColumns) {
        const int columns = static_cast<int>(std::min<int64_t>(pairs::kColumns, features - f));
        const uint32_t* from = right + f * lanes / 2 + first / 2 * pairs::panelWidth(columns);
        float* tile = to + (f / pairs::kColumns * pairs::wholeRows(op.block_) + key) * pairs::kColumns;
        pairs::multiply(rows_, columns, lanes - first, packed, from, tile, tile, pairs::kColumns);
      }
    }
  }

  void loadQueries(int64_t head, int64_t query, int64_t count) {
    if (head == loadedHead && query == loadedQuery) return;
    loadedHead = head;
    loadedQuery = query;
    queries = count;
    lanes = pairs::wholeColumns(count);
    const int64_t first = part.query + query;
    const int64_t h = part.group * x.repeats + part.head + head;
    const bf16* q = headRow<bf16>(x.q, part.batch, first, h);
    const bf16* dout = headRow<bf16>(op.dout_, part.batch, first, h);
    pairs::packRightSide(q, false, x.q.stride(1), count, x.features, queriesRight);
    pairs::packRightSide(dout, false, op.dout_.stride(1), count, x.valueFeatures, doutRight);
    if (part.forKeys) {
      packDown(q, x.q.stride(1), x.features, queriesDown);
      packDown(dout, op.dout_.stride(1), x.valueFeatures, doutDown);
    }
    // Lanes beyond the queries, and queries that saw no key, get no probability: 2^-inf.
    for (int64_t i = 0; i < lanes; ++i) lse[i] = std::numeric_limits<float>::infinity(), delta[i] = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float norm = op.lse_.template as<float>()[part.batch * op.lse_.stride(0) + h * op.lse_.stride(1) +
                                                      (first + i) * op.lse_.stride(2)];
      if (norm != -std::numeric_limits<float>::infinity()) lse[i] = norm;
      delta[i] = dot(headRow<bf16>(op.out_, part.batch, first + i, h), dout + i * op.dout_.stride(1));
    }
  }

  // Queries as steps, zeros from `queries` to `lanes`.
  void packDown(const bf16* from, int64_t stride, int64_t features, uint32_t* to) const {
    for (int64_t f = 0; f < features; f += pairs::kColumns, to += lanes / 2 * pairs::kColumns) {
      const int columns = static_cast<int>(std::min<int64_t>(pairs::kColumns, features - f));
      pairs::packRight(from + f, true, stride, columns, queries, to);
      const int64_t filled = pairs::wholeSteps(queries) / 2, width = pairs::panelWidth(columns);
      std::fill(to + filled * width, to + lanes / 2 * width, 0u);
    }
  }

  float dot(const bf16* out, const bf16* dout) const {
    F32 sum = {};
    for (int64_t e = 0; e < x.valueFeatures; e += 16) {
      const int count = static_cast<int>(std::min<int64_t>(16, x.valueFeatures - e));
      sum = fma(loadPartial(out + e, count), loadPartial(dout + e, count), sum);
    }
    return reduceAdd(sum);
  }

  void writeKeys(const Operand& to, int64_t first, int64_t count, int64_t features, const float* from) const {
    for (int64_t f = 0; f < features; f += 16) {
      const float* panel =
          from + f / pairs::kColumns * pairs::wholeRows(op.block_) * pairs::kColumns + f % pairs::kColumns;
      const int columns = static_cast<int>(std::min<int64_t>(16, features - f));
      for (int64_t i = 0; i < count; ++i) {
        storePartial(headRow<bf16>(to, part.batch, first + i, part.group) + f, load(panel + i * pairs::kColumns),
                     columns);
      }
    }
  }

  void writeQueries(int64_t head, int64_t query) {
    const int64_t count = std::min(op.block_, part.queries - query), width = wholeVectors<float>(x.features);
    const int64_t h = part.group * x.repeats + part.head + head;
    const float* block = dqBlock(head, query);
    for (int64_t at = 0; at < count; at += pairs::kColumns) {
      const int64_t columns = std::min<int64_t>(pairs::kColumns, count - at);
      packTransposed(block + at * pairs::wholeRows(x.features), pairs::kColumns, static_cast<int>(x.features), columns,
                     rows, static_cast<int>(width));
      Op::writeRows(op.dq_, part.batch, part.query + query + at, h, columns, x.features, rows, width);
    }
  }
};

}  // namespace meshwork::MESHWORK_ISA
#endif
