// The thread pool of one device: persistent threads, work handed out block by block.
#include "runtime/pool.h"

#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace meshwork {
namespace {

// Some 10 microseconds: long enough to bridge the gap between two kernels, short enough not to burn a core.
constexpr int kSpins = 1000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

struct Free {
  void operator()(std::byte* p) const { std::free(p); }
};

}  // namespace

struct Pool::Shared {
  // A job is published by storing its fields and then bumping `epoch`; it is over when every helper has left it.
  alignas(64) std::atomic<uint32_t> epoch{0};
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int> busy{0};
  bool stop = false;
  bool spin = false;
  int64_t blocks = 0;
  Erased body = nullptr;
  const void* state = nullptr;
  std::unique_ptr<std::byte, Free> workspace;
  std::vector<std::thread> helpers;

  void work(int thread) {
    for (int64_t block = next.fetch_add(1, std::memory_order_relaxed); block < blocks;
         block = next.fetch_add(1, std::memory_order_relaxed)) {
      body(state, block, thread);
    }
  }

  void help(int thread) {
    uint32_t seen = 0;
    for (;;) {
      for (int i = 0; spin && i < kSpins && epoch.load(std::memory_order_acquire) == seen; ++i) relax();
      while (epoch.load(std::memory_order_acquire) == seen) epoch.wait(seen, std::memory_order_acquire);
      ++seen;
      if (stop) return;
      work(thread);
      if (busy.fetch_sub(1, std::memory_order_acq_rel) == 1) busy.notify_one();
    }
  }

  void join() {
    stop = true;
    epoch.fetch_add(1, std::memory_order_release);
    epoch.notify_all();
    for (std::thread& helper : helpers) helper.join();
  }
};

Pool::Pool(int threads, size_t workspaceBytes, bool spin) : threads_(threads < 1 ? 1 : threads) {
  workspaceBytes_ = (workspaceBytes + 63) / 64 * 64;
  shared_ = std::make_unique<Shared>();
  shared_->spin = spin && static_cast<unsigned>(threads_) <= std::thread::hardware_concurrency();
  const size_t total = workspaceBytes_ * static_cast<size_t>(threads_);
  if (total > 0) {
    shared_->workspace.reset(static_cast<std::byte*>(std::aligned_alloc(64, total)));
    if (shared_->workspace == nullptr) throw std::bad_alloc();
  }
  try {
    for (int t = 1; t < threads_; ++t) shared_->helpers.emplace_back([s = shared_.get(), t] { s->help(t); });
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
  Shared& s = *shared_;
  s.blocks = blocks;
  s.body = body;
  s.state = state;
  s.next.store(0, std::memory_order_relaxed);
  s.busy.store(threads_ - 1, std::memory_order_relaxed);
  s.epoch.fetch_add(1, std::memory_order_release);
  s.epoch.notify_all();
  s.work(0);
  int left = s.busy.load(std::memory_order_acquire);
  for (int i = 0; s.spin && i < kSpins && left != 0; ++i, left = s.busy.load(std::memory_order_acquire)) relax();
  for (; left != 0; left = s.busy.load(std::memory_order_acquire)) s.busy.wait(left, std::memory_order_acquire);
}

}  // namespace meshwork
