// Shares of in-process collectives. Loops are simple, so that the compiler vectorises them; memory is the bound.
#include "collective/move.h"

#include <algorithm>
#include <cstring>

#include "runtime/pool.h"

namespace meshwork {
namespace {

constexpr int64_t kBlock = 1024;        // elements reduced at a time: the accumulator stays in the first cache
constexpr int64_t kTask = 32 * kBlock;  // elements of one block of the pool
constexpr int64_t kCopyTask = int64_t{1} << 18;

// bf16 accumulates in f32; the others in their own type.
template <class T>
struct Accumulator {
  using type = T;
};
template <>
struct Accumulator<bf16> {
  using type = float;
};
template <>
struct Accumulator<int32_t> {
  using type = uint32_t;  // sums wrap around
};

template <class T>
inline void load(const T* from, typename Accumulator<T>::type* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<T, bf16>) {
      to[i] = toFloat(from[i]);
    } else {
      to[i] = static_cast<typename Accumulator<T>::type>(from[i]);
    }
  }
}

template <class T>
inline void store(const typename Accumulator<T>::type* from, T* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<T, bf16>) {
      to[i] = toBf16(from[i]);
    } else {
      to[i] = static_cast<T>(from[i]);
    }
  }
}

// acc = acc (op) from. A NaN on either side stays one.
template <class T, Reduction kind>
inline void accumulate(const T* from, typename Accumulator<T>::type* acc, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<T, int32_t>) {
      const int32_t a = static_cast<int32_t>(acc[i]), b = from[i];
      if constexpr (kind == Reduction::sum) acc[i] += static_cast<uint32_t>(b);
      if constexpr (kind == Reduction::max) acc[i] = static_cast<uint32_t>(a > b ? a : b);
      if constexpr (kind == Reduction::min) acc[i] = static_cast<uint32_t>(a < b ? a : b);
    } else {
      using A = typename Accumulator<T>::type;
      A b;
      if constexpr (std::is_same_v<T, bf16>) {
        b = toFloat(from[i]);
      } else {
        b = from[i];
      }
      const A a = acc[i];
      if constexpr (kind == Reduction::sum) acc[i] = a + b;
      if constexpr (kind == Reduction::max) acc[i] = (a > b || a != a) ? a : b;
      if constexpr (kind == Reduction::min) acc[i] = (a < b || a != a) ? a : b;
    }
  }
}

template <class T, Reduction kind>
void reduceRange(const T* const* sources, int64_t ranks, int64_t offset, int64_t n,
                 typename Accumulator<T>::type* acc) {
  load(sources[0] + offset, acc, n);
  for (int64_t r = 1; r < ranks; ++r) accumulate<T, kind>(sources[r] + offset, acc, n);
}

template <class T>
using Reducer = void (*)(const T* const*, int64_t, int64_t, int64_t, typename Accumulator<T>::type*);

template <class T>
Reducer<T> reducer(Reduction kind) {
  if (kind == Reduction::max) return reduceRange<T, Reduction::max>;
  if (kind == Reduction::min) return reduceRange<T, Reduction::min>;
  return reduceRange<T, Reduction::sum>;
}

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

template <class T>
std::vector<const T*> sourcesOf(std::span<const Collective> calls) {
  std::vector<const T*> sources(calls.size());
  std::transform(calls.begin(), calls.end(), sources.begin(),
                 [](const Collective& call) { return reinterpret_cast<const T*>(call.in); });
  return sources;
}

// Chunk `me` of the elements, reduced and written to every rank. Chunks begin on cache lines.
template <class T>
void allReduce(std::span<const Collective> calls, int me, Pool& pool) {
  const auto ranks = static_cast<int64_t>(calls.size());
  const int64_t count = calls[0].x->count();
  const int64_t chunk = (count + ranks - 1) / ranks;
  const int64_t line = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t aligned = (chunk + line - 1) / line * line;
  const int64_t begin = std::min(aligned * me, count), end = std::min(begin + aligned, count);
  const std::vector<const T*> sources = sourcesOf<T>(calls);
  const Reducer<T> reduce = reducer<T>(calls[0].reduction);
  pool.run((end - begin + kTask - 1) / kTask, [&](int64_t task, int) {
    alignas(64) typename Accumulator<T>::type acc[kBlock];
    const int64_t stop = std::min(begin + (task + 1) * kTask, end);
    for (int64_t at = begin + task * kTask; at < stop; at += kBlock) {
      const int64_t n = std::min(kBlock, stop - at);
      reduce(sources.data(), ranks, at, n, acc);
      for (const Collective& call : calls) store(acc, reinterpret_cast<T*>(call.out) + at, n);
    }
  });
}

