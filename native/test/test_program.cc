// Decoding and validation: good programs, every bound, and mutated words under the sanitizers.
#include <functional>
#include <random>

#include "backend/backend.h"
#include "runtime/engine.h"
#include "runtime/program.h"
#include "test/harness.h"
#include "test/programs.h"

namespace meshwork {
namespace {

using test::instruction;
using test::ProgramSource;
using test::Ref;
using test::Words;

constexpr int64_t kStaging = 4096;

Status decode(const Words& words, std::unique_ptr<Program>* program, int devices = 1, int rank = 0) {
  static const std::shared_ptr<Backend> backend = [] {
    std::shared_ptr<Backend> opened;
    CHECK(openBackend("cpu", 1, &opened).ok());
    return opened;
  }();
  return decodeProgram(words, ProgramLimits{rank, devices, kStaging, kStaging}, *backend, program);
}

// A bit of everything: all regions, several bases, kernels, all collectives over one rank, copies.
ProgramSource rich() {
  ProgramSource p;
  p.arenaBytes = 4096;
  p.buffers = {256, 128};
  const int32_t v = p.view(DType::f32, {2, 3}), column = p.view(DType::f32, {2, 1}),
                part = p.view(DType::f32, {2, 2}, {3, 1}, 1);
  const int32_t dense = p.view(DType::f32, {2, 2}), none = p.view(DType::f32, {0, 3}),
                counts = p.view(DType::i32, {1, 3});
  p.floats = {0.5, 2};
  p.table = {0, 3, 2, 0, 0, 3, 2, 0};
  p.groups = {{0}};
  p.labels = {"h.0.mlp", "\xc3\xa9t\xc3\xa9"};
  const int32_t segment = p.segment({
      instruction(Op::copy, {{2, 0, v}}, {{1, 0, v}}, {}, 0),
      instruction(Op::elementwise, {{1, 0, v}}, {{4, 1, v}},
                  {3, static_cast<int32_t>(EOp::const_), 0, 1, 0, 0, static_cast<int32_t>(EOp::mul_), 0, 0, 1, 0,
                   static_cast<int32_t>(EOp::iota_), 2, 1, 1, 0, 1, 2}),
      instruction(Op::reduce, {{4, 1, v}}, {{0, 4, column}}, {1}, 1),
      instruction(Op::copy, {{4, 1, part}}, {{5, 0, dense}}),
      instruction(Op::copy, {{1, 0, v}}, {{3, 1, v}}),
      instruction(Op::copy, {{0, 1000000, none}}, {{0, 1000000, none}}),
      instruction(Op::all_reduce, {{1, 0, v}}, {{1, 0, v}}, {0, 0}),
      instruction(Op::all_gather, {{1, 0, v}}, {{0, 6, v}}, {0, 1, 1}),
      instruction(Op::all_gather, {{1, 0, v}, {1, 0, v}}, {{0, 6, v}, {0, 7, v}}, {0, 1, 1, 1, 1}),
      instruction(Op::reduce_scatter, {{1, 0, v}}, {{0, 7, v}}, {0, 2, 0, 2}),
      instruction(Op::all_to_all, {{1, 0, v}}, {{0, 8, v}}, {0, 0, 1, 2, 1}),
      instruction(Op::broadcast, {{1, 0, v}}, {{0, 9, v}}, {0, 3}),
      instruction(Op::expert_exchange, {{1, 0, v}, {0, 11, counts}}, {{0, 10, v}}, {0, 1, 0, 2}),
  });
  p.feed(0, 16, 64);
  p.run(segment, 20, 16, 0);
  p.run(segment, 24, 16, 4, 28);
  p.fetch(0, 9, 0, 24);
  p.fetch(5, 0, 64, 16);
  return p;
}

TEST(program_good) {
  std::unique_ptr<Program> program;
  const Status status = decode(rich().words(), &program);
  if (!status.ok()) test::fail(__FILE__, __LINE__, status.message());
  CHECK(program != nullptr && program->instructions.size() == 13 && program->actions.size() == 5);
  CHECK(program != nullptr && std::string(program->labelOf(program->instructions[0])) == "h.0.mlp");
}

void refused(const std::function<void(ProgramSource&)>& change, const char* why, int devices = 1,
             Code code = Code::invalidProgram) {
  ProgramSource p = rich();
  change(p);
  std::unique_ptr<Program> program;
  const Status status = decode(p.words(), &program, devices);
  CHECK(status.code() == code && program == nullptr);
  if (status.message().find(why) == std::string::npos)
    test::fail(__FILE__, __LINE__, "'" + status.message() + "' does not say '" + why + "'");
}

void refusedInstruction(const Words& words, const char* why) {
  refused([&](ProgramSource& p) { p.run(p.segment({words})); }, why);
}

TEST(program_bounds) {
  refused([](ProgramSource& p) { p.arenaBytes = 64; }, "ends at byte");
  refused([](ProgramSource& p) { p.buffers[0] = 64; }, "ends at byte");
  refused([](ProgramSource& p) { p.run(0, 70, 16); }, "ends at byte");
  refused([](ProgramSource& p) { p.run(0, 20, INT32_MAX); }, "ends at byte");
  refused([](ProgramSource& p) { p.run(0, 20, 16, 0, 63); }, "ends at byte");
  refused([](ProgramSource& p) { p.run(0, 20, 16, 0, -1); }, "slot");
  refused([](ProgramSource& p) { p.run(0, -1); }, "slot");
  refused([](ProgramSource& p) { p.run(1); }, "segment's index");
  refused([](ProgramSource& p) { p.run(0, 0, 0, 9); }, "table base");
  refused([](ProgramSource& p) { p.run(0, 0, 0, 8); }, "table word");
  refused([](ProgramSource& p) { p.feed(0, 0, kStaging + 1); }, "feed or fetch");
  refused([](ProgramSource& p) { p.feed(1, 0, kStaging); }, "staging");
  refused([](ProgramSource& p) { p.feed(0, 64, 1); }, "region");
  refused([](ProgramSource& p) { p.feed(-1, 0, 1); }, "negative");
  refused([](ProgramSource& p) { p.fetch(6, 0, 0, 1); }, "fetch's region");
  refused([](ProgramSource& p) { p.fetch(1, 0, 0, 1); }, "fetch reads");
  refused([](ProgramSource& p) { p.fetch(5, 2, 0, 1); }, "region");
  refused([](ProgramSource& p) { p.groups = {{1}}; }, "group's rank");
  refused([](ProgramSource& p) { p.groups = {{1}}; }, "not in group", 2);
  refused([](ProgramSource& p) { p.groups = {{1, 0}}; }, "group's rank", 2);
  refused([](ProgramSource& p) { p.table[0] = 1; }, "not known");
  refused([](ProgramSource& p) { p.table[0] = -1; }, "not known");
  refused([](ProgramSource& p) { p.table[1] = 4; }, "do not sum");
  refused([](ProgramSource& p) { p.table[2] = -2; }, "negative");
  refused([](ProgramSource& p) { p.table[7] = 1; }, "root");
  refused([](ProgramSource& p) { p.transfer({{0, 0, 1, 0, 0}}); }, "itself");
  refused([](ProgramSource& p) { p.transfer({{0, 1, 1, 0, 0}}); }, "peer");
  refused([](ProgramSource& p) { p.transfer({{0, 1, 1, 64, 0}}); }, "leaves the arena", 2);
  refused([](ProgramSource& p) { p.transfer({{1, 1, 1, 0, 2}}); }, "contiguous", 2);
  refused([](ProgramSource& p) { p.wait(0); }, "send's number");
  refused([](ProgramSource& p) { test::append(p.actions, {6}); }, "action");
}

TEST(program_expert_exchange) {
  // Views 0 and 3 are rows of two widths, 5 the counts of one rank and three experts.
  const auto exchange = [](int32_t x, int32_t counts, int32_t y, const Words& attrs) {
    return instruction(Op::expert_exchange, {{1, 0, x}, {0, 11, counts}}, {{0, 10, y}}, attrs);
  };
  refusedInstruction(exchange(0, 5, 3, {0, 1, 0, 2}), "rows of one width");
  refusedInstruction(exchange(0, 0, 0, {0, 1, 0, 2}), "counts are i32");
  refusedInstruction(exchange(0, 5, 0, {0, 1, 2, 2}), "back is 0 or 1");
  refusedInstruction(exchange(0, 5, 0, {0, 1, 0, -1}), "beyond the table");
  refusedInstruction(exchange(0, 5, 0, {0, 1, 0, 1}), "more rows may come than there is room for");
  refusedInstruction(exchange(0, 5, 0, {0, 2, 0, 2}), "do not sum");
  refusedInstruction(exchange(0, 5, 0, {0, 8, 0, 2}), "beyond the table");
  refusedInstruction(exchange(0, 5, 0, {0, 1, 0}), "attribute words");
  refusedInstruction(exchange(2, 5, 0, {0, 1, 0, 2}), "contiguous");
}

TEST(program_views) {
  const int64_t large = int64_t{1} << 40;
  refused([](ProgramSource& p) { p.view(static_cast<DType>(6), {1}); }, "dtype");
  refused([](ProgramSource& p) { p.view(DType::f32, {1, 1, 1, 1, 1, 1, 1, 1, 1}); }, "rank");
  refused([&](ProgramSource& p) { p.view(DType::f32, {large, large}); }, "too large");
  refused([&](ProgramSource& p) { p.view(DType::f32, {large, 1, large}, {0, 0, 0}); }, "too large");
  refused([&](ProgramSource& p) { p.view(DType::f32, {large}, {large}); }, "too large");
  refused([](ProgramSource& p) { p.view(DType::f32, {-1}); }, "negative");
  refused([](ProgramSource& p) { p.view(DType::f32, {1}, {-1}); }, "negative");
  refused([](ProgramSource& p) { p.view(DType::f32, {1}, {1}, int64_t{1} << 52); }, "too large");
}

TEST(program_instructions) {
  refusedInstruction({0, 1, 1, 0, -1, 0, 0, 0, 0, 0, 0}, "opcode");
  refusedInstruction({kOpCount, 1, 1, 0, -1, 0, 0, 0, 0, 0, 0}, "opcode");
  refusedInstruction({static_cast<int32_t>(Op::copy), 2, 1, 0, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0}, "inputs");
  refusedInstruction({static_cast<int32_t>(Op::copy), 1, 1, 0, -1, 0, 0, 0}, "region");
  refusedInstruction(instruction(Op::copy, {{0, 0, 0}}, {{0, 0, 0}}, {}, 2), "label");
  refusedInstruction(instruction(Op::copy, {{6, 0, 0}}, {{0, 0, 0}}), "region");
  refusedInstruction(instruction(Op::copy, {{-1, 0, 0}}, {{0, 0, 0}}), "region");
  refusedInstruction(instruction(Op::copy, {{0, -1, 0}}, {{0, 0, 0}}), "offset");
  refusedInstruction(instruction(Op::copy, {{0, 0, 6}}, {{0, 0, 0}}), "view's index");
  refusedInstruction(instruction(Op::copy, {{0, 0, 0}}, {{0, 0, 0}}, {1}), "attribute words");
  refusedInstruction(instruction(Op::copy, {{0, 0, 0}}, {{0, 0, 1}}), "copy");
  refusedInstruction(instruction(Op::reduce, {{0, 0, 0}}, {{0, 0, 1}}, {9}), "reduce");
  refusedInstruction(instruction(Op::all_reduce, {{0, 0, 2}}, {{0, 1, 3}}, {0, 0}), "contiguous");
  refusedInstruction(instruction(Op::all_reduce, {{0, 0, 0}}, {{0, 1, 1}}, {0, 0}), "differ");
  refusedInstruction(instruction(Op::all_reduce, {{0, 0, 0}}, {{0, 1, 0}}, {0, 3}), "kind");
  refusedInstruction(instruction(Op::all_reduce, {{0, 0, 0}}, {{0, 1, 0}}, {8, 0}), "beyond the table");
  refusedInstruction(instruction(Op::all_reduce, {{0, 0, 0}, {0, 0, 0}}, {{0, 1, 0}}, {0, 0}), "as many outputs");
  refusedInstruction(instruction(Op::all_reduce, {{0, 0, 0}, {0, 0, 2}}, {{0, 1, 0}, {0, 1, 3}}, {0, 0}), "contiguous");
  refusedInstruction(instruction(Op::all_gather, {{0, 0, 0}, {0, 0, 0}}, {{0, 1, 0}, {0, 2, 0}}, {0, 1, 1}),
                     "each further tensor takes 2");
  refusedInstruction(instruction(Op::all_gather, {{0, 0, 0}}, {{0, 1, 0}}, {0, 1, 1, 1}), "each further tensor");
  refusedInstruction(instruction(Op::all_gather, {{0, 0, 0}, {0, 0, 0}}, {{0, 1, 0}, {0, 2, 0}}, {0, 1, 1, 2, 1}),
                     "dim 2");
  refusedInstruction(instruction(Op::all_gather, {{0, 0, 0}}, {{0, 1, 0}}, {0, 2, 1}), "dim 2");
  refusedInstruction(instruction(Op::all_gather, {{0, 0, 0}}, {{0, 1, 0}}, {0, 1, 8}), "beyond the table");
  refusedInstruction(instruction(Op::all_gather, {{0, 0, 0}}, {{0, 1, 0}}, {0, 1, -1}), "beyond the table");
}

TEST(program_truncated) {
  const Words words = rich().words();
  for (size_t n = 0; n < words.size(); ++n) {
    std::unique_ptr<Program> program;
    CHECK(!decode(Words(words.begin(), words.begin() + static_cast<int64_t>(n)), &program).ok());
  }
  Words longer = words;
  longer.push_back(0);
  std::unique_ptr<Program> program;
  CHECK(!decode(longer, &program).ok());
}

// Words changed at random are refused, or run without leaving their memory (the sanitizers look on).
TEST(program_mutations) {
  EngineOptions options;
  options.threads = 1;
  std::unique_ptr<Engine> engine;
  CHECK(Engine::open(options, &engine).ok());
  int32_t buffers[2] = {};
  CHECK(engine->allocate(0, 256, &buffers[0]).ok() && engine->allocate(0, 128, &buffers[1]).ok());
  const Words good = rich().words();
  std::mt19937 random(7);
  const int32_t values[] = {0, 1, 2, 3, 4, 5, 7, 16, 64, -1, -2, 255, INT32_MAX, INT32_MIN, 1 << 20};
  int ran = 0;
  for (int i = 0; i < 20000; ++i) {
    Words bad = good;
    for (uint32_t c = 0; c < 1 + random() % 2; ++c) {
      const size_t at = 5 + random() % (bad.size() - 5);
      bad[at] =
          random() % 3 == 0 ? bad[at] + static_cast<int32_t>(random() % 5) - 2 : values[random() % std::size(values)];
    }
    const std::span<const int32_t> program(bad), bound(buffers);
    int32_t executable = 0;
    const Status status = engine->load({&program, 1}, {&bound, 1}, kStaging, kStaging, &executable);
    if (!status.ok()) continue;
    std::atomic<bool> done = false;
    Bytes input{std::make_unique<std::byte[]>(kStaging), kStaging};
    CHECK(engine
              ->run(executable, std::move(input), 0,
                    [&](const Status&, Bytes) {
                      done = true;
                      done.notify_all();
                    })
              .ok());
    done.wait(false);
    CHECK(engine->freeExecutable(executable).ok());
    ++ran;
  }
  CHECK(ran > 100);
}

}  // namespace
}  // namespace meshwork
