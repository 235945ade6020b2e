// Shares of in-process collectives: which part of whose memory a rank reduces or copies. Memory is the bound.
#include "collective/move.h"

#include <algorithm>
#include <cstring>

#include "collective/combine.h"
#include "runtime/pool.h"

namespace meshwork {
namespace {

constexpr int64_t kTask = 32 << 10;  // elements of one block of the pool
constexpr int64_t kCopyTask = int64_t{1} << 18;
// An exchange that writes this many bytes, on all ranks together, leaves the caches out: who reads its result next
// would not find it there, and lines that are written whole need not be read first.
constexpr int64_t kStreamBytes = int64_t{16} << 20;
constexpr int64_t kShortestStream = 512;  // of a row

int64_t product(const View& view, int begin, int end) {
  int64_t n = 1;
  for (int d = begin; d < end; ++d) n *= view.dims[d];
  return n;
}

int64_t sumBefore(const int32_t* counts, int end) {
  int64_t sum = 0;
  for (int i = 0; i < end; ++i) sum += counts[i];
  return sum;
}

// Whether an exchange of which each rank gets `bytes` should go past the caches.
bool streams(std::span<const Collective> calls, int64_t bytes) {
  return bytes * static_cast<int64_t>(calls.size()) >= kStreamBytes;
}

std::vector<const std::byte*> sourcesOf(std::span<const Collective> calls) {
  std::vector<const std::byte*> sources;
  for (const Collective& call : calls) sources.push_back(call.in);
  return sources;
}

// Chunk `me` of the elements, reduced and written to every rank. Chunks begin on cache lines.
void allReduce(std::span<const Collective> calls, int me, Pool& pool) {
  const auto ranks = static_cast<int64_t>(calls.size());
  const int64_t count = calls[0].x->count(), size = dtypeSize(calls[0].x->dtype);
  const int64_t chunk = (count + ranks - 1) / ranks;
  const int64_t line = 64 / size;
  const int64_t aligned = (chunk + line - 1) / line * line;
  const int64_t begin = std::min(aligned * me, count), end = std::min(begin + aligned, count);
  const std::vector<const std::byte*> sources = sourcesOf(calls);
  std::vector<std::byte*> targets;
  for (const Collective& call : calls) targets.push_back(call.out);
  const Combine combine = combineOf(calls[0].x->dtype, calls[0].reduction);
  const bool stream = streams(calls, count * size);
  pool.run((end - begin + kTask - 1) / kTask, [&](int64_t task, int) {
    const int64_t at = begin + task * kTask;
    combine({sources, at * size}, {targets, at * size}, std::min(kTask, end - at), stream);
  });
}

// This rank's part along dim: for every outer index, a run of counts[me] * inner elements.
void reduceScatter(std::span<const Collective> calls, int me, Pool& pool) {
  const Collective& mine = calls[static_cast<size_t>(me)];
  const View& x = *mine.x;
  const int64_t size = dtypeSize(x.dtype);
  const int64_t outer = product(x, 0, mine.dim), inner = product(x, mine.dim + 1, x.rank);
  const int64_t run = mine.counts[me] * inner, row = x.dims[mine.dim] * inner;
  const int64_t first = sumBefore(mine.counts, me) * inner;
  if (run == 0) return;
  const std::vector<const std::byte*> sources = sourcesOf(calls);
  const Combine combine = combineOf(x.dtype, mine.reduction);
  const bool stream = run * size >= kShortestStream && streams(calls, outer * run * size);
  // Long runs are cut into pieces, short ones are taken several at a time.
  const int64_t pieces = (run + kTask - 1) / kTask;
  const int64_t each = std::max<int64_t>(kTask / run, 1);
  const int64_t total = outer * pieces;
  pool.run((total + each - 1) / each, [&](int64_t task, int) {
    for (int64_t i = task * each; i < std::min((task + 1) * each, total); ++i) {
      const int64_t o = i / pieces, at = i % pieces * kTask;
      combine({sources, (o * row + first + at) * size}, {std::span(&mine.out, 1), (o * run + at) * size},
              std::min(kTask, run - at), stream);
    }
  });
}

// As copyBytes(), or past the caches.
void copyRange(std::byte* to, const std::byte* from, int64_t bytes, bool stream, Pool& pool) {
  if (bytes == 0 || to == from) return;
  pool.run((bytes + kCopyTask - 1) / kCopyTask, [&](int64_t task, int) {
    const int64_t at = task * kCopyTask, n = std::min(kCopyTask, bytes - at);
    if (stream) {
      streamBytes(to + at, from + at, n);
    } else {
      std::memmove(to + at, from + at, static_cast<size_t>(n));
    }
  });
}

// `rows` runs of `bytes`, at their own distances on both sides.
void copyRows(std::byte* to, int64_t toPitch, const std::byte* from, int64_t fromPitch, int64_t bytes, int64_t rows,
              bool stream, Pool& pool) {
  if (bytes == 0 || rows == 0) return;
  if (rows == 1 || (bytes == toPitch && bytes == fromPitch)) return copyRange(to, from, bytes * rows, stream, pool);
  const bool streamed = stream && bytes >= kShortestStream;
  const int64_t each = std::max<int64_t>(kCopyTask / bytes, 1);  // rows of one task
  pool.run((rows + each - 1) / each, [&](int64_t task, int) {
    for (int64_t r = task * each; r < std::min((task + 1) * each, rows); ++r) {
      if (streamed) {
        streamBytes(to + r * toPitch, from + r * fromPitch, bytes);
      } else {
        std::memcpy(to + r * toPitch, from + r * fromPitch, static_cast<size_t>(bytes));
      }
    }
  });
}

int64_t bytesOf(const View& view) { return view.count() * dtypeSize(view.dtype); }

void allGather(std::span<const Collective> calls, int me, Pool& pool) {
  const Collective& mine = calls[static_cast<size_t>(me)];
  const View& y = *mine.y;
  const int64_t outer = product(y, 0, mine.dim);
  const int64_t inner = product(y, mine.dim + 1, y.rank) * dtypeSize(y.dtype);
  const int64_t pitch = y.dims[mine.dim] * inner;
  const bool stream = streams(calls, bytesOf(y));
  int64_t start = 0;
  for (size_t r = 0; r < calls.size(); ++r) {
    const int64_t run = mine.counts[r] * inner;
    copyRows(mine.out + start, pitch, calls[r].in, run, run, outer, stream, pool);
    start += run;
  }
}

// The part that rank r sends to `me`. Seen from the lower of the two dims: outer, low, middle, high, inner.
void receivePart(const Collective& theirs, const Collective& mine, int r, int me, bool stream, Pool& pool) {
  const View &x = *theirs.x, &y = *mine.y;
  const int split = mine.dim, join = mine.joinDim;
  const int low = std::min(split, join), high = std::max(split, join);
  const int64_t inner = product(y, high + 1, y.rank) * dtypeSize(y.dtype);
  const int64_t outer = product(y, 0, low);
  const int64_t splitBegin = sumBefore(theirs.counts, me), joinBegin = sumBefore(mine.joinCounts, r);
  if (split == join) {
    const int64_t run = mine.joinCounts[r] * inner;
    const int64_t toPitch = y.dims[join] * inner, fromPitch = x.dims[split] * inner;
    return copyRows(mine.out + joinBegin * inner, toPitch, theirs.in + splitBegin * inner, fromPitch, run, outer,
                    stream, pool);
  }
  // The part's own dims: the split dim as in y, the join dim as in x. Its rows run along `high` and inward.
  const int64_t partLow = low == split ? y.dims[split] : x.dims[join];
  const int64_t partHigh = high == split ? y.dims[split] : x.dims[join];
  const int64_t middle = product(y, low + 1, high);
  const int64_t fromLow = low == split ? splitBegin : 0, fromHigh = high == split ? splitBegin : 0;
  const int64_t toLow = low == join ? joinBegin : 0, toHigh = high == join ? joinBegin : 0;
  const int64_t run = partHigh * inner, fromPitch = x.dims[high] * inner, toPitch = y.dims[high] * inner;
  for (int64_t o = 0; o < outer; ++o) {
    const std::byte* from = theirs.in + (o * x.dims[low] + fromLow) * middle * fromPitch + fromHigh * inner;
    std::byte* to = mine.out + (o * y.dims[low] + toLow) * middle * toPitch + toHigh * inner;
    copyRows(to, toPitch, from, fromPitch, run, partLow * middle, stream, pool);
  }
}

// Where the rows of every expert of every rank begin, for one rank's reading of the counts: by the ranks that bring
// them, and by those that have the experts. Sums do not overflow: there are fewer than 2^32 counts below 2^31.
class ExpertRows {
 public:
  ExpertRows(const Collective& call, int ranks) : call_(call), ranks_(ranks) {}