// This rank's part along dim: for every outer index, a run of counts[me] * inner elements.
template <class T>
void reduceScatter(std::span<const Collective> calls, int me, Pool& pool) {
  const auto ranks = static_cast<int64_t>(calls.size());
  const Collective& mine = calls[static_cast<size_t>(me)];
  const View& x = *mine.x;
  const int64_t outer = product(x, 0, mine.dim), inner = product(x, mine.dim + 1, x.rank);
  const int64_t run = mine.counts[me] * inner, row = x.dims[mine.dim] * inner;
  const int64_t first = sumBefore(mine.counts, me) * inner;
  const std::vector<const T*> sources = sourcesOf<T>(calls);
  const Reducer<T> reduce = reducer<T>(mine.reduction);
  const int64_t pieces = (run + kBlock - 1) / kBlock;  // of one run
  const int64_t total = outer * pieces;
  constexpr int64_t kPieces = kTask / kBlock;
  pool.run((total + kPieces - 1) / kPieces, [&](int64_t task, int) {
    alignas(64) typename Accumulator<T>::type acc[kBlock];
    for (int64_t i = task * kPieces; i < std::min((task + 1) * kPieces, total); ++i) {
      const int64_t o = i / pieces, at = i % pieces * kBlock;
      const int64_t n = std::min(kBlock, run - at);
      reduce(sources.data(), ranks, o * row + first + at, n, acc);
      store(acc, reinterpret_cast<T*>(mine.out) + o * run + at, n);
    }
  });
}

template <template <class> class Fn, class... Args>
void dispatch(DType dtype, Args&&... args) {
  switch (dtype) {
    case DType::f32:
      return Fn<float>::call(args...);
    case DType::f64:
      return Fn<double>::call(args...);
    case DType::bf16:
      return Fn<bf16>::call(args...);
    default:
      return Fn<int32_t>::call(args...);
  }
}
template <class T>
struct AllReduce {
  static void call(std::span<const Collective> calls, int me, Pool& pool) { allReduce<T>(calls, me, pool); }
};
template <class T>
struct ReduceScatter {
  static void call(std::span<const Collective> calls, int me, Pool& pool) { reduceScatter<T>(calls, me, pool); }
};

// `rows` runs of `bytes`, at their own distances on both sides.
void copyRows(std::byte* to, int64_t toPitch, const std::byte* from, int64_t fromPitch, int64_t bytes, int64_t rows,
              Pool& pool) {
  if (bytes == 0 || rows == 0) return;
  if (rows == 1 || (bytes == toPitch && bytes == fromPitch)) return copyBytes(to, from, bytes * rows, pool);
  const int64_t each = std::max<int64_t>(kCopyTask / bytes, 1);  // rows of one task
  pool.run((rows + each - 1) / each, [&](int64_t task, int) {
    for (int64_t r = task * each; r < std::min((task + 1) * each, rows); ++r) {
      std::memcpy(to + r * toPitch, from + r * fromPitch, static_cast<size_t>(bytes));
    }
  });
}

void allGather(std::span<const Collective> calls, int me, Pool& pool) {
  const Collective& mine = calls[static_cast<size_t>(me)];
  const View& y = *mine.y;
  const int64_t outer = product(y, 0, mine.dim);
  const int64_t inner = product(y, mine.dim + 1, y.rank) * dtypeSize(y.dtype);
  const int64_t pitch = y.dims[mine.dim] * inner;
  int64_t start = 0;
  for (size_t r = 0; r < calls.size(); ++r) {
    const int64_t run = mine.counts[r] * inner;
    copyRows(mine.out + start, pitch, calls[r].in, run, run, outer, pool);
    start += run;
  }
}

// The part that rank r sends to `me`. Seen from the lower of the two dims: outer, low, middle, high, inner.
void receivePart(const Collective& theirs, const Collective& mine, int r, int me, Pool& pool) {
  const View &x = *theirs.x, &y = *mine.y;
  const int split = mine.dim, join = mine.joinDim;
  const int low = std::min(split, join), high = std::max(split, join);
  const int64_t inner = product(y, high + 1, y.rank) * dtypeSize(y.dtype);
  const int64_t outer = product(y, 0, low);
  const int64_t splitBegin = sumBefore(theirs.counts, me), joinBegin = sumBefore(mine.joinCounts, r);
  if (split == join) {
    const int64_t run = mine.joinCounts[r] * inner;
    const int64_t toPitch = y.dims[join] * inner, fromPitch = x.dims[split] * inner;
    return copyRows(mine.out + joinBegin * inner, toPitch, theirs.in + splitBegin * inner, fromPitch, run, outer, pool);
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
    copyRows(to, toPitch, from, fromPitch, run, partLow * middle, pool);
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
  if (bytes == 0 || to == from) return;
  pool.run((bytes + kCopyTask - 1) / kCopyTask, [&](int64_t task, int) {
    const int64_t at = task * kCopyTask;
    std::memmove(to + at, from + at, static_cast<size_t>(std::min(kCopyTask, bytes - at)));
  });
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
      return dispatch<AllReduce>(mine.x->dtype, calls, me, pool);
    case Op::reduce_scatter:
      return dispatch<ReduceScatter>(mine.x->dtype, calls, me, pool);
    case Op::all_gather:
      return allGather(calls, me, pool);
    case Op::all_to_all:
      for (size_t r = 0; r < calls.size(); ++r) receivePart(calls[r], mine, static_cast<int>(r), me, pool);
      return;
    case Op::expert_exchange:
      return expertExchange(calls, me, pool);
    default: {
      const Collective& root = calls[static_cast<size_t>(mine.root)];
      return copyBytes(mine.out, root.in, mine.y->count() * dtypeSize(mine.y->dtype), pool);
    }
  }
}

}  // namespace meshwork
