// The emulator's scheduler: the threads of one block at a time, as fibers.
#include "test/cuda_emulator/emulator.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "test/cuda_emulator/fiber.h"

constinit thread_local meshwork::emulator::Index3 threadIdx, blockIdx;
constinit thread_local meshwork::emulator::Extent3 blockDim, gridDim;

namespace meshwork::emulator {

namespace {

constexpr size_t kGuard = 64;  // bytes around every shared variable
constexpr unsigned char kGuardByte = 0xa5;
constexpr unsigned char kPoisonByte = 0xff;  // a NaN in every float type
constexpr int kBarriers = 16;
constexpr int kMaxKinds = 8;  // exchanges of one warp that wait at the same time

std::string placeOf(const Site& site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string nameOf(const Index3& i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

enum class State : uint8_t { ready, atBarrier, atExchange, done };

struct Abandoned {};

struct PendingCopy {
  void* to;
  const void* from;
  size_t bytes, filled;
};

struct Thread {
  Fiber fiber;
  State state = State::done;
  Index3 index;
  unsigned linear = 0;
  Site site = Site::here();
  int predicate = 0, result = 0, barrier = 0;
  std::vector<std::vector<PendingCopy>> groups;  // committed
  std::vector<PendingCopy> open;
};

struct Barrier {
  unsigned arrived = 0, expected = 0;
  Vote vote = Vote::none;
  Site site = Site::here();
  std::vector<Thread*> waiting;
};

struct PendingExchange {
  bool used = false;
  const void* kind = nullptr;
  uint32_t arrived = 0;
  Exchange exchange{{}, {}, 0, Site::here()};
};

struct Variable {
  size_t offset, bytes;
};

std::mutex allowedLock;
std::map<const void*, size_t>& allowedShared() {
  static std::map<const void*, size_t> all;
  return all;
}

// The emulator of one thread of the operating system.
class Machine {
 public:
  bool launch(const Extent3& grid, const Extent3& block, size_t dynamicShared, const void* kernel, Body body,
              const void* arguments) {
    ++launches_;
    const uint64_t threads = uint64_t{block.x} * block.y * block.z, blocks = uint64_t{grid.x} * grid.y * grid.z;
    if (threads == 0 || threads > kLimits.threadsPerBlock || block.z > 64) {
      return refuse("a launch with blocks of " + std::to_string(threads) + " threads");
    }
    if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > kLimits.gridY || grid.z > kLimits.gridZ) {
      return refuse("a launch with a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                    std::to_string(grid.z) + " blocks");
    }
    if (dynamicShared > allowed(kernel)) {
      return refuse("a launch with " + std::to_string(dynamicShared) + " bytes of dynamic shared memory; allowed are " +
                    std::to_string(allowed(kernel)));
    }
    if (running_) return refuse("a kernel that launches kernels");
    running_ = true;
    body_ = body;
    arguments_ = arguments;
    blockDim = block;
    gridDim = grid;
    prepare(static_cast<unsigned>(threads), dynamicShared);
    const bool whole = runBlocks(grid, blocks);
    running_ = false;
    return whole;
  }

  [[noreturn]] void fail(const Site& site, const std::string& message) {
    note(placeOf(site) + ": " + message);
    broken_ = true;
    throw Abandoned();  // caught where the thread began; the others are forgotten where they wait
  }

  int barrier(int id, unsigned threads, Vote vote, int predicate, const Site& site) {
    if (id < 0 || id >= kBarriers) fail(site, "barrier " + std::to_string(id) + " does not exist");
    Barrier& b = barriers_[id];
    const unsigned expected = threads == 0 ? static_cast<unsigned>(live_) : threads;
    Thread& self = running();
    if (b.arrived == 0) {
      b.expected = expected;
      b.vote = vote;
      b.site = site;
    } else if (b.expected != expected || b.vote != vote || (id == 0 && !samePlace(b.site, site))) {
      fail(site,
           "thread " + nameOf(self.index) + " is at another barrier than a thread that waits at " + placeOf(b.site));
    }
    self.predicate = predicate;
    self.site = site;
    self.barrier = id;
    b.waiting.push_back(&self);
    if (++b.arrived == b.expected) {
      release(b);
    } else {
      self.state = State::atBarrier;
      self.fiber.pause();
    }
    return self.result;
  }

  void exchange(uint32_t mask, const void* kind, const void* in, void* out, void (*combine)(const Exchange&),
                const Site& site) {
    Thread& self = running();
    const unsigned warp = self.linear / 32, lane = self.linear % 32;
    if ((mask >> lane & 1u) == 0) fail(site, "lane " + std::to_string(lane) + " is not in the mask it gives");
    const unsigned warpThreads = std::min(32u, static_cast<unsigned>(live_) - warp * 32);
    if (warpThreads < 32 && mask != 0xffffffffu && (mask >> warpThreads) != 0)
      fail(site, "the mask names lanes that do not exist");
    PendingExchange& pending = find(warp, mask, site);
    const uint32_t expected = warpThreads < 32 ? mask & ((1u << warpThreads) - 1) : mask;
    if (pending.arrived == 0) {
      pending.kind = kind;
      pending.exchange.site = site;
    } else if (pending.kind != kind || !samePlace(pending.exchange.site, site)) {
      fail(site, "lane " + std::to_string(lane) + " is at another exchange than one that waits at " +
                     placeOf(pending.exchange.site));
    }
    pending.exchange.in[lane] = in;
    pending.exchange.out[lane] = out;
    pending.arrived |= 1u << lane;
    self.site = site;
    if (pending.arrived == expected) {
      combine(pending.exchange);
      pending.used = false;
      for (unsigned i = 0; i < 32; ++i) {
        if ((expected >> i & 1u) == 0 || i == lane) continue;
        wake(threads_[warp * 32 + i].get());
      }
    } else {
      self.state = State::atExchange;
      self.fiber.pause();
    }
  }

  void* sharedVariable(const void* key, size_t bytes, size_t alignment) {
    for (auto& [known, variable] : variables_) {
      if (known == key) return shared_ + variable.offset;
    }
    alignment = std::max<size_t>(alignment, 16);
    const size_t offset = (staticEnd_ + kGuard + alignment - 1) / alignment * alignment;
    staticBytes_ += bytes;
    if (staticBytes_ > kLimits.staticShared) {
      fail(Site::here(), "more than 48 KiB of static shared memory: " + std::to_string(staticBytes_) + " bytes");
    }
    variables_.push_back({key, {offset, bytes}});
    std::memset(shared_ + offset, kPoisonByte, bytes);
    staticEnd_ = offset + bytes;
    return shared_ + offset;
  }
  void* dynamicShared() { return dynamic_ + kGuard; }
  bool isShared(const std::byte* at, size_t bytes) const {
    const auto within = [&](const std::byte* begin, size_t size) { return at >= begin && at + bytes <= begin + size; };
    if (within(dynamic_ + kGuard, dynamicBytes_)) return true;
    return std::any_of(variables_.begin(), variables_.end(),
                       [&](const auto& v) { return within(shared_ + v.second.offset, v.second.bytes); });
  }

  void copyAsync(const PendingCopy& copy) { running().open.push_back(copy); }
  void commitCopies() {
    Thread& self = running();
    self.groups.push_back(std::move(self.open));
    self.open.clear();
  }
  void waitCopies(int pendingGroups) {
    Thread& self = running();
    const size_t keep = pendingGroups < 0 ? 0 : static_cast<size_t>(pendingGroups);
    if (pendingGroups < 0) commitCopies();
    const size_t ready = self.groups.size() > keep ? self.groups.size() - keep : 0;
    for (size_t i = 0; i < ready; ++i) {
      for (const PendingCopy& copy : self.groups[i]) {
        std::memcpy(copy.to, copy.from, copy.filled);
        std::memset(static_cast<char*>(copy.to) + copy.filled, 0, copy.bytes - copy.filled);
      }
    }
    self.groups.erase(self.groups.begin(), self.groups.begin() + static_cast<std::ptrdiff_t>(ready));
  }

  std::string takeError() { return std::exchange(error_, {}); }
  bool failed() const { return !error_.empty(); }
  void setSeed(uint64_t seed) { random_ = seed * 0x9e3779b97f4a7c15ull + 1; }
  uint64_t launches() const { return launches_; }

 private:
  static bool samePlace(const Site& a, const Site& b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }
  bool refuse(const std::string& message) {
    note("refused: " + message);
    return false;
  }
  void note(const std::string& message) {
    if (error_.empty()) error_ = message;
  }
  static size_t allowed(const void* kernel) {
    const std::lock_guard<std::mutex> hold(allowedLock);
    const auto found = allowedShared().find(kernel);
    return found == allowedShared().end() ? kLimits.staticShared : found->second;
  }
  Thread& running() { return *threads_[runningThread_]; }
  void wake(Thread* thread) {
    thread->state = State::ready;
    ready_.push_back(thread->linear);
  }

  uint64_t draw(uint64_t n) {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_ % n;
  }

  void prepare(unsigned threads, size_t dynamicShared) {
    while (threads_.size() < threads) threads_.push_back(std::make_unique<Thread>());
    live_ = threads;
    dynamicBytes_ = dynamicShared;
    staticEnd_ = 0;
    staticBytes_ = 0;
    variables_.clear();
    sharedMemory_.resize(kSharedBytes);
    const size_t skew = (128 - reinterpret_cast<uintptr_t>(sharedMemory_.data()) % 128) % 128;
    shared_ = sharedMemory_.data() + skew;
    std::memset(shared_, kGuardByte, 64u << 10);
    dynamicMemory_.resize(dynamicShared + 2 * kGuard + 128);
    // Dynamic shared memory begins at a multiple of 128 bytes.
    dynamic_ = dynamicMemory_.data() + 128 - (reinterpret_cast<uintptr_t>(dynamicMemory_.data()) + kGuard) % 128;
    std::memset(dynamicMemory_.data(), kGuardByte, dynamicMemory_.size());
  }

  bool runBlocks(const Extent3& grid, uint64_t blocks) {
    // A step coprime to the number of blocks visits each once, in an order that changes from launch to launch.
    uint64_t step = blocks > 2 ? 1 + draw(blocks - 1) : 1;
    while (std::gcd(step, blocks) != 1) ++step;
    uint64_t block = draw(blocks);
    for (uint64_t i = 0; i < blocks; ++i, block = (block + step) % blocks) {
      blockIdx = {static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
                  static_cast<unsigned>(block / grid.x / grid.y)};
      if (!runBlock()) return false;
    }
    return true;
  }

  bool runBlock() {
    broken_ = false;
    std::memset(dynamic_ + kGuard, kPoisonByte, dynamicBytes_);
    for (const auto& [key, variable] : variables_) std::memset(shared_ + variable.offset, kPoisonByte, variable.bytes);
    for (Barrier& b : barriers_) b = {};
    exchanges_.assign((live_ + 31) / 32, {});
    ready_.clear();
    for (unsigned t = 0; t < live_; ++t) {
      Thread& thread = *threads_[t];
      thread.linear = t;
      thread.index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
      thread.groups.clear();
      thread.open.clear();
      thread.fiber.start([](void* self) { static_cast<Machine*>(self)->runThread(); }, this);
      wake(&thread);
    }
    done_ = 0;
    while (!ready_.empty() && !broken_) {
      const size_t at = draw(ready_.size());
      const unsigned t = ready_[at];
      ready_[at] = ready_.back();
      ready_.pop_back();
      runningThread_ = t;
      threadIdx = threads_[t]->index;
      threads_[t]->fiber.resume();
    }
    if (broken_) return false;
    if (done_ != live_) return stuck();
    return guardsWhole();
  }

  void runThread() {
    try {
      body_(arguments_);
    } catch (const Abandoned&) {
    }
    running().state = State::done;
    ++done_;
  }

  bool stuck() {
    for (unsigned t = 0; t < live_; ++t) {
      const Thread& thread = *threads_[t];
      if (thread.state == State::done) continue;
      note(placeOf(thread.site) + ": thread " + nameOf(thread.index) + " of block " + nameOf(blockIdx) +
           " waits for ever at " + (thread.state == State::atBarrier ? "a barrier" : "a warp's exchange") + "; " +
           std::to_string(done_) + " of " + std::to_string(live_) + " threads have ended");
      return false;
    }
    return false;
  }

  void release(Barrier& b) {
    int total = 0;
    for (const Thread* thread : b.waiting) total += thread->predicate != 0;
    const int n = static_cast<int>(b.waiting.size());
    const int result = b.vote == Vote::count ? total
                       : b.vote == Vote::any ? total > 0
                       : b.vote == Vote::all ? total == n
                                             : 0;
    const std::vector<Thread*> waiting = std::move(b.waiting);
    b = {};
    for (Thread* thread : waiting) {
      thread->result = result;
      if (thread != &running()) wake(thread);
    }
  }

  PendingExchange& find(unsigned warp, uint32_t mask, const Site& site) {
    PendingExchange* empty = nullptr;
    for (PendingExchange& pending : exchanges_[warp].slots) {
      if (pending.used && pending.exchange.mask == mask) return pending;
      if (!pending.used) empty = &pending;
    }
    if (empty == nullptr) fail(site, "too many exchanges of one warp at once");
    *empty = {};
    empty->used = true;
    empty->exchange.mask = mask;
    return *empty;
  }

  bool guardsWhole() {
    const auto whole = [](const std::byte* begin, const std::byte* end) {
      return std::all_of(begin, end, [](std::byte b) { return b == std::byte{kGuardByte}; });
    };
    size_t at = 0;
    for (const auto& [key, variable] : variables_) {
      if (!whole(shared_ + at, shared_ + variable.offset)) return refuse("a write beside a shared variable");
      at = variable.offset + variable.bytes;
    }
    if (!whole(shared_ + at, shared_ + at + kGuard)) return refuse("a write behind a shared variable");
    const std::byte* end = dynamic_ + kGuard + dynamicBytes_;
    if (!whole(dynamic_, dynamic_ + kGuard) || !whole(end, end + kGuard)) {
      return refuse("a write beside the dynamic shared memory");
    }
    return true;
  }

  struct WarpExchanges {
    PendingExchange slots[kMaxKinds];
  };
  static constexpr size_t kSharedBytes = size_t{96} << 10;

  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<unsigned> ready_;
  std::vector<WarpExchanges> exchanges_;
  Barrier barriers_[kBarriers];
  std::vector<std::pair<const void*, Variable>> variables_;
  std::vector<std::byte> sharedMemory_, dynamicMemory_;
  std::byte* shared_ = nullptr;
  std::byte* dynamic_ = nullptr;
  size_t staticEnd_ = 0, staticBytes_ = 0, dynamicBytes_ = 0;
  size_t live_ = 0, done_ = 0;
  unsigned runningThread_ = 0;
  bool running_ = false, broken_ = false;
  Body body_ = nullptr;
  const void* arguments_ = nullptr;
  uint64_t random_ = 0x9e3779b97f4a7c15ull;
  uint64_t launches_ = 0;
  std::string error_;
};

Machine& machine() {
  thread_local Machine instance;
  return instance;
}

}  // namespace

bool launchGrid(const Extent3& grid, const Extent3& block, size_t dynamicShared, const void* kernel, Body body,
                const void* arguments) {
  return machine().launch(grid, block, dynamicShared, kernel, body, arguments);
}

bool allowDynamicShared(const void* kernel, size_t bytes) {
  if (bytes > kLimits.sharedPerBlock) return false;
  const std::lock_guard<std::mutex> hold(allowedLock);
  allowedShared()[kernel] = bytes;
  return true;
}

std::string takeError() { return machine().takeError(); }
bool failed() { return machine().failed(); }
void setSeed(uint64_t seed) { machine().setSeed(seed); }
uint64_t launchCount() { return machine().launches(); }

void fail(const Site& site, const std::string& message) { machine().fail(site, message); }

int barrier(int id, unsigned threads, Vote vote, int predicate, const Site& site) {
  return machine().barrier(id, threads, vote, predicate, site);
}
void exchange(uint32_t mask, const void* kind, const void* in, void* out, void (*combine)(const Exchange&),
              const Site& site) {
  machine().exchange(mask, kind, in, out, combine, site);
}

void* sharedVariable(const void* key, size_t bytes, size_t alignment) {
  return machine().sharedVariable(key, bytes, alignment);
}
void* dynamicShared() { return machine().dynamicShared(); }
bool isShared(const void* at, size_t bytes) { return machine().isShared(static_cast<const std::byte*>(at), bytes); }

void copyAsync(void* to, const void* from, size_t bytes, size_t filled, const Site& site) {
  if (!isShared(to, bytes)) fail(site, "an asynchronous copy to what is not shared memory");
  if (bytes != 4 && bytes != 8 && bytes != 16)
    fail(site, "an asynchronous copy of " + std::to_string(bytes) + " bytes");
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || (filled > 0 && reinterpret_cast<uintptr_t>(from) % bytes != 0)) {
    fail(site, "an asynchronous copy that is not aligned");
  }
  std::memset(to, kPoisonByte, bytes);
  machine().copyAsync({to, from, bytes, filled});
}
void commitCopies() { machine().commitCopies(); }
void waitCopies(int pendingGroups) { machine().waitCopies(pendingGroups); }

}  // namespace meshwork::emulator