  int64_t rows(int rank, int64_t expert) const {
    return std::max<int32_t>(call_.rows[rank * call_.experts + expert], 0);
  }

  // Calls f(rank, expert, at) for all rows that come to `me` on the way there, expert after expert, with the place of
  // the rows in what the rank brings.
  template <class F>
  void arriving(int me, const F& f) const {
    const int64_t first = sumBefore(call_.owners, me);
    std::vector<int64_t> at(static_cast<size_t>(ranks_), 0);
    for (int r = 0; r < ranks_; ++r) {
      for (int64_t e = 0; e < first; ++e) at[static_cast<size_t>(r)] += rows(r, e);
    }
    for (int64_t e = first; e < first + call_.owners[me]; ++e) {
      for (int r = 0; r < ranks_; ++r) {
        f(r, e, at[static_cast<size_t>(r)]);
        at[static_cast<size_t>(r)] += rows(r, e);
      }
    }
  }

  // Calls f(rank, expert, at) for all rows that `me` brought, in that order, with their place on the rank that has
  // them.
  template <class F>
  void returning(int me, const F& f) const {
    int64_t e = 0;
    for (int owner = 0; owner < ranks_; ++owner) {
      int64_t at = 0;
      for (const int64_t end = e + call_.owners[owner]; e < end; ++e) {
        for (int r = 0; r < me; ++r) at += rows(r, e);
        f(owner, e, at);
        for (int r = me; r < ranks_; ++r) at += rows(r, e);
      }
    }
  }

