// The NCCL communicator on the emulated CUDA backend and the stand-in for NCCL: values of every collective, with uneven
// counts and any dim; and that a wrong order, count or type, a missing rank and an abort are told, by name, in time.
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
