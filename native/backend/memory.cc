// Host memory: large blocks straight from the kernel (zeroed on first touch, by the thread that uses them).
#include "backend/memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

namespace meshwork {
namespace {

constexpr int64_t kLarge = int64_t{1} << 20;
constexpr int64_t kLargest = int64_t{1} << 46;

}  // namespace

std::byte* allocateHost(int64_t bytes) {
  if (bytes > kLargest) return nullptr;
  if (bytes < kLarge) {
    const auto rounded = static_cast<size_t>((bytes + 63) / 64 * 64);
    void* data = std::aligned_alloc(64, rounded);
    if (data != nullptr) std::memset(data, 0, rounded);
    return static_cast<std::byte*>(data);
  }
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
#if defined(MADV_HUGEPAGE)
  madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // only a wish
#endif
  return static_cast<std::byte*>(data);
}

void freeHost(std::byte* data, int64_t bytes) {
  if (data == nullptr) return;
  if (bytes < kLarge) {
    std::free(data);
  } else {
    munmap(data, static_cast<size_t>(bytes));
  }
}

}  // namespace meshwork