 private:
  const Collective& call_;
  int ranks_;
};

// Rows of the other ranks' x, as this rank's counts say, one after the other into y; zeros behind them. Whatever the
// counts are, nothing outside of both is touched.
void expertExchange(std::span<const Collective> calls, int me, Pool& pool) {
  const Collective& mine = calls[static_cast<size_t>(me)];
  const int64_t width = mine.y->dims[1] * dtypeSize(mine.y->dtype), room = mine.y->dims[0];
  const ExpertRows counts(mine, static_cast<int>(calls.size()));
  int64_t done = 0;
  const auto take = [&](int from, int64_t rows, int64_t at) {
    const Collective& theirs = calls[static_cast<size_t>(from)];
    const int64_t there = theirs.x->dims[0];
    const int64_t n = std::min({rows, room - done, std::max<int64_t>(there - at, 0)});
    if (n > 0) copyBytes(mine.out + done * width, theirs.in + at * width, n * width, pool);
    done += std::max<int64_t>(n, 0);
  };
  if (mine.back) {
    counts.returning(me, [&](int owner, int64_t e, int64_t at) { take(owner, counts.rows(me, e), at); });
  } else {
    counts.arriving(me, [&](int r, int64_t e, int64_t at) { take(r, counts.rows(r, e), at); });
  }
  const int64_t rest = (room - done) * width;
  if (rest > 0) std::memset(mine.out + done * width, 0, static_cast<size_t>(rest));
}

bool sameDims(const View& a, const View& b, int except, int exceptToo = -1) {
  if (a.rank != b.rank) return false;
  for (int d = 0; d < a.rank; ++d) {
    if (d != except && d != exceptToo && a.dims[d] != b.dims[d]) return false;
  }
  return true;
}

bool sameCounts(const int32_t* a, const int32_t* b, size_t n) { return std::equal(a, a + n, b); }

// Whether what rank r (of n) brings is what `mine`, of rank `me`, expects.
bool fits(const Collective& mine, const Collective& theirs, int me, int r, size_t n) {
  if (mine.op != theirs.op || mine.x->dtype != theirs.x->dtype) return false;
  switch (mine.op) {
    case Op::all_reduce:
      return mine.reduction == theirs.reduction && sameDims(*mine.x, *theirs.x, -1);
    case Op::reduce_scatter:
      return mine.reduction == theirs.reduction && mine.dim == theirs.dim && sameDims(*mine.x, *theirs.x, -1) &&
             sameCounts(mine.counts, theirs.counts, n);
    case Op::all_gather:
      return mine.dim == theirs.dim && sameDims(*mine.x, *theirs.x, mine.dim) &&
             sameCounts(mine.counts, theirs.counts, n);
    case Op::all_to_all:
      if (mine.dim != theirs.dim || mine.joinDim != theirs.joinDim) return false;
      if (!sameDims(*mine.x, *theirs.x, mine.dim, mine.joinDim)) return false;
      if (mine.dim == mine.joinDim)
        return theirs.counts[me] == mine.joinCounts[r] && mine.counts[r] == theirs.joinCounts[me];
      return sameCounts(mine.counts, theirs.counts, n) && sameCounts(mine.joinCounts, theirs.joinCounts, n);
    case Op::expert_exchange:
      return mine.back == theirs.back && mine.x->dims[1] == theirs.x->dims[1] && mine.experts == theirs.experts &&
             sameCounts(mine.owners, theirs.owners, n);
    default:
      return mine.root == theirs.root && sameDims(*mine.x, *theirs.x, -1);
  }
}

}  // namespace

void copyBytes(std::byte* to, const std::byte* from, int64_t bytes, Pool& pool) {
  copyRange(to, from, bytes, false, pool);
}

std::string describe(const Collective& call) {
  std::string text = kOpInfo[static_cast<int>(call.op)].name;
  if (call.label[0] != '\0' && text != call.label) text += std::string(" '") + call.label + "'";
  text += std::string(" of ") + dtypeName(call.x->dtype) + "[";
  for (int d = 0; d < call.x->rank; ++d) text += (d > 0 ? ", " : "") + std::to_string(call.x->dims[d]);
  return text + "]";
}

Status checkCalls(std::span<const Collective> calls, std::span<const int32_t> ranks, int me) {
  const Collective& mine = calls[static_cast<size_t>(me)];
  for (size_t r = 0; r < calls.size(); ++r) {
    if (static_cast<int>(r) == me || fits(mine, calls[r], me, static_cast<int>(r), calls.size())) continue;
    return Status(Code::invalidProgram, "ranks " + std::to_string(ranks[static_cast<size_t>(me)]) + " and " +
                                            std::to_string(ranks[r]) + " disagree: " + describe(mine) + " meets " +
                                            describe(calls[r]) + " (or their counts, dims or reductions differ)");
  }
  return Status();
}

void moveShare(std::span<const Collective> calls, int me, Pool& pool) {
  const Collective& mine = calls[static_cast<size_t>(me)];
  switch (mine.op) {
    case Op::all_reduce:
      return allReduce(calls, me, pool);
    case Op::reduce_scatter:
      return reduceScatter(calls, me, pool);
    case Op::all_gather:
      return allGather(calls, me, pool);
    case Op::all_to_all: {
      const bool stream = streams(calls, bytesOf(*mine.y));
      for (size_t r = 0; r < calls.size(); ++r) receivePart(calls[r], mine, static_cast<int>(r), me, stream, pool);
      return;
    }
    case Op::expert_exchange:
      return expertExchange(calls, me, pool);
    default: {
      const Collective& root = calls[static_cast<size_t>(mine.root)];
      return copyRange(mine.out, root.in, bytesOf(*mine.y), streams(calls, bytesOf(*mine.y)), pool);
    }
  }
}

}  // namespace meshwork
