// The thread pool: every block once, whatever the threads do, job after job.
#include <atomic>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "core/pin.h"
#include "runtime/pool.h"
#include "test/harness.h"

namespace meshwork {
namespace {

// Jobs of many lengths in a row: helpers that come late to one must not touch the next.
void everyBlockOnce(int threads, bool spin) {
  Pool pool(threads, 64, spin);
  std::vector<int> counts(97);
  std::vector<int> sums(static_cast<size_t>(threads));
  int64_t jobs = 0;
  for (int repeat = 0; repeat < 60; ++repeat) {
    for (const int64_t blocks : {0, 1, 2, 3, 7, 97}) {
      std::fill(counts.begin(), counts.end(), 0);
      pool.run(blocks, [&](int64_t block, int thread) {
        ++counts[static_cast<size_t>(block)];  // no race: a block is carried out once
        ++sums[static_cast<size_t>(thread)];   // nor here: a thread has an index of its own
        *pool.workspace(thread) = std::byte{1};
      });
      for (int64_t b = 0; b < 97; ++b) CHECK_EQ(counts[static_cast<size_t>(b)], b < blocks ? 1 : 0);
      jobs += blocks;
    }
  }
  int64_t sum = 0;
  for (const int s : sums) sum += s;
  CHECK_EQ(sum, jobs);
}

TEST(pool_every_block_once) {
  for (const int threads : {1, 2, 3, 8}) {
    everyBlockOnce(threads, false);
    everyBlockOnce(threads, true);
  }
}

#if defined(__linux__)
TEST(pool_pinned_threads_stay_on_their_cores) {
  cpu_set_t before;
  CPU_ZERO(&before);
  CHECK_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  Pool pool(3, 0, true, 0);
  std::atomic<int> pinned{0}, reached{0};
  std::thread caller([&] {  // the thread that runs a device
    pinThread(0);
    pool.run(3, [&](int64_t, int) {
      cpu_set_t own;
      CPU_ZERO(&own);
      if (sched_getaffinity(0, sizeof own, &own) == 0 && CPU_COUNT(&own) == 1) ++pinned;
      ++reached;
      while (reached.load() < 3) std::this_thread::yield();  // so that each thread takes one
    });
  });
  caller.join();
  CHECK_EQ(pinned.load(), 3);
  cpu_set_t after;
  CPU_ZERO(&after);
  CHECK_EQ(sched_getaffinity(0, sizeof after, &after), 0);
  CHECK(CPU_EQUAL(&before, &after));
}
#endif

TEST(pool_helpers_that_sleep_are_woken) {
  Pool pool(3, 0, true);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> begun{0};
    // Every block waits for the others: only three threads can end this.
    pool.run(3, [&](int64_t, int) {
      ++begun;
      while (begun.load() < 3) std::this_thread::yield();
    });
    CHECK_EQ(begun.load(), 3);
  }
}

}  // namespace
}  // namespace meshwork
