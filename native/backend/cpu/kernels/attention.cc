// attention: softmax(scale q k^T + mask) v, block by block with a running maximum and sum, never storing t x s.
#include "backend/cpu/kernels/attention.h"

#include "backend/cpu/kernels/attention_pairs.h"

namespace meshwork::MESHWORK_ISA {
namespace {

constexpr int64_t kFewRows = 4;  // up to here (decoding) rows are computed one by one instead of as lanes

template <class S>
constexpr S kNoScore = -std::numeric_limits<S>::infinity();

// The rows of one task: `heads` query heads of one key head from `head` on, times `positions` queries from `position`
// on. Row number: head-major.
struct Rows {
  int64_t batch, group, head, heads, position, positions;
  int64_t count() const { return heads * positions; }
};

// T is the storage type, S the type of the sums. kPairs: by products of pairs.
template <class T, class S = Compute<T>, bool kPairs = false>
class Attention {
  using V = Vec<S>;
  static constexpr int kWidth = kLanes<S>;

 public:
  explicit Attention(const Call& call) : x_(call, 3), out_(call.out[0]), lse_(call.out[1]), pool_(*call.pool) {
    block_ = attentionBlock<S>(std::max(x_.features, x_.valueFeatures));
    scale_ = static_cast<S>(x_.scale * kScoreUnit<S>);
  }

  void run() {
    if (x_.batch == 0 || x_.length == 0 || x_.heads == 0) return;
    const int64_t headsPerTask = std::min(x_.repeats, std::max<int64_t>(1, block_ / x_.length));
    const int64_t positionsPerTask = std::min(x_.length, std::max<int64_t>(1, block_ / headsPerTask));
    const int64_t headTasks = attentionCeilDiv(x_.repeats, headsPerTask);
    const int64_t positionTasks = attentionCeilDiv(x_.length, positionsPerTask);
    const int64_t tasks = x_.batch * x_.groups * headTasks * positionTasks;
    pool_.run(tasks, [&](int64_t task, int thread) {
      Rows rows;
      // The last positions first: with a causal mask they are the longest.
      rows.position = (positionTasks - 1 - task % positionTasks) * positionsPerTask;
      task /= positionTasks;
      rows.positions = std::min(positionsPerTask, x_.length - rows.position);
      const int64_t head = task % headTasks * headsPerTask;
      task /= headTasks;
      rows.heads = std::min(headsPerTask, x_.repeats - head);
      rows.group = task % x_.groups;
      rows.batch = task / x_.groups;
      rows.head = rows.group * x_.repeats + head;
      const Scratch scratch(pool_.workspace(thread));
      if (rows.count() <= kFewRows) {
        FewRows(*this, rows, scratch).run();
      } else {
        Many(*this, x_, rows, scratch).run();
      }
    });
  }

 private:
  const T* query(const Rows& rows, int64_t row) const {
    return headRow<T>(x_.q, rows.batch, rows.position + row % rows.positions, rows.head + row / rows.positions);
  }
  // Queries of all heads as rows of S, `width` apart.
  void copyQueries(const Rows& rows, S* to, int64_t width) const {
    for (int64_t h = 0; h < rows.heads; ++h) {
      copyRows(headRow<T>(x_.q, rows.batch, rows.position, rows.head + h), x_.q.stride(1), rows.positions, x_.features,
               to + h * rows.positions * width, width);
    }
  }
  const T* key(const Rows& rows, int64_t first) const { return headRow<T>(x_.k, rows.batch, first, rows.group); }
  const T* value(const Rows& rows, int64_t first) const { return headRow<T>(x_.v, rows.batch, first, rows.group); }

  // Positions and segments of every row (`padded` entries: lanes beyond the rows repeat the last).
  void readQueries(const Rows& rows, int64_t padded, Indices<S>& to) const {
    to.read(x_.positionsQ, x_.segmentsQ, rows.batch, rows.position, rows.positions);
    for (int64_t i = rows.positions; i < padded; ++i) {
      const int64_t from = i < rows.count() ? i % rows.positions : rows.positions - 1;
      to.position[i] = to.position[from];
      to.segment[i] = to.segment[from];
    }
  }
  Compute<T>* lse(const Rows& rows, int64_t row) const {
    return lse_.as<Compute<T>>() + rows.batch * lse_.stride(0) + (rows.head + row / rows.positions) * lse_.stride(1) +
           (rows.position + row % rows.positions) * lse_.stride(2);
  }
  T* out(const Rows& rows, int64_t row) const {
    return headRow<T>(out_, rows.batch, rows.position + row % rows.positions, rows.head + row / rows.positions);
  }

  // Rows as lanes.
  struct ManyRows {
    const Attention& op;
    const Rows rows;
    int64_t lanes;               // rows, rounded up to whole vectors
    S *queries, *scores, *sums;  // packed right side; [key][row]; [value feature][row]
    S *keys, *values;            // packed left sides
    S *maximum, *total, *row;
    Indices<S> queryIndices, keyIndices;

