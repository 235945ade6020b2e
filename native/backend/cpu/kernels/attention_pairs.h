// attention of bfloat16 by products of pairs (see pairs.h): rows are lanes, a panel of pairs::kColumns rows at a time.
#pragma once
#include "backend/cpu/kernels/attention.h"
#include "backend/cpu/pairs.h"

#if MESHWORK_PAIRS
namespace meshwork::MESHWORK_ISA {

// One task of attention. Op and Rows are those of attention.cc.
template <class Op, class Rows>
struct PairRows {
  const Op& op;
  const AttentionOperands& x;
  const Rows rows;
  int64_t lanes;                // rows, rounded up to whole panels
  bf16* queryRows;              // [row][feature]
  uint32_t *queries, *weights;  // right sides: features by rows; keys by the rows of one panel
  uint32_t *keys, *values;      // left sides: keys by features, value features by keys
  float* scores;                // [key][row of one panel]
  float* sums;                  // [panel][value feature][row]
  float *maximum, *total, *row;
  Indices<float> queryIndices, keyIndices;

  PairRows(const Op& attention, const AttentionOperands& operands, const Rows& which, Scratch scratch)
      : op(attention), x(operands), rows(which) {
    const int64_t block = op.block_;
    lanes = pairs::wholeColumns(rows.count());
    queryRows = scratch.take<bf16>(rows.count() * x.features);
    queries = scratch.take<uint32_t>(lanes * pairs::wholeSteps(x.features) / 2);
    weights = scratch.take<uint32_t>(pairs::kColumns * pairs::wholeSteps(block) / 2);
    keys = scratch.take<uint32_t>(pairs::wholeRows(block) * pairs::wholeSteps(x.features) / 2);
    values = scratch.take<uint32_t>(pairs::wholeRows(x.valueFeatures) * pairs::wholeSteps(block) / 2);
    scores = scratch.take<float>(pairs::wholeRows(block) * pairs::kColumns);
    sums = scratch.take<float>(pairs::wholeRows(x.valueFeatures) * lanes);
    maximum = scratch.take<float>(lanes);
    total = scratch.take<float>(lanes);
    queryIndices.allot(scratch, lanes);
    keyIndices.allot(scratch, block);
    row = scratch.take<float>(pairs::kColumns * wholeVectors<float>(x.valueFeatures));
  }

  void run() {
    const pairs::Unit unit;
    for (int64_t i = 0; i < rows.count(); ++i) {
      std::memcpy(queryRows + i * x.features, op.query(rows, i), static_cast<size_t>(x.features) * sizeof(bf16));
    }
    pairs::packRightSide(queryRows, false, x.features, rows.count(), x.features, queries);
    op.readQueries(rows, lanes, queryIndices);
    for (int64_t i = 0; i < lanes; ++i) maximum[i] = -std::numeric_limits<float>::infinity(), total[i] = 0;
    std::fill(sums, sums + pairs::wholeRows(x.valueFeatures) * lanes, 0.0f);
    for (int64_t first = 0; first < x.keys; first += op.block_) addKeys(first, std::min(op.block_, x.keys - first));
    for (int64_t at = 0; at < rows.count(); at += pairs::kColumns) finish(at);
  }

  void addKeys(int64_t first, int64_t count) {
    keyIndices.read(x.positionsK, x.segmentsK, rows.batch, first, count);
    const Sight seen = sight(queryIndices, keyIndices, x.causal);
    if (seen == Sight::none) return;
    const bool masked = seen == Sight::some, trimmed = masked && x.causal;
    if (trimmed) count = keyLimit(keyIndices, count, queryIndices.mostPosition);
    pairs::packLeftSide(op.key(rows, first), true, x.k.stride(1), count, x.features, keys);
    pairs::packLeftSide(op.value(rows, first), false, x.v.stride(1), x.valueFeatures, count, values);
    const int64_t step = pairs::wholeSteps(x.features) / 2;
    for (int64_t at = 0; at < lanes; at += pairs::kColumns) {
      const int columns = static_cast<int>(std::min<int64_t>(pairs::kColumns, rows.count() - at));
      const int64_t width = pairs::panelWidth(columns);
      const int64_t limit = trimmed ? keyLimit(keyIndices, count, lastPosition(queryIndices, at, width)) : count;
      pairs::multiplyPanel(std::min(count, pairs::wholeRows(limit)), columns, x.features, keys, x.features,
                           queries + at * step, scores, false);
      for (int64_t v = 0; v < width; v += 16) softmax(at, v, width, limit, masked);
      pairs::multiplyPanel(x.valueFeatures, columns, limit, values, count, weights,
                           sums + at * pairs::wholeRows(x.valueFeatures), true);
    }
  }

  // Scores of one vector of a panel's rows become probabilities relative to the new maximum; earlier sums follow it.
  void softmax(int64_t panel, int64_t v, int64_t width, int64_t count, bool masked) {
    const F32 scale = splat(op.scale_), none = splat(-std::numeric_limits<float>::infinity());
    const int64_t at = panel + v;
    float* score = scores + v;
    F32 most = load(maximum + at);
    const F32 before = most;
    for (int64_t key = 0; key < count; ++key) {
      F32 value = load(score + key * pairs::kColumns) * scale;
      if (masked) value = visible(queryIndices, at, keyIndices, key, x.causal) ? value : none;
      store(score + key * pairs::kColumns, value);
      most = max(most, value);
    }
    const F32 base = most == none ? F32{} : most;
    F32 sum = {};
    uint32_t* weight = weights + v;
    int64_t key = 0;
    for (; key + 2 <= count; key += 2, weight += width) {
      const F32 low = power(load(score + key * pairs::kColumns) - base);
      const F32 high = power(load(score + (key + 1) * pairs::kColumns) - base);
      sum += low + high;
      store(weight, pairs::pairsOf(low, high));
    }
    if (key < count) {
      const F32 low = power(load(score + key * pairs::kColumns) - base);
      sum += low;
      store(weight, pairs::pairsOf(low, F32{}));
      key += 2, weight += width;
    }
    for (; key < pairs::wholeSteps(count); key += 2, weight += width) store(weight, U32{});
    const F32 shrink = power(before - base);
    store(total + at, load(total + at) * shrink + sum);
    store(maximum + at, most);
    float* to = sums + panel * pairs::wholeRows(x.valueFeatures) + v;
    for (int64_t e = 0; e < x.valueFeatures; ++e, to += pairs::kColumns) store(to, load(to) * shrink);
  }

  void finish(int64_t panel) {
    const int64_t count = std::min<int64_t>(pairs::kColumns, rows.count() - panel);
    const int64_t width = wholeVectors<float>(x.valueFeatures);
    packTransposed(sums + panel * pairs::wholeRows(x.valueFeatures), pairs::kColumns, static_cast<int>(x.valueFeatures),
                   count, row, static_cast<int>(width));
    for (int64_t i = 0; i < count; ++i) {
      op.writeRow(rows, panel + i, row + i * width, maximum[panel + i], total[panel + i]);
    }
  }
};

}  // namespace meshwork::MESHWORK_ISA
#endif
