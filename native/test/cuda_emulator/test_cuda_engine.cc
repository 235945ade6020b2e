// The engine on the emulated CUDA backend: several ranks on one GPU and on several, graphs, failures, hangs.
#include <thread>

#include "test/cuda_emulator/cuda_engine.h"

namespace meshwork::test::cuda_engine {
namespace {

TEST(cuda_engine_ranks_share_a_gpu) {
  for (const int devices : {1, 2, 5}) {
    Fixture f(devices);
    const int32_t executable = f.load(sums(devices), 16 * devices, 16 * devices);
    for (int repeat = 0; repeat < 3; ++repeat) {
      const Outcome outcome = f.run(executable, counting(4 * devices));
      CHECK_EQ(outcome.status.message(), std::string());
      checkSums(outcome.output, devices);
    }
  }
}

TEST(cuda_engine_ranks_over_gpus) {
  for (const auto& [devices, gpus] : std::vector<std::pair<int, int>>{{2, 2}, {4, 2}, {3, 8}}) {
    Fixture f(devices, gpus);
    const int32_t executable = f.load(sums(devices), 16 * devices, 16 * devices);
    checkSums(f.run(executable, counting(4 * devices)).output, devices);
  }
}

// After two runs one by one the kernels behind the all_reduce become a graph, which gives the same.
TEST(cuda_engine_graphs) {
  Fixture f(2);
  const int32_t executable = f.load(sums(2), 32, 32);
  const uint64_t before = hooks().graphLaunches();
  for (int run = 0; run < 5; ++run) {
    checkSums(f.run(executable, counting(8)).output, 2);
    const uint64_t launches = hooks().graphLaunches() - before;
    CHECK_EQ(launches, static_cast<uint64_t>(run < 2 ? 0 : 2 * (run - 1)));
  }
  CHECK_EQ(f.engine->stats().counters[0].collectives.size(), size_t{1});
  // A larger program moves the arena: graphs with the old addresses are made anew.
  f.load(sums(2, 40), 32, 32);
  for (int run = 0; run < 4; ++run) checkSums(f.run(executable, counting(8)).output, 2);
}

TEST(cuda_engine_messages) {
  for (const int devices : {2, 3, 6}) {
    Fixture f(devices, 2);
    checkRing(f, devices);
  }
}

TEST(cuda_engine_profile) {
  Fixture f(2);
  f.engine->setProfiling(true);
  f.run(f.load(sums(2), 32, 32), counting(8));
  const EngineStats stats = f.engine->stats();
  CHECK_EQ(stats.profile.size(), size_t{20});  // of each: feed, 7 copies, all_reduce, fetch
  for (const ProfileEvent& event : stats.profile) CHECK(event.end >= event.begin && event.begin >= 0);
}

// A kernel that fails is named with its rank, op and label; the engine is dead afterwards, and closes.
TEST(cuda_engine_failure_is_named) {
  Fixture f(1);
  const int32_t executable = f.load(sums(1), 16, 16);
  hooks().failNextLaunch();
  const Outcome outcome = f.run(executable, counting(4));
  CHECK(outcome.status.code() == Code::device);
  const std::string& message = outcome.status.message();
  CHECK(message.find("rank 0, ") == 0);
  bool named = false;  // launches do not wait: what comes after the kernel may be the first to see it
  for (const char* label : {"'before'", "'meet'", "'after'"}) named |= message.find(label) != std::string::npos;
  CHECK(named);
  CHECK(message.find("illegal memory access") != std::string::npos);
}

// Ranks that share a GPU lose it together, whichever is the first to see it.
TEST(cuda_engine_is_dead_after_a_failure) {
  Fixture f(3);
  const int32_t executable = f.load(sums(3), 48, 48);
  hooks().failNextLaunch();
  const Outcome outcome = f.run(executable, counting(12));
  CHECK(outcome.status.code() == Code::device);
  CHECK(outcome.status.message().find("rank ") == 0);
  const Outcome next = f.run(executable, counting(12));
  CHECK(next.status.code() == Code::device);
  std::byte byte{};
  int32_t buffer = 0;
  CHECK(!f.engine->allocate(0, 64, &buffer).ok());
  CHECK(!f.engine->read(buffer, 0, &byte, 1).ok());
}

// A device that does not come on is told after the deadline, with what it is at.
TEST(cuda_engine_hang_is_named) {
  Fixture f(2, 1, 300);
  const int32_t executable = f.load(sums(2), 32, 32);
  hooks().hangNextLaunch();
  std::thread release([] {
    std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    hooks().releaseHang();
  });
  const Outcome outcome = f.run(executable, counting(8));
  release.join();
  CHECK(outcome.status.code() == Code::timeout);
  CHECK(outcome.status.message().find("for its device, which is at") != std::string::npos);
  CHECK(f.run(executable, counting(8)).status.ok());  // it came to its end within the grace
}

TEST(cuda_engine_out_of_memory) {
  Fixture f(1);
  hooks().limitMemory(1);
  int32_t buffer = 0;
  const Status status = f.engine->allocate(0, 1 << 20, &buffer);
  hooks().limitMemory(0);
  CHECK(status.code() == Code::outOfMemory);
  CHECK(status.message().find("1048576 bytes on GPU 0") != std::string::npos);
  CHECK(f.engine->allocate(0, 1 << 20, &buffer).ok());
}

TEST(cuda_engine_gives_everything_back) {
  { Fixture f(1); }
  const size_t before = hooks().liveAllocations();
  {
    Fixture f(3, 2);
    const int32_t executable = f.load(sums(3), 48, 48);
    int32_t buffer = 0;
    CHECK(f.engine->allocate(1, 100, &buffer).ok());
    for (int run = 0; run < 4; ++run) f.run(executable, counting(12));
  }
  CHECK_EQ(hooks().liveAllocations(), before);
}

}  // namespace
}  // namespace meshwork::test::cuda_engine