    ManyRows(const Attention& attention, const AttentionOperands& x, const Rows& which, Scratch scratch)
        : op(attention), rows(which) {
      lanes = wholeVectors<S>(rows.count());
      queries = scratch.take<S>(lanes * x.features);
      scores = scratch.take<S>(op.block_ * lanes);
      sums = scratch.take<S>(x.valueFeatures * lanes);
      keys = scratch.take<S>(op.block_ * x.features);
      values = scratch.take<S>(op.block_ * x.valueFeatures);
      maximum = scratch.take<S>(lanes);
      total = scratch.take<S>(lanes);
      queryIndices.allot(scratch, lanes);
      keyIndices.allot(scratch, op.block_);
      row = scratch.take<S>(rows.count() * wholeVectors<S>(std::max(x.features, x.valueFeatures)));
    }

    void run() {
      const AttentionOperands& x = op.x_;
      const int64_t width = wholeVectors<S>(x.features);
      op.copyQueries(rows, row, width);
      packRightSide(row, width, rows.count(), x.features, queries);
      op.readQueries(rows, lanes, queryIndices);
      for (int64_t i = 0; i < lanes; ++i) maximum[i] = kNoScore<S>, total[i] = 0;
      std::fill(sums, sums + x.valueFeatures * lanes, S{0});
      for (int64_t first = 0; first < x.keys; first += op.block_) addKeys(first, std::min(op.block_, x.keys - first));
      finish();
    }

    void addKeys(int64_t first, int64_t count) {
      const AttentionOperands& x = op.x_;
      keyIndices.read(x.positionsK, x.segmentsK, rows.batch, first, count);
      const Sight seen = sight(queryIndices, keyIndices, x.causal);
      if (seen == Sight::none) return;
      const bool masked = seen == Sight::some, trimmed = masked && x.causal;
      if (trimmed) count = keyLimit(keyIndices, count, queryIndices.mostPosition);
      packLeftSide<true>(op.key(rows, first), x.k.stride(1), count, x.features, keys);
      packLeftSide<false>(op.value(rows, first), x.v.stride(1), x.valueFeatures, count, values);
      for (int64_t at = 0; at < lanes; at += kTileColumns<S>) {
        const int64_t width = std::min<int64_t>(kTileColumns<S>, lanes - at);
        const int64_t limit = trimmed ? keyLimit(keyIndices, count, lastPosition(queryIndices, at, width)) : count;
        multiplyPacked<S>(limit, width, x.features, keys, x.features, queries + at * x.features, 0, scores + at, lanes,
                          false);
        for (int64_t v = at; v < at + width; v += kWidth) softmax(v, limit, masked);
        multiplyPacked<S>(x.valueFeatures, width, limit, values, count, scores + at, lanes, sums + at, lanes, true);
      }
    }

    // Scores of one vector of rows become probabilities relative to the new maximum; earlier sums follow it.
    void softmax(int64_t at, int64_t count, bool masked) {
      const V scale = splat(op.scale_);
      const V none = splat(kNoScore<S>);
      V most = load(maximum + at);
      const V before = most;
      for (int64_t key = 0; key < count; ++key) {
        S* score = scores + key * lanes + at;
        V value = load(score) * scale;
        if (masked) value = visible(queryIndices, at, keyIndices, key, op.x_.causal) ? value : none;
        store(score, value);
        most = max(most, value);
      }
      const V base = most == none ? V{} : most;
      V sum = {};
      for (int64_t key = 0; key < count; ++key) {
        S* score = scores + key * lanes + at;
        const V p = power(load(score) - base);
        store(score, p);
        sum += p;
      }
      const V shrink = power(before - base);
      store(total + at, load(total + at) * shrink + sum);
      store(maximum + at, most);
      for (int64_t e = 0; e < op.x_.valueFeatures; ++e) {
        S* to = sums + e * lanes + at;
        store(to, load(to) * shrink);
      }
    }

    void finish() {
      const int64_t features = op.x_.valueFeatures;
      const int64_t width = wholeVectors<S>(features);
      packTransposed(sums, lanes, static_cast<int>(features), rows.count(), row, static_cast<int>(width));
      for (int64_t i = 0; i < rows.count(); ++i) {
        op.writeRow(rows, i, row + i * width, maximum[i], total[i]);
      }
    }
  };

#if MESHWORK_PAIRS
  friend struct PairRows<Attention, Rows>;
  using Many = std::conditional_t<kPairs, PairRows<Attention, Rows>, ManyRows>;
#else
  using Many = ManyRows;
#endif

  // Row by row: keys and values are read in place.
  struct FewRows {
    const Attention& op;
    const Rows rows;
    int64_t width;               // value features, rounded up to whole vectors
    S *queries, *scores, *sums;  // [row][feature], [row][key], [row][value feature]
    S *weights, *values;         // [key][row]; copied values
    S maximum[kFewRows], total[kFewRows];
    Indices<S> queryIndices, keyIndices;

