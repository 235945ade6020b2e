// The NCCL communicator on the emulated CUDA backend and the stand-in for NCCL: values of every collective, with uneven
// counts and any dim; and that a wrong order, count or type, a missing rank and an abort are told, by name, in time.
#include <algorithm>
#include <climits>
#include <thread>

#include "test/cuda_emulator/cuda_engine.h"

namespace meshwork::test::cuda_engine {
namespace {

constexpr int64_t kBlock = 4096;  // bytes of each device's input and output

// One collective of f32 on every device, from its block of the input to its block of the output.
struct Case {
  const char* name;
  Op op;
  std::vector<std::vector<int64_t>> x, y;  // dims of each rank
  Words attributes;                        // after the group
  std::vector<Words> tables;               // of each rank, after the group's number
};

std::vector<Words> programsOf(const Case& test) {
  const int devices = static_cast<int>(test.x.size());
  std::vector<Words> programs;
  Words everybody;
  for (int d = 0; d < devices; ++d) everybody.push_back(d);
  for (int d = 0; d < devices; ++d) {
    const auto rank = static_cast<size_t>(d);
    ProgramSource p;
    p.arenaBytes = 4 * kBlock;
    p.labels = {test.name};
    p.groups = {everybody};
    p.table = {0};
    append(p.table, test.tables[rank]);
    const int32_t x = p.view(DType::f32, test.x[rank]), y = p.view(DType::f32, test.y[rank]);
    Words attributes = {0};
    append(attributes, test.attributes);
    p.segment({instruction(test.op, {{0, 0, x}}, {{0, kBlock / 64, y}}, attributes, 0)});
    p.feed(kBlock * d, 0, kBlock);
    p.run(0);
    p.fetch(0, kBlock / 64, kBlock * d, kBlock);
    programs.push_back(p.words());
  }
  return programs;
}

std::vector<float> outputs(const Case& test, const char* collectives) {
  const int devices = static_cast<int>(test.x.size());
  Fixture f(devices, devices, 20000, collectives);
  const int32_t executable = f.load(programsOf(test), kBlock * devices, kBlock * devices);
  std::vector<float> input = counting(static_cast<int>(kBlock / 4) * devices);
  for (float& value : input) value = static_cast<float>(static_cast<int>(value) * 37 % 1009);
  std::vector<float> kept;
  for (int repeat = 0; repeat < 2; ++repeat) {
    const Outcome outcome = f.run(executable, input);
    CHECK_EQ(outcome.status.message(), std::string());
    // The arena behind a result is not the collective's.
    kept.clear();
    for (size_t d = 0; d < test.y.size() && !outcome.output.empty(); ++d) {
      int64_t count = 1;
      for (const int64_t dim : test.y[d]) count *= dim;
      const auto first = outcome.output.begin() + static_cast<std::ptrdiff_t>(d * kBlock / 4);
      kept.insert(kept.end(), first, first + count);
    }
  }
  return kept;
}

// In-process collectives were held against values in test_collective.cc; the stand-in adds in rank order, as they do.
void checkCase(const Case& test) {
  const std::vector<float> expected = outputs(test, "in-process"), found = outputs(test, "nccl");
  CHECK(!expected.empty());
  CHECK(expected == found);
}

using Dims = std::vector<std::vector<int64_t>>;

TEST(nccl_sums_and_messages) {
  for (const int devices : {1, 2, 4}) {
    Fixture f(devices, devices, 20000, "nccl");
    const int32_t executable = f.load(sums(devices), 16 * devices, 16 * devices);
    for (int repeat = 0; repeat < 4; ++repeat) checkSums(f.run(executable, counting(4 * devices)).output, devices);
    if (devices > 1) checkRing(f, devices);
  }
}

TEST(nccl_collectives_agree) {
  const Words equal = {2, 2, 2}, uneven = {3, 2, 0};
  checkCase({"maximum", Op::all_reduce, Dims(3, {5, 7}), Dims(3, {5, 7}), {1}, std::vector<Words>(3)});
  checkCase({"broadcast", Op::broadcast, Dims(3, {5, 7}), Dims(3, {5, 7}), {1}, std::vector<Words>(3, {2})});
  for (const int32_t dim : {0, 1}) {
    const auto dims = [&](int64_t n) { return dim == 0 ? std::vector<int64_t>{n, 4} : std::vector<int64_t>{4, n}; };
    for (const Words& counts : {equal, uneven}) {
      const Dims whole(3, dims(counts[0] + counts[1] + counts[2]));
      Dims parts;
      for (const int32_t count : counts) parts.push_back(dims(count));
      const std::vector<Words> tables(3, counts);
      checkCase({"gather", Op::all_gather, parts, whole, {dim, 1}, tables});
      checkCase({"scatter", Op::reduce_scatter, whole, parts, {0, dim, 1}, tables});
    }
  }
}

TEST(nccl_all_to_all_agrees) {
  const Words split = {3, 2, 1}, join = {2, 2, 3};
  for (const auto& [splitDim, joinDim] : std::vector<std::pair<int, int>>{{0, 1}, {1, 0}, {2, 1}, {0, 2}}) {
    Dims x, y;
    std::vector<Words> tables;
    for (size_t rank = 0; rank < 3; ++rank) {
      std::vector<int64_t> from(3, 2), to(3, 2);
      from[static_cast<size_t>(splitDim)] = 6;
      from[static_cast<size_t>(joinDim)] = join[rank];
      to[static_cast<size_t>(splitDim)] = split[rank];
      to[static_cast<size_t>(joinDim)] = 7;
      x.push_back(from);
      y.push_back(to);
      Words table = split;
      append(table, join);
      tables.push_back(table);
    }
    checkCase({"exchange", Op::all_to_all, x, y, {splitDim, joinDim, 1, 4}, tables});
  }
}

// Rows to their experts and back: three ranks, of which the second has no expert.
const Words kOwners = {2, 0, 1};
constexpr int64_t kOwn = 6, kRoom = 18;

Words exchangeProgram(int rank) {
  ProgramSource p;
  p.arenaBytes = 4 * kBlock;
  p.labels = {"experts"};
  p.groups = {{0, 1, 2}};
  p.table = {0};
  append(p.table, kOwners);
  append(p.table, {6, 6, 6});
  const int32_t own = p.view(DType::f32, {kOwn, 2}), counts = p.view(DType::i32, {3, 3});
  const int32_t there = p.view(DType::f32, {kRoom, 2});
  const auto at = [](int block, int32_t view) { return Ref{0, static_cast<int32_t>(block * kBlock / 64), view}; };
  p.segment({instruction(Op::expert_exchange, {at(0, own), at(1, counts)}, {at(2, there)}, {0, 1, 0, 4}, 0),
             instruction(Op::expert_exchange, {at(2, there), at(1, counts)}, {at(3, own)}, {0, 1, 1, 4}, 0)});
  p.feed(2 * kBlock * rank, 0, 2 * kBlock);
  p.run(0);
  p.fetch(0, 2 * kBlock / 64, 2 * kBlock * rank, 2 * kBlock);
  return p.words();
}

constexpr size_t kFloats = kBlock / 4;  // of a block

// Rank r's row i is [100 r + i, -(100 r + i)]; every rank believes `counts`.
std::vector<float> exchanged(const std::vector<std::vector<int32_t>>& counts, const char* collectives) {
  Fixture f(3, 3, 20000, collectives);
  std::vector<float> input(3 * 2 * kFloats);
  for (size_t r = 0; r < 3; ++r) {
    float* const block = input.data() + r * 2 * kFloats;
    for (size_t i = 0; i < kOwn; ++i) {
      block[2 * i] = static_cast<float>(100 * r + i);
      block[2 * i + 1] = -block[2 * i];
    }
    std::memcpy(block + kFloats, counts[counts.size() == 1 ? 0 : r].data(), 9 * sizeof(int32_t));
  }
  const int32_t executable =
      f.load({exchangeProgram(0), exchangeProgram(1), exchangeProgram(2)}, 6 * kBlock, 6 * kBlock);
  const Outcome outcome = f.run(executable, input);
  CHECK_EQ(outcome.status.message(), std::string());
  return outcome.output;
}

// What an exchange makes of counts that are true, row by row.
void checkExchanged(const std::vector<int32_t>& counts, const std::vector<float>& output) {
  CHECK_EQ(output.size(), 3 * 2 * kFloats);
  const auto rows = [&](size_t r, size_t e) { return static_cast<size_t>(counts[3 * r + e]); };
  size_t expert = 0;
  for (size_t me = 0; me < 3 && !output.empty(); ++me) {
    std::vector<float> expected;
    for (int32_t i = 0; i < kOwners[me]; ++i, ++expert) {
      for (size_t r = 0; r < 3; ++r) {
        size_t row = 0;
        for (size_t e = 0; e < expert; ++e) row += rows(r, e);
        for (size_t j = 0; j < rows(r, expert); ++j) expected.push_back(static_cast<float>(100 * r + row + j));
      }
    }
    expected.resize(kRoom);
    const float* const there = output.data() + me * 2 * kFloats;
    for (size_t i = 0; i < kRoom; ++i) {
      CHECK_EQ(there[2 * i], expected[i]);
      CHECK_EQ(there[2 * i + 1], -expected[i]);
    }
    const size_t brought = rows(me, 0) + rows(me, 1) + rows(me, 2);
    for (size_t i = 0; i < kOwn; ++i) {
      CHECK_EQ(there[kFloats + 2 * i], i < brought ? static_cast<float>(100 * me + i) : 0.0f);
    }
  }
}

TEST(nccl_expert_exchange) {
  const std::vector<std::vector<int32_t>> all = {{2, 1, 3, 0, 0, 6, 1, 4, 0},
                                                 {0, 0, 0, 6, 0, 0, 5, 0, 1},
                                                 {0, 6, 0, 0, 6, 0, 0, 6, 0},
                                                 {0, 0, 0, 0, 0, 0, 0, 0, 0}};
  for (const char* collectives : {"in-process", "nccl"}) {
    for (const std::vector<int32_t>& counts : all) checkExchanged(counts, exchanged({counts}, collectives));
    // Whatever the counts are, nothing outside of the operands is touched, and all come to an end.
    constexpr int32_t most = INT32_MAX, least = INT32_MIN;
    exchanged({{most, least, 3, most, most, most, -1, -1, -1}}, collectives);
    exchanged({{9, 9, 9, 9, 9, 9, 9, 9, 9}, {0, 0, 0, 0, 0, 0, 0, 0, 0}, {-9, most, 5, 7, most, 2, 1, 1, 1}},
              collectives);
  }
}

TEST(nccl_more_rows_than_room_are_refused) {
  Fixture f(3, 3, 20000, "nccl");
  std::vector<Words> programs = {exchangeProgram(0), exchangeProgram(1), exchangeProgram(2)};
  Words table = kOwners;
  append(table, {6, 6, 6});
  const auto found = std::search(programs[1].begin(), programs[1].end(), table.begin(), table.end());
  found[3] = 7;  // the first rank's bound
  std::vector<std::vector<int32_t>> none(3);
  std::vector<std::span<const int32_t>> words(programs.begin(), programs.end()), bound(none.begin(), none.end());
  int32_t executable = 0;
  const Status status = f.engine->load(words, bound, 6 * kBlock, 6 * kBlock, &executable);
  CHECK(status.message().find("more rows may come than there is room for") != std::string::npos);
}

// Two ranks with one collective each, which do not fit together.
Outcome disagreement(const Words& first, const Words& second) {
  Fixture f(2, 2, 5000, "nccl");
  const Outcome outcome = f.run(f.load({first, second}, 0, 0), {});
  const Outcome next = f.run(f.load({first, first}, 0, 0), {});  // the engine is dead
  CHECK(!next.status.ok());
  return outcome;
}

Words meeting(Op op, DType dtype, int64_t count, int repeats = 1) {
  ProgramSource p;
  const int32_t v = p.view(dtype, {count});
  p.table = {0};
  p.groups = {{0, 1}};
  p.labels = {"h.3.mlp"};
  const Words attributes = {0, 0};  // all_reduce: the group, sum; broadcast: the group, root 0
  p.segment({instruction(op, {{0, 0, v}}, {{0, 8, v}}, attributes, 0)});
  for (int i = 0; i < repeats; ++i) p.run(0);
  return p.words();
}

bool has(const Outcome& outcome, const std::string& text) {
  const bool found = outcome.status.message().find(text) != std::string::npos;
  if (!found) test::fail(__FILE__, __LINE__, "'" + text + "' is not in: " + outcome.status.message());
  return found;
}

TEST(nccl_wrong_count_is_named) {
  const Outcome outcome = disagreement(meeting(Op::all_reduce, DType::f32, 4), meeting(Op::all_reduce, DType::f32, 5));
  CHECK(!outcome.status.ok());
  CHECK(has(outcome, "ncclAllReduce of 4 f32") && has(outcome, "ncclAllReduce of 5 f32") && has(outcome, "h.3.mlp"));
}

TEST(nccl_wrong_type_is_named) {
  const Outcome outcome = disagreement(meeting(Op::all_reduce, DType::f32, 4), meeting(Op::all_reduce, DType::i32, 4));
  CHECK(has(outcome, "4 f32") && has(outcome, "4 i32") && has(outcome, "rank "));
}

TEST(nccl_wrong_order_is_named) {
  const Outcome outcome = disagreement(meeting(Op::all_reduce, DType::f32, 4), meeting(Op::broadcast, DType::f32, 4));
  CHECK(has(outcome, "ncclAllReduce of 4") && has(outcome, "ncclBroadcast of 4") && has(outcome, "call 0"));
}

TEST(nccl_missing_call_times_out) {
  Fixture f(2, 2, 300, "nccl");
  const Words twice = meeting(Op::all_reduce, DType::f32, 4, 2), once = meeting(Op::all_reduce, DType::f32, 4, 1);
  const Outcome outcome = f.run(f.load({twice, once}, 0, 0), {});
  CHECK(outcome.status.code() == Code::timeout);
  CHECK(has(outcome, "rank 0 waited 300 ms in vain for its device, which is at all_reduce 'h.3.mlp'"));
}

TEST(nccl_abort_lets_the_engine_go_on) {
  Fixture f(2, 2, 20000, "nccl");
  const Words twice = meeting(Op::all_reduce, DType::f32, 4, 2), once = meeting(Op::all_reduce, DType::f32, 4, 1);
  std::thread abort([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    f.engine->abort("enough");
  });
  const Outcome outcome = f.run(f.load({twice, once}, 0, 0), {});
  abort.join();
  CHECK(outcome.status.code() == Code::aborted);
  CHECK_EQ(f.run(f.load({once, once}, 0, 0), {}).status.message(), std::string());
}

TEST(nccl_needs_a_gpu_for_each_rank) {
  setenv("MESHWORK_EMULATED_GPUS", "1", 1);
  setenv("MESHWORK_COLLECTIVES", "nccl", 1);
  hooks();
  EngineOptions options;
  options.backend = "cuda";
  options.devices = 2;
  std::unique_ptr<Engine> engine;
  const Status status = Engine::open(options, &engine);
  CHECK(status.code() == Code::device);
  CHECK(status.message().find("a GPU for each rank") != std::string::npos);
}

}  // namespace
}  // namespace meshwork::test::cuda_engine
