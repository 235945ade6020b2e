// Runs CUDA kernels on the CPU, for tests: what the shadow <cuda_runtime.h> beside it is made of.
//
// Every CUDA thread of a block is a fiber; blocks run one after the other, in shuffled order, and between barriers the
// threads of a block run in random order, so that what depends on an order has a chance to show. Shared memory is
// filled with NaN patterns when a block starts and guarded on both sides. Refused with an error that names the place:
// threads that do not meet at a barrier or at a warp's exchange, exchanges with lanes outside of the mask, waits that
// never end, launches beyond the limits of a device. It proves what a kernel computes, not how fast, and nothing about
// the memory model of a GPU within one warp beyond what the random order shows.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

namespace meshwork::emulator {

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};
struct Extent3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr Extent3(unsigned width = 1, unsigned height = 1, unsigned depth = 1) : x(width), y(height), z(depth) {}
};

}  // namespace meshwork::emulator

// What the running CUDA thread may ask for. Per thread of the operating system: several may launch at once.
extern constinit thread_local meshwork::emulator::Index3 threadIdx, blockIdx;
extern constinit thread_local meshwork::emulator::Extent3 blockDim, gridDim;

namespace meshwork::emulator {

// A place in a kernel's source.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// ---- launching ----

using Body = void (*)(const void* arguments);

// Limits of the device that is emulated; a launch beyond them is refused.
struct Limits {
  unsigned threadsPerBlock = 1024;
  size_t staticShared = 48u << 10;
  size_t sharedPerBlock = 227u << 10;  // after a kernel has asked for it
  unsigned gridY = 65535, gridZ = 65535;
  unsigned multiprocessors = 4;  // few, so that grids sized by them have to loop
};
inline constexpr Limits kLimits;

// Runs a grid; false after an error (see takeError).
bool launchGrid(const Extent3& grid, const Extent3& block, size_t dynamicShared, const void* kernel, Body body,
                const void* arguments);
// Allows `kernel` more than 48 KiB of dynamic shared memory, as cudaFuncSetAttribute does. False beyond the limit.
bool allowDynamicShared(const void* kernel, size_t bytes);

template <class... Parameters, class... Arguments>
bool launch(const Extent3& grid, const Extent3& block, size_t dynamicShared, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  auto body = [kernel, ... values = static_cast<std::decay_t<Parameters>>(std::forward<Arguments>(arguments))] {
    kernel(values...);
  };
  using Kernel = decltype(body);
  return launchGrid(
      grid, block, dynamicShared, reinterpret_cast<const void*>(kernel),
      [](const void* self) { (*static_cast<const Kernel*>(self))(); }, &body);
}

// The first error of this OS thread since the last call, empty for none. Kernels that were launched after an error ran.
std::string takeError();
bool failed();
// The seed of the orders in which threads and blocks run; every launch draws from it.
void setSeed(uint64_t seed);
// How many kernels this OS thread has launched.
uint64_t launchCount();

// ---- what kernels call ----

// Ends the launch with an error.
[[noreturn]] void fail(const Site& site, const std::string& message);

enum class Vote { none, any, all, count };
// Waits for `threads` threads of the block (0: all) at barrier `id`; at barrier 0 all must come from one place.
int barrier(int id, unsigned threads, Vote vote, int predicate, const Site& site);

// Meets the lanes of `mask`. The last one to come calls combine(in, out) with the lanes' arguments (null for lanes that
// are not in the mask); then all go on.
struct Exchange {
  const void* in[32];
  void* out[32];
  uint32_t mask;
  Site site;
};
void exchange(uint32_t mask, const void* kind, const void* in, void* out, void (*combine)(const Exchange&),
              const Site& site);

// The block's shared variable with this key; the same memory for all its threads.
void* sharedVariable(const void* key, size_t bytes, size_t alignment);
void* dynamicShared();
// Whether [at, at + bytes) lies in this block's shared memory.
bool isShared(const void* at, size_t bytes);

// Asynchronous copies to shared memory: they happen when they are waited for, not before.
void copyAsync(void* to, const void* from, size_t bytes, size_t filled, const Site& site);
void commitCopies();
void waitCopies(int pendingGroups);

}  // namespace meshwork::emulator
