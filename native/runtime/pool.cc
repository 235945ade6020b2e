// The thread pool of one device: persistent threads, work handed out block by block.
#include "runtime/pool.h"

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "core/pin.h"
#include "core/spin.h"

namespace meshwork {
namespace {

// Bridges the gap between two kernels without burning a core.
constexpr std::chrono::microseconds kSpin{50};

struct Free {
  void operator()(std::byte* p) const { std::free(p); }
};

}  // namespace

// A job is over when every block has been carried out: helpers that sleep through it are not waited for. So a helper
// may look for blocks at any time; it reads the job's fields only once it has taken a block, which keeps the job from
// ending.
struct Pool::Shared {
  alignas(64) std::atomic<uint32_t> epoch{0};   // grows with every job; helpers sleep on it
  alignas(64) std::atomic<int64_t> waiting{0};  // blocks that nobody has taken; below 0 when helpers look in vain
  alignas(64) std::atomic<int> unfinished{0};   // blocks that are not over
  std::atomic<bool> stop{false};                // read also by a helper that wakes late from a job before
  bool spin = false;
  int64_t end = 0;  // blocks are taken upwards: the one behind the last
  Erased body = nullptr;
  const void* state = nullptr;
  std::unique_ptr<std::byte, Free> workspace;
  std::vector<std::thread> helpers;

  void work(int thread) {
    int done = 0;
    for (int64_t left; (left = waiting.fetch_sub(1, std::memory_order_acq_rel)) > 0; ++done) {
      body(state, end - left, thread);
    }
    if (done > 0 && unfinished.fetch_sub(done, std::memory_order_acq_rel) == done) unfinished.notify_one();
  }

  void help(int thread) {
    for (uint32_t seen = 0;;) {
      const auto called = [&] { return epoch.load(std::memory_order_acquire) != seen; };
      if (!spin || !spinUntil(called, kSpin)) epoch.wait(seen, std::memory_order_acquire);
      const uint32_t now = epoch.load(std::memory_order_acquire);
      if (now == seen) continue;
      seen = now;
      if (stop) return;
      work(thread);
    }
  }

  void run(int64_t begin, int blocks) {
    end = begin + blocks;
    unfinished.store(blocks, std::memory_order_relaxed);
    waiting.store(blocks, std::memory_order_release);
    epoch.fetch_add(1, std::memory_order_release);
    epoch.notify_all();
    work(0);
    const auto over = [&] { return unfinished.load(std::memory_order_acquire) == 0; };
    if (over() || (spin && spinUntil(over, kSpin))) return;
    for (int left; (left = unfinished.load(std::memory_order_acquire)) != 0;) {
      unfinished.wait(left, std::memory_order_acquire);
    }
  }

  void join() {
    stop = true;
    epoch.fetch_add(1, std::memory_order_release);
    epoch.notify_all();
    for (std::thread& helper : helpers) helper.join();
  }
};

Pool::Pool(int threads, size_t workspaceBytes, bool spin, int core) : threads_(threads < 1 ? 1 : threads) {
  workspaceBytes_ = (workspaceBytes + 63) / 64 * 64;
  shared_ = std::make_unique<Shared>();
  shared_->spin = spin && static_cast<unsigned>(threads_) <= std::thread::hardware_concurrency();
  const size_t total = workspaceBytes_ * static_cast<size_t>(threads_);
  if (total > 0) {
    shared_->workspace.reset(static_cast<std::byte*>(std::aligned_alloc(64, total)));
    if (shared_->workspace == nullptr) throw std::bad_alloc();
  }
  try {
    for (int t = 1; t < threads_; ++t) {
      shared_->helpers.emplace_back([s = shared_.get(), t, core] {
        if (core >= 0) pinThread(core + t);
        s->help(t);
      });
    }
  } catch (...) {  // no more threads to be had: those already running must be joined before they are destroyed
    shared_->join();
    throw;
  }
}

Pool::~Pool() { shared_->join(); }

std::byte* Pool::workspace(int thread) const {
  return shared_->workspace.get() + workspaceBytes_ * static_cast<size_t>(thread);
}

void Pool::runErased(int64_t blocks, Erased body, const void* state) {
  if (blocks <= 0) return;
  if (threads_ == 1 || blocks == 1) {
    for (int64_t block = 0; block < blocks; ++block) body(state, block, 0);
    return;
  }
  shared_->body = body;
  shared_->state = state;
  for (int64_t begin = 0; begin < blocks;) {
    const auto count = static_cast<int>(std::min<int64_t>(blocks - begin, INT_MAX));
    shared_->run(begin, count);
    begin += count;
  }
}

}  // namespace meshwork
