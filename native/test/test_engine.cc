// Engines: runs on several devices, transfers, the queue, failures and closing.
#include <atomic>
#include <cstring>
#include <future>

#include "runtime/engine.h"
#include "test/harness.h"
#include "test/programs.h"

namespace meshwork {
namespace {

using test::instruction;
using test::ProgramSource;
using test::Words;

struct Outcome {
  Status status;
  std::vector<float> output;
};

class Fixture {
 public:
  explicit Fixture(int devices, EngineOptions options = {}) {
    options.devices = devices;
    if (!Engine::open(options, &engine).ok()) test::fail(__FILE__, __LINE__, "cannot open");
  }
  int32_t load(const std::vector<Words>& programs, int64_t inputBytes, int64_t outputBytes,
               std::vector<std::vector<int32_t>> buffers = {}) {
    buffers.resize(programs.size());
    std::vector<std::span<const int32_t>> words(programs.begin(), programs.end()),
        bound(buffers.begin(), buffers.end());
    int32_t executable = 0;
    const Status status = engine->load(words, bound, inputBytes, outputBytes, &executable);
    if (!status.ok()) test::fail(__FILE__, __LINE__, status.message());
    return executable;
  }
  std::future<Outcome> start(int32_t executable, const std::vector<float>& input, int32_t ticket = 0) {
    auto promise = std::make_shared<std::promise<Outcome>>();
    const auto size = static_cast<int64_t>(input.size() * sizeof(float));
    Bytes bytes{std::make_unique<std::byte[]>(static_cast<size_t>(size)), size};
    if (size > 0) std::memcpy(bytes.data.get(), input.data(), static_cast<size_t>(size));
    const Status status =
        engine->run(executable, std::move(bytes), ticket, [promise](const Status& result, Bytes output) {
          Outcome outcome{result, std::vector<float>(static_cast<size_t>(output.size) / sizeof(float))};
          if (output.size > 0) std::memcpy(outcome.output.data(), output.data.get(), static_cast<size_t>(output.size));
          promise->set_value(std::move(outcome));
        });
    if (!status.ok()) promise->set_value(Outcome{status, {}});
    return promise->get_future();
  }
  std::vector<float> run(int32_t executable, const std::vector<float>& input) {
    Outcome outcome = start(executable, input).get();
    if (!outcome.status.ok()) test::fail(__FILE__, __LINE__, outcome.status.message());
    return outcome.output;
  }
  std::unique_ptr<Engine> engine;
};

// Every device sends its 4 floats to the next one and gives out what it got.
std::vector<Words> ring(int devices) {
  std::vector<Words> programs;
  for (int d = 0; d < devices; ++d) {
    ProgramSource p;
    const int32_t v = p.view(DType::f32, {4});
    p.feed(16 * d, 0, 16);
    p.transfer({{0, (d + 1) % devices, 9, 0, v}, {1, (d + devices - 1) % devices, 9, 1, v}});
    p.wait(0);
    p.fetch(0, 1, 16 * d, 16);
    programs.push_back(p.words());
  }
  return programs;
}

// A program of `repeats` copies of a few bytes, on every device; with an all_reduce at the end when asked for.
std::vector<Words> busyWork(int devices, int repeats, bool meet) {
  std::vector<Words> programs;
  Words everybody;
  for (int d = 0; d < devices; ++d) everybody.push_back(d);
  for (int d = 0; d < devices; ++d) {
    ProgramSource p;
    const int32_t v = p.view(DType::f32, {4});
    p.table = {0};
    p.groups = {everybody};
    p.labels = {"loop", "meet"};
    p.segment({instruction(Op::copy, {{0, 0, v}}, {{0, 1, v}}, {}, 0)});
    p.segment({instruction(Op::all_reduce, {{0, 0, v}}, {{0, 1, v}}, {0, 0}, 1)});
    for (int i = 0; i < repeats; ++i) p.run(0);
    if (meet) p.run(1);
    programs.push_back(p.words());
  }
  return programs;
}

TEST(engine_ring) {
  for (const int devices : {2, 3, 7}) {
    for (const bool unbuffered : {false, true}) {
      EngineOptions options;
      options.unbuffered = unbuffered;
      Fixture f(devices, options);
      const int32_t executable = f.load(ring(devices), 16 * devices, 16 * devices);
      std::vector<float> input;
      for (int i = 0; i < 4 * devices; ++i) input.push_back(static_cast<float>(i));
      for (int repeat = 0; repeat < 3; ++repeat) {
        const std::vector<float> output = f.run(executable, input);
        CHECK_EQ(output.size(), input.size());
        for (size_t i = 0; i < output.size(); ++i) CHECK_EQ(output[(i + 4) % output.size()], input[i]);
      }
      CHECK_EQ(f.engine->stats().counters[0].sends.bytes, int64_t{48});
    }
  }
}

// Sends before receives on both sides: fine with buffering, a deadlock without, which the deadline finds.
TEST(engine_unbuffered_shows_a_deadlock) {
  for (const bool unbuffered : {false, true}) {
    EngineOptions options;
    options.unbuffered = unbuffered;
    options.timeoutMs = 150;
    Fixture f(2, options);
    std::vector<Words> programs;
    for (int d = 0; d < 2; ++d) {
      ProgramSource p;
      const int32_t v = p.view(DType::f32, {4});
      p.transfer({{0, 1 - d, 1, 0, v}});
      p.transfer({{1, 1 - d, 1, 1, v}});
      programs.push_back(p.words());
    }
    const int32_t executable = f.load(programs, 0, 0);
    const Outcome outcome = f.start(executable, {}).get();
    CHECK(outcome.status.code() == (unbuffered ? Code::timeout : Code::ok));
    const Outcome again = f.start(executable, {}).get();  // the engine has recovered
    CHECK(again.status.code() == (unbuffered ? Code::timeout : Code::ok));
  }
}

TEST(engine_buffers_and_binding) {
  Fixture f(2);
  int32_t a = 0, b = 0, small = 0, other = 0;
  CHECK(f.engine->allocate(0, 64, &a).ok() && f.engine->allocate(0, 64, &b).ok());
  CHECK(f.engine->allocate(0, 8, &small).ok() && f.engine->allocate(1, 64, &other).ok());
  CHECK(f.engine->allocate(2, 64, &other).code() == Code::invalidArgument);
  CHECK(f.engine->allocate(0, -1, &other).code() == Code::invalidArgument);
  CHECK(f.engine->allocate(0, int64_t{1} << 52, &other).code() == Code::outOfMemory);
  const float values[4] = {1, 2, 3, 4};
  CHECK(f.engine->write(a, 0, reinterpret_cast<const std::byte*>(values), 16).ok());
  CHECK(f.engine->write(a, 56, reinterpret_cast<const std::byte*>(values), 16).code() == Code::invalidArgument);
  CHECK(f.engine->write(99, 0, reinterpret_cast<const std::byte*>(values), 16).code() == Code::invalidArgument);
  ProgramSource p;
  const int32_t v = p.view(DType::f32, {4});
  p.buffers = {16};
  p.segment({instruction(Op::copy, {{4, 0, v}}, {{0, 0, v}})});
  p.run(0);
  p.fetch(0, 0, 0, 16);
  const int32_t executable = f.load({p.words(), ProgramSource().words()}, 0, 16, {{a}, {}});
  CHECK(f.run(executable, {}) == std::vector<float>({1, 2, 3, 4}));
  const auto bind = [&](int32_t buffer) {
    const std::span<const int32_t> lists[2] = {{&buffer, 1}, {}};
    return f.engine->bind(executable, lists);
  };
  CHECK(bind(small).code() == Code::invalidArgument);
  CHECK(bind(other).code() == Code::invalidArgument);
  CHECK(bind(12345).code() == Code::invalidArgument);
  CHECK(bind(b).ok());
  CHECK(f.run(executable, {}) == std::vector<float>(4));
  CHECK(f.engine->freeBuffer(b).ok());
  CHECK(f.engine->freeBuffer(b).code() == Code::invalidArgument);
  CHECK(f.start(executable, {}).get().status.code() == Code::invalidArgument);
  CHECK(f.start(executable, {1}).get().status.code() == Code::invalidArgument);
  CHECK(f.engine->freeExecutable(executable).ok());
  CHECK(f.engine->freeExecutable(executable).code() == Code::invalidArgument);
  CHECK(f.start(executable, {}).get().status.code() == Code::invalidArgument);
}

TEST(engine_queue_keeps_order) {
  Fixture f(2);
  int32_t buffer = 0;
  CHECK(f.engine->allocate(0, 16, &buffer).ok());
  ProgramSource p;
  const int32_t v = p.view(DType::f32, {4});
  p.buffers = {16};
  p.segment({instruction(Op::copy, {{0, 0, v}}, {{4, 0, v}})});
  p.feed(0, 0, 16);
  p.run(0);
  const int32_t executable = f.load({p.words(), busyWork(1, 500, false)[0]}, 16, 0, {{buffer}, {}});
  std::vector<std::future<Outcome>> runs;
  std::vector<std::future<float>> reads;
  for (int i = 0; i < 20; ++i) {
    const auto value = static_cast<float>(i);
    runs.push_back(f.start(executable, {value, value, value, value}));
    auto promise = std::make_shared<std::promise<float>>();
    reads.push_back(promise->get_future());
    CHECK(f.engine
              ->queueRead(buffer, 4, 4,
                          [promise](const Status&, Bytes bytes) {
                            float read = -1;
                            std::memcpy(&read, bytes.data.get(), 4);
                            promise->set_value(read);
                          })
              .ok());
  }
  for (int i = 0; i < 20; ++i) {
    CHECK(runs[static_cast<size_t>(i)].get().status.ok());
    CHECK_EQ(reads[static_cast<size_t>(i)].get(), static_cast<float>(i));
  }
}

TEST(engine_abort_takes_the_queue_along) {
  Fixture f(2);
  const int32_t executable = f.load(busyWork(2, 300000, true), 0, 0);
  std::future<Outcome> first = f.start(executable, {}), second = f.start(executable, {});
  std::byte byte{};
  int32_t buffer = 0;
  CHECK(f.engine->allocate(0, 64, &buffer).ok());
  CHECK(f.engine->read(buffer, 0, &byte, 1).code() == Code::invalidArgument);  // busy
  f.engine->abort("enough");
  const Outcome outcome = first.get();
  CHECK(outcome.status.code() == Code::aborted);
  CHECK_EQ(outcome.status.message(), std::string("enough"));
  CHECK(second.get().status.code() == Code::aborted);
  const int32_t small = f.load(busyWork(2, 1, true), 0, 0);
  CHECK(f.start(small, {}).get().status.ok());
}

TEST(engine_closes_while_running) {
  std::future<Outcome> first, second;
  {
    Fixture f(3);
    const int32_t executable = f.load(busyWork(3, 300000, true), 0, 0);
    first = f.start(executable, {});
    second = f.start(executable, {});
  }
  CHECK(first.get().status.code() == Code::aborted);
  CHECK(second.get().status.code() == Code::aborted);
}

TEST(engine_missing_rank_times_out) {
  EngineOptions options;
  options.timeoutMs = 100;
  Fixture f(2, options);
  const std::vector<Words> meeting = busyWork(2, 0, true), idle = busyWork(2, 1, false);
  const int32_t executable = f.load({meeting[0], idle[1]}, 0, 0);
  const Outcome outcome = f.start(executable, {}).get();
  CHECK(outcome.status.code() == Code::timeout);
  CHECK(outcome.status.message().find("'meet'") != std::string::npos);
  CHECK(outcome.status.message().find("not arrived: 1") != std::string::npos);
  CHECK(f.start(f.load(meeting, 0, 0), {}).get().status.ok());
}

TEST(engine_unreceived_message_is_an_error) {
  EngineOptions options;
  options.timeoutMs = 100;
  Fixture f(2, options);
  ProgramSource p;
  const int32_t v = p.view(DType::f32, {4});
  p.transfer({{0, 1, 1, 0, v}});
  const int32_t executable = f.load({p.words(), ProgramSource().words()}, 0, 0);
  CHECK(f.start(executable, {}).get().status.code() == Code::timeout);
}

// Larger programs are loaded while smaller ones run: the arena is exchanged between runs.
TEST(engine_arena_grows_between_runs) {
  Fixture f(2);
  const int32_t slow = f.load(busyWork(2, 2000, true), 0, 0);
  std::vector<std::future<Outcome>> runs;
  for (int i = 1; i <= 10; ++i) {
    runs.push_back(f.start(slow, {}));
    std::vector<Words> programs;
    for (int d = 0; d < 2; ++d) {
      ProgramSource p;
      p.arenaBytes = 64 * 1000 * i;
      const int32_t v = p.view(DType::f32, {4});
      p.segment({instruction(Op::copy, {{0, 0, v}}, {{0, 1000 * i - 1, v}})});
      p.run(0);
      programs.push_back(p.words());
    }
    runs.push_back(f.start(f.load(programs, 0, 0), {}));
  }
  for (auto& run : runs) CHECK(run.get().status.ok());
  CHECK_EQ(f.engine->stats().arenaBytes[1], int64_t{640000});
}

TEST(engine_profile) {
  Fixture f(2);
  f.engine->setProfiling(true);
  f.run(f.load(busyWork(2, 3, true), 0, 0), {});
  const EngineStats stats = f.engine->stats();
  CHECK_EQ(stats.profile.size(), size_t{8});
  for (const ProfileEvent& event : stats.profile) CHECK(event.end >= event.begin && event.begin >= 0);
  CHECK_EQ(stats.profile.back().label, std::string("meet"));
}

// 64 devices that compute nothing still hold programs to their kernels and meet in their collectives.
TEST(engine_null_backend) {
  EngineOptions options;
  options.backend = "null";
  Fixture f(64, options);
  std::vector<Words> programs = busyWork(64, 2, true);
  const int32_t executable = f.load(programs, 0, 0);
  f.run(executable, {});
  const EngineStats stats = f.engine->stats();
  const Counters& counters = stats.counters[63];
  CHECK_EQ(counters.instructions[static_cast<size_t>(Op::copy)], int64_t{2});
  const auto traffic = counters.collectives.find({static_cast<int>(Op::all_reduce), 64});
  CHECK(traffic != counters.collectives.end() && traffic->second.bytes == 16);
  int32_t buffer = 0;
  CHECK(f.engine->allocate(0, int64_t{1} << 50, &buffer).ok());
  std::byte byte{1};
  CHECK(f.engine->read(buffer, int64_t{1} << 49, &byte, 1).ok());
  CHECK(byte == std::byte{0});
}

TEST(engine_options) {
  std::unique_ptr<Engine> engine;
  EngineOptions options;
  options.backend = "tpu";
  CHECK(Engine::open(options, &engine).code() == Code::invalidArgument);
  options.backend = "cpu";
  options.devices = 0;
  CHECK(Engine::open(options, &engine).code() == Code::invalidArgument);
}

// A run that adds 1 to a bound buffer after much other work.
std::vector<Words> lateWrite(int repeats) {
  ProgramSource p;
  const int32_t v = p.view(DType::f32, {4});
  p.buffers = {16};
  p.segment({instruction(Op::copy, {{0, 0, v}}, {{0, 1, v}}, {}, -1)});
  p.segment({instruction(Op::copy, {{0, 0, v}}, {{kBuffers, 0, v}}, {}, -1)});
  p.feed(0, 0, 16);
  for (int i = 0; i < repeats; ++i) p.run(0);
  p.run(1);
  return {p.words()};
}

// Cancels two of three runs. False: the first was over before it could be cancelled.
bool cancelTwoOfThree(int repeats) {
  Fixture f(1);
  int32_t buffer = 0;
  CHECK(f.engine->allocate(0, 16, &buffer).ok());
  const int32_t slow = f.load(lateWrite(repeats), 16, 0, {{buffer}});
  const std::vector<float> one(4, 1.0F), two(4, 2.0F), three(4, 3.0F);
  auto first = f.start(slow, one, 1), second = f.start(slow, two, 2), third = f.start(slow, three, 3);
  const bool waiting = f.engine->cancel(2, "enough"), running = f.engine->cancel(1, "enough");
  const Code firstCode = first.get().status.code(), secondCode = second.get().status.code();
  CHECK(third.get().status.ok());
  CHECK(!f.engine->cancel(3, "too late"));
  float kept[4] = {};
  CHECK(f.engine->read(buffer, 0, reinterpret_cast<std::byte*>(kept), 16).ok());
  CHECK(kept[3] == 3.0F);
  if (!waiting || !running) return false;
  CHECK(!f.engine->cancel(2, "again"));
  CHECK(firstCode == Code::aborted && secondCode == Code::aborted);
  return true;
}

TEST(engine_cancelled_runs_write_nothing_and_leave_the_others) {
  // On a busy machine this thread may sleep through a short run: then longer ones.
  bool done = false;
  for (int repeats = 20000; !done && repeats <= 5000000; repeats *= 4) done = cancelTwoOfThree(repeats);
  CHECK(done);
}

}  // namespace
}  // namespace meshwork