    FewRows(const Attention& attention, const Rows& which, Scratch scratch) : op(attention), rows(which) {
      const AttentionOperands& x = op.x_;
      width = wholeVectors<S>(x.valueFeatures);
      queries = scratch.take<S>(kFewRows * wholeVectors<S>(x.features));
      scores = scratch.take<S>(kFewRows * op.block_);
      sums = scratch.take<S>(kFewRows * width);
      weights = scratch.take<S>(op.block_ * kFewRows);
      values = scratch.take<S>(op.block_ * width);
      queryIndices.allot(scratch, kFewRows + kWidth);
      keyIndices.allot(scratch, op.block_);
    }

    void run() {
      const AttentionOperands& x = op.x_;
      op.copyQueries(rows, queries, wholeVectors<S>(x.features));
      op.readQueries(rows, rows.count(), queryIndices);
      for (int64_t i = 0; i < rows.count(); ++i) maximum[i] = kNoScore<S>, total[i] = 0;
      std::fill(sums, sums + rows.count() * width, S{0});
      for (int64_t first = 0; first < x.keys; first += op.block_) addKeys(first, std::min(op.block_, x.keys - first));
      for (int64_t i = 0; i < rows.count(); ++i) op.writeRow(rows, i, sums + i * width, maximum[i], total[i]);
    }

    void addKeys(int64_t first, int64_t count) {
      const AttentionOperands& x = op.x_;
      keyIndices.read(x.positionsK, x.segmentsK, rows.batch, first, count);
      const Sight seen = sight(queryIndices, keyIndices, x.causal);
      if (seen == Sight::none) return;
      const int n = static_cast<int>(rows.count());
      dotBlock(n, static_cast<int>(count), x.features, queries, wholeVectors<S>(x.features), op.key(rows, first),
               x.k.stride(1), false, scores, op.block_);
      for (int i = 0; i < n; ++i) softmax(i, count, seen == Sight::some);
      addValues(first, count);
    }

    void softmax(int i, int64_t count, bool masked) {
      S* score = scores + i * op.block_;
      const S scale = op.scale_;
      S most = maximum[i];
      for (int64_t key = 0; key < count; ++key) {
        const bool hidden = masked && (queryIndices.segment[i] != keyIndices.segment[key] ||
                                       (op.x_.causal && queryIndices.position[i] < keyIndices.position[key]));
        score[key] = hidden ? kNoScore<S> : score[key] * scale;
        most = most > score[key] ? most : score[key];
      }
      const S base = most == kNoScore<S> ? S{0} : most;
      for (int64_t key = 0; key < count; key += kWidth) {  // the block is whole vectors
        store(score + key, power(load(score + key) - base));
      }
      S sum = 0;
      for (int64_t key = 0; key < count; ++key) {
        sum += score[key];
        weights[key * rows.count() + i] = score[key];
      }
      const S shrink = power(splat(maximum[i] - base))[0];
      total[i] = total[i] * shrink + sum;
      maximum[i] = most;
      for (int64_t e = 0; e < width; ++e) sums[i * width + e] *= shrink;
    }

    void addValues(int64_t first, int64_t count) {
      const T* from = op.value(rows, first);
      int64_t stride = op.x_.v.stride(1);
      if constexpr (std::is_same_v<T, S>) {
        if (op.x_.valueFeatures == width) return addWeighted(from, stride, count);
      }
      copyRows(from, stride, count, op.x_.valueFeatures, values, width);
      addWeighted(values, width, count);
    }

    void addWeighted(const S* from, int64_t stride, int64_t count) {
      const int n = static_cast<int>(rows.count());
      for (int64_t e = 0; e < width;) {
        const bool two = e + kTileColumns<S> <= width;
        const auto kernel = two ? findMicroKernel<kTileVectors, S, S>(n) : findMicroKernel<1, S, S>(n);
        kernel(count, weights, from + e, stride, sums + e, width, sums + e, width);
        e += two ? kTileColumns<S> : kWidth;
      }
    }
  };

  // out and lse of a row from its unnormalised sums.
  void writeRow(const Rows& rows, int64_t index, const S* sums, S maximum, S total) const {
    const bool empty = maximum == kNoScore<S>;
    const S most = maximum * static_cast<S>(1 / kScoreUnit<S>);
    *lse(rows, index) = static_cast<Compute<T>>(empty ? kNoScore<S> : most + log(splat(total))[0]);
    const V factor = splat(empty ? S{0} : S{1} / total);
    T* to = out(rows, index);
    for (int64_t e = 0; e < x_.valueFeatures; e += kWidth) {
      const int count = static_cast<int>(std::min<int64_t>(kWidth, x_.valueFeatures - e));
      storePartial(to + e, load(sums + e) * factor, count);
    }
  }

  const AttentionOperands x_;
  const Operand &out_, &lse_;
  Pool& pool_;
  int64_t block_;
  S scale_;  // in kScoreUnit
};

void runAttention(const Call& call) {
  const bool small = isSmall(AttentionOperands(call, 3));
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return Attention<double>(call).run();
    case DType::bf16:
#if MESHWORK_PAIRS
      if (!small) return Attention<bf16, float, true>(call).run();
#endif
      return Attention<bf16>(call).run();
    case DType::f16:
      return Attention<f16>(call).run();
    default:
      return small ? Attention<float, double>(call).run() : Attention<float>(call).run();
  }
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(attention, {Op::attention, checkAttention, runAttention})
