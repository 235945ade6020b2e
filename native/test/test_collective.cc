// In-process collectives: values for uneven counts and every dtype.
#include <climits>
#include <cmath>
#include <cstring>
#include <span>

#include "test/collective_test.h"

namespace meshwork {
namespace {

using namespace test;

template <class T>
T make(double value) {
  if constexpr (std::is_same_v<T, bf16>) {
    return toBf16(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}
template <class T>
double get(T value) {
  if constexpr (std::is_same_v<T, bf16>) {
    return toFloat(value);
  } else {
    return static_cast<double>(value);
  }
}

template <class T>
void allReduce(DType dtype, int ranks, int64_t count, Reduction reduction, bool inPlace) {
  auto communicator = open(ranks);
  CommunicatorGroup* group = communicator->group(upTo(ranks));
  const View view = viewOf(dtype, {count});
  std::vector<std::vector<T>> x(static_cast<size_t>(ranks)), y(static_cast<size_t>(ranks));
  const auto value = [&](int r, int64_t i) { return static_cast<double>((i * 7 + r * 3) % 11 - 5); };
  for (int r = 0; r < ranks; ++r) {
    const auto s = static_cast<size_t>(r);
    for (int64_t i = 0; i < count; ++i) x[s].push_back(make<T>(value(r, i)));
    y[s].resize(x[s].size());
  }
  allOk(onRanks(ranks, [&](int r, Pool& pool) {
    const auto s = static_cast<size_t>(r);
    Collective c = call(Op::all_reduce, x[s].data(), inPlace ? x[s].data() : y[s].data(), view, view);
    c.reduction = reduction;
    return communicator->run(r, *group, {&c, 1}, pool);
  }));
  for (int64_t i = 0; i < count; ++i) {
    double expected = value(0, i);
    for (int r = 1; r < ranks; ++r) {
      const double v = value(r, i);
      expected = reduction == Reduction::sum   ? expected + v
                 : reduction == Reduction::max ? std::max(expected, v)
                                               : std::min(expected, v);
    }
    for (size_t r = 0; r < x.size(); ++r) CHECK_EQ(get((inPlace ? x : y)[r][static_cast<size_t>(i)]), expected);
  }
}

// Whatever each rank believes of the counts, nothing outside of the operands is touched; with true ones rows come to
// their experts in the order of ranks, and back.
void expertExchange(const std::vector<std::vector<int32_t>>& beliefs, bool sound) {
  const int ranks = 3;
  const int32_t owners[] = {2, 0, 1};
  auto communicator = open(ranks);
  CommunicatorGroup* group = communicator->group(upTo(ranks));
  const View own = viewOf(DType::f32, {6, 2}), room = viewOf(DType::f32, {18, 2});
  std::vector<std::vector<float>> x(3), there(3), back(3);
  for (size_t r = 0; r < 3; ++r) {
    for (int i = 0; i < 12; ++i) x[r].push_back(static_cast<float>(100 * r) + static_cast<float>(i));
    there[r].assign(36, -1);
    back[r].assign(12, -1);
  }
  const auto exchange = [&](int r, const std::vector<float>& from, std::vector<float>& to, bool home) {
    Collective c = call(Op::expert_exchange, from.data(), to.data(), home ? room : own, home ? own : room);
    c.rows = beliefs[beliefs.size() == 1 ? 0 : static_cast<size_t>(r)].data();
    c.owners = owners;
    c.experts = 3;
    c.ranks = ranks;
    c.most = 6;
    c.back = home;
    return c;
  };
  const auto run = [&](bool home) {
    allOk(onRanks(ranks, [&](int r, Pool& pool) {
      const auto s = static_cast<size_t>(r);
      const Collective c = home ? exchange(r, there[s], back[s], true) : exchange(r, x[s], there[s], false);
      return communicator->run(r, *group, std::span(&c, 1), pool);
    }));
  };
  run(false);
  run(true);
  if (!sound) return;
  for (size_t r = 0; r < 3; ++r) {
    int64_t rows = 0;
    for (size_t e = 0; e < 3; ++e) rows += beliefs[0][r * 3 + e];
    for (int64_t i = 0; i < 12; ++i) {
      CHECK_EQ(back[r][static_cast<size_t>(i)], i / 2 < rows ? x[r][static_cast<size_t>(i)] : 0.0f);
    }
  }
  CHECK_EQ(there[1][0], 0.0f);                               // no expert lives there
  CHECK_EQ(there[0][0], beliefs[0][0] > 0 ? 0.0f : 100.0f);  // the first row of expert 0
}

TEST(collective_expert_exchange) {
  expertExchange({{2, 1, 3, 0, 0, 6, 1, 4, 0}}, true);
  expertExchange({{0, 0, 0, 6, 0, 0, 5, 0, 1}}, true);
  expertExchange({{INT32_MAX, INT32_MIN, 3, INT32_MAX, INT32_MAX, INT32_MAX, -1, -1, -1}}, false);
  expertExchange({{9, 9, 9, 9, 9, 9, 9, 9, 9}, {0, 0, 0, 0, 0, 0, 0, 0, 0}, {-9, 1 << 30, 5, 7, 1 << 30, 2, 1, 1, 1}},
                 false);
}

TEST(collective_all_reduce) {
  for (const int ranks : {1, 2, 3, 4, 8}) {
    for (const int64_t count : {0, 1, 5, 1000, 70001}) {
      allReduce<float>(DType::f32, ranks, count, Reduction::sum, false);
    }
    allReduce<float>(DType::f32, ranks, 333, Reduction::max, true);
    allReduce<double>(DType::f64, ranks, 333, Reduction::min, true);
    allReduce<bf16>(DType::bf16, ranks, 333, Reduction::sum, false);
    allReduce<int32_t>(DType::i32, ranks, 333, Reduction::sum, true);
    allReduce<int32_t>(DType::i32, ranks, 33, Reduction::max, false);
  }
}

// Large enough to go past the caches, at addresses that are aligned alike, differently, or to no element.
TEST(collective_all_reduce_of_large_tensors) {
  constexpr int64_t kCount = (int64_t{1} << 21) + 37;
  const View view = viewOf(DType::f32, {kCount});
  for (const int ranks : {2, 3}) {
    for (const int shift : {0, 4, 6}) {
      auto communicator = open(ranks);
      CommunicatorGroup* group = communicator->group(upTo(ranks));
      std::vector<std::vector<std::byte>> x, y;
      for (int r = 0; r < ranks; ++r) {
        x.emplace_back(static_cast<size_t>(kCount * 4 + 64));
        y.emplace_back(static_cast<size_t>(kCount * 4 + 64), std::byte{0x55});
        for (int64_t i = 0; i < kCount; ++i) {
          const auto value = static_cast<float>((i * 7 + r * 3) % 11 - 5);
          std::memcpy(x.back().data() + shift + i * 4, &value, 4);
        }
      }
      const auto at = [&](int r) { return shift == 4 && r > 0 ? 8 : shift; };
      allOk(onRanks(ranks, [&](int r, Pool& pool) {
        const auto s = static_cast<size_t>(r);
        Collective c = call(Op::all_reduce, x[s].data() + shift, y[s].data() + at(r), view, view);
        return communicator->run(r, *group, {&c, 1}, pool);
      }));
      for (int r = 0; r < ranks; ++r) {
        const std::vector<std::byte>& out = y[static_cast<size_t>(r)];
        int64_t wrong = 0;
        for (int64_t i = 0; i < kCount; ++i) {
          float expected = 0, got = 0;
          for (int p = 0; p < ranks; ++p) expected += static_cast<float>((i * 7 + p * 3) % 11 - 5);
          std::memcpy(&got, out.data() + at(r) + i * 4, 4);
          wrong += got != expected;
        }
        CHECK_EQ(wrong, 0);
        for (int i = 0; i < at(r); ++i) CHECK(out[static_cast<size_t>(i)] == std::byte{0x55});
        CHECK(out[static_cast<size_t>(kCount * 4 + at(r))] == std::byte{0x55});
      }
    }
  }
}

TEST(collective_bf16_sums_round_once) {
  constexpr int kCount = 77;
  auto communicator = open(3);
  CommunicatorGroup* group = communicator->group(upTo(3));
  const View view = viewOf(DType::bf16, {kCount});
  bf16 x[3][kCount], y[3][kCount];
  const float special[] = {NAN, INFINITY, -INFINITY, 1e-40f, 3.0e38f};
  for (int r = 0; r < 3; ++r) {
    for (int i = 0; i < kCount; ++i) {
      x[r][i] = toBf16(i % 9 < 5 ? special[(i + r) % 5] : 1.0f + static_cast<float>(i * (r + 1)) / 256.0f);
    }
  }
  allOk(onRanks(3, [&](int r, Pool& pool) {
    Collective c = call(Op::all_reduce, x[r], y[r], view, view);
    return communicator->run(r, *group, {&c, 1}, pool);
  }));
  for (int i = 0; i < kCount; ++i) {
    const bf16 expected = toBf16(toFloat(x[0][i]) + toFloat(x[1][i]) + toFloat(x[2][i]));
    for (const auto& row : y) {
      const bool same = row[i].bits == expected.bits;
      CHECK(same || (std::isnan(toFloat(row[i])) && std::isnan(toFloat(expected))));
    }
  }
}

TEST(collective_all_reduce_keeps_nan) {
  auto communicator = open(2);
  CommunicatorGroup* group = communicator->group({0, 1});
  const View view = viewOf(DType::f32, {2});
  float x[2][2] = {{NAN, 1}, {1, NAN}};
  allOk(onRanks(2, [&](int r, Pool& pool) {
    Collective c = call(Op::all_reduce, x[r], x[r], view, view);
    c.reduction = Reduction::max;
    return communicator->run(r, *group, {&c, 1}, pool);
  }));
  for (const auto& row : x) CHECK(std::isnan(row[0]) && std::isnan(row[1]));
}

int64_t total(const std::vector<int32_t>& counts) {
  int64_t sum = 0;
  for (const int32_t c : counts) sum += c;
  return sum;
}

// Gathers and scatters [3, n, 2] along the middle dim, with every rank's part of its own size.
void gatherAndScatter(const std::vector<int32_t>& counts) {
  const int ranks = static_cast<int>(counts.size());
  const int64_t whole = total(counts);
  auto communicator = open(ranks);
  CommunicatorGroup* group = communicator->group(upTo(ranks));
  const View wholeView = viewOf(DType::f32, {3, whole, 2});
  const auto at = [&](int64_t o, int64_t i, int64_t k) { return static_cast<float>(o * 1000 + i * 10 + k); };
  allOk(onRanks(ranks, [&](int r, Pool& pool) {
    const int64_t mine = counts[static_cast<size_t>(r)];
    int64_t start = 0;
    for (int i = 0; i < r; ++i) start += counts[static_cast<size_t>(i)];
    const View partView = viewOf(DType::f32, {3, mine, 2});
    std::vector<float> part(static_cast<size_t>(6 * mine)), all(static_cast<size_t>(6 * whole)), back(part.size());
    for (int64_t o = 0; o < 3; ++o) {
      for (int64_t i = 0; i < mine; ++i) {
        for (int64_t k = 0; k < 2; ++k) part[static_cast<size_t>((o * mine + i) * 2 + k)] = at(o, start + i, k);
      }
    }
    Collective c = call(Op::all_gather, part.data(), all.data(), partView, wholeView);
    c.dim = 1;
    c.counts = counts.data();
    Status status = communicator->run(r, *group, {&c, 1}, pool);
    for (int64_t i = 0; status.ok() && i < 6 * whole; ++i) {
      if (all[static_cast<size_t>(i)] != at(i / (2 * whole), i / 2 % whole, i % 2))
        return Status(Code::internal, "gathered wrongly");
    }
    if (!status.ok()) return status;
    c = call(Op::reduce_scatter, all.data(), back.data(), wholeView, partView);
    c.dim = 1;
    c.counts = counts.data();
    status = communicator->run(r, *group, {&c, 1}, pool);
    for (size_t i = 0; status.ok() && i < part.size(); ++i) {
      if (back[i] != static_cast<float>(ranks) * part[i]) return Status(Code::internal, "scattered wrongly");
    }
    return status;
  }));
}

TEST(collective_gather_and_scatter) {
  gatherAndScatter({4});
  gatherAndScatter({3, 3});
  gatherAndScatter({5, 0, 2});
  gatherAndScatter({0, 0, 0, 1});
  gatherAndScatter({0, 0});
  gatherAndScatter({2, 2, 2, 2, 1, 1, 1, 700});
}

// Every rank holds its part of the join dim whole along the split dim, and gets the reverse.
void allToAll(const std::vector<int32_t>& split, const std::vector<int32_t>& join, int splitDim, int joinDim) {
  const int ranks = static_cast<int>(split.size());
  auto communicator = open(ranks);
  CommunicatorGroup* group = communicator->group(upTo(ranks));
  std::vector<int64_t> dims = {2, 2, 2, 3};
  dims[static_cast<size_t>(splitDim)] = total(split);
  dims[static_cast<size_t>(joinDim)] = total(join);
  const auto globalIndex = [&](const std::vector<int64_t>& index) {
    int64_t flat = 0;
    for (size_t d = 0; d < dims.size(); ++d) flat = flat * dims[d] + index[d];
    return static_cast<int32_t>(flat);
  };
  // The local array whose `dim` holds the part [start, start + size) of the global one.
  const auto local = [&](int dim, int64_t start, int64_t size) {
    std::vector<int64_t> own = dims;
    own[static_cast<size_t>(dim)] = size;
    std::vector<int32_t> values;
    for (int64_t i = 0; i < own[0] * own[1] * own[2] * own[3]; ++i) {
      std::vector<int64_t> index = {i / (own[3] * own[2] * own[1]), i / (own[3] * own[2]) % own[1], i / own[3] % own[2],
                                    i % own[3]};
      index[static_cast<size_t>(dim)] += start;
      values.push_back(globalIndex(index));
    }
    return std::pair(viewOf(DType::i32, own), values);
  };
  allOk(onRanks(ranks, [&](int r, Pool& pool) {
    const auto s = static_cast<size_t>(r);
    int64_t splitStart = 0, joinStart = 0;
    for (size_t i = 0; i < s; ++i) splitStart += split[i], joinStart += join[i];
    const auto [x, values] = local(joinDim, joinStart, join[s]);
    const auto [y, expected] = local(splitDim, splitStart, split[s]);
    std::vector<int32_t> out(expected.size());
    Collective c = call(Op::all_to_all, values.data(), out.data(), x, y);
    c.dim = splitDim;
    c.joinDim = joinDim;
    c.counts = split.data();
    c.joinCounts = join.data();
    Status status = communicator->run(r, *group, {&c, 1}, pool);
    if (status.ok() && out != expected) status = Status(Code::internal, "exchanged wrongly");
    return status;
  }));
}

TEST(collective_all_to_all) {
  allToAll({2, 2}, {3, 3}, 1, 2);
  allToAll({2, 2}, {3, 3}, 2, 1);
  allToAll({3, 0, 2}, {1, 4, 0}, 0, 3);
  allToAll({3, 0, 2}, {1, 4, 0}, 3, 0);
  allToAll({1, 2, 3, 0}, {2, 2, 1, 1}, 0, 1);
  allToAll({5}, {4}, 1, 3);
}

// Split and joined along the same dim: rank r sends r + i elements to rank i.
TEST(collective_all_to_all_same_dim) {
  constexpr int kRanks = 3;
  auto communicator = open(kRanks);
  CommunicatorGroup* group = communicator->group(upTo(kRanks));
  allOk(onRanks(kRanks, [&](int r, Pool& pool) {
    std::vector<int32_t> counts, x, expected;
    for (int i = 0; i < kRanks; ++i) {
      counts.push_back(r + i);
      for (int e = 0; e < r + i; ++e) x.push_back(100 * r + 10 * i + e), expected.push_back(100 * i + 10 * r + e);
    }
    const View view = viewOf(DType::i32, {static_cast<int64_t>(x.size())});
    std::vector<int32_t> out(x.size());
    Collective c = call(Op::all_to_all, x.data(), out.data(), view, view);
    c.counts = c.joinCounts = counts.data();
    Status status = communicator->run(r, *group, {&c, 1}, pool);
    if (status.ok() && out != expected) status = Status(Code::internal, "exchanged wrongly");
    return status;
  }));
}

TEST(collective_broadcast_in_a_subgroup) {
  auto communicator = open(4);
  CommunicatorGroup* group = communicator->group({1, 3});
  const View view = viewOf(DType::boolean, {5});
  allOk(onRanks(4, [&](int r, Pool& pool) {
    if (r % 2 == 0) return Status();
    char x[5] = {}, y[5] = {};
    std::fill(std::begin(x), std::end(x), static_cast<char>(r));
    Collective c = call(Op::broadcast, x, y, view, view);
    c.root = 1;
    Status status = communicator->run(r, *group, {&c, 1}, pool);
    if (status.ok() && y[4] != 3) status = Status(Code::internal, "broadcast wrongly");
    return status;
  }));
}

// Tensors of several shapes, dims and uneven counts, exchanged at once, as if each were exchanged alone.
TEST(collective_bucket) {
  constexpr int kRanks = 3;
  const std::vector<std::vector<int64_t>> shapes = {{5, 2}, {3, 7}, {1}, {0, 4}};
  const std::vector<int> dims = {0, 1, 0, 1};
  const std::vector<std::vector<int32_t>> counts = {{2, 2, 1}, {3, 2, 2}, {1, 0, 0}, {2, 1, 1}};
  for (const Op op : {Op::all_reduce, Op::reduce_scatter, Op::all_gather}) {
    auto communicator = open(kRanks);
    CommunicatorGroup* group = communicator->group(upTo(kRanks));
    std::vector<std::vector<std::vector<float>>> together(kRanks), alone(kRanks);
    allOk(onRanks(kRanks, [&](int r, Pool& pool) {
      std::vector<std::vector<float>> x(shapes.size());
      std::vector<View> wholes, parts;
      for (size_t i = 0; i < shapes.size(); ++i) {
        std::vector<int64_t> part = shapes[i];
        part[static_cast<size_t>(dims[i])] = counts[i][static_cast<size_t>(r)];
        wholes.push_back(viewOf(DType::f32, shapes[i]));
        parts.push_back(viewOf(DType::f32, part));
        for (int64_t k = 0; k < wholes[i].count(); ++k) x[i].push_back(static_cast<float>(k * 10 + r));
      }
      std::vector<Collective> calls;
      for (auto* y : {&together[static_cast<size_t>(r)], &alone[static_cast<size_t>(r)]}) {
        calls.clear();
        for (size_t i = 0; i < shapes.size(); ++i) {
          y->emplace_back(static_cast<size_t>(wholes[i].count()), -1.0F);
          const View& in = op == Op::all_gather ? parts[i] : wholes[i];
          calls.push_back(call(op, x[i].data(), y->back().data(), in, op == Op::reduce_scatter ? parts[i] : wholes[i]));
          calls.back().dim = dims[i];
          calls.back().counts = counts[i].data();
        }
        if (y == &together[static_cast<size_t>(r)]) {
          Status status = communicator->run(r, *group, calls, pool);
          if (!status.ok()) return status;
        }
      }
      for (const Collective& c : calls) {
        Status status = communicator->run(r, *group, {&c, 1}, pool);
        if (!status.ok()) return status;
      }
      return Status();
    }));
    CHECK(together == alone);
  }
}

}  // namespace
}  // namespace meshwork
