// The threads of one device. A kernel splits its work into blocks whose bounds do not depend on the thread count, so
// that results are the same bits with any number of threads.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

namespace meshwork {

class Pool {
 public:
  // `threads` counts the caller: 1 makes no thread. Each thread owns `workspaceBytes` of scratch, 64-byte aligned.
  // `spin`: idle threads poll for some microseconds before they sleep; off where threads outnumber cores.
  // `core`: threads other than the caller's stay on the cores behind this one (core/pin.h); -1: where they like.
  explicit Pool(int threads, size_t workspaceBytes = kWorkspaceBytes, bool spin = true, int core = -1);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  static constexpr size_t kWorkspaceBytes = size_t{4} << 20;

  int threads() const { return threads_; }
  size_t workspaceBytes() const { return workspaceBytes_; }

  // Calls body(block, thread) once for every block in [0, blocks), on any thread in [0, threads()), and returns when
  // all have returned. Called from the device's own thread only; not reentrant. body must not throw.
  template <class Body>
  void run(int64_t blocks, const Body& body) {
    runErased(
        blocks, [](const void* state, int64_t block, int thread) { (*static_cast<const Body*>(state))(block, thread); },
        &body);
  }
  // The calling thread's scratch (index as given to body), workspaceBytes() long. Its content does not survive a
  // kernel's call; within one, a kernel may hand results of one run() to what follows in any thread's scratch.
  std::byte* workspace(int thread) const;

 private:
  using Erased = void (*)(const void* state, int64_t block, int thread);
  void runErased(int64_t blocks, Erased body, const void* state);

  struct Shared;
  int threads_;
  size_t workspaceBytes_;
  std::unique_ptr<Shared> shared_;
};

}  // namespace meshwork
