// Anonymous pages.
#include "io/host_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>

namespace meshwork {
namespace {

constexpr int64_t kPage = 4096;

size_t mappedBytes(int64_t bytes) { return static_cast<size_t>(std::max<int64_t>(bytes, 1)); }

}  // namespace

Status HostMemory::allocate(int64_t bytes, std::shared_ptr<HostMemory>* memory) {
  if (bytes < 0) return Status(Code::invalidArgument, "a memory's size is not negative");
  void* data = ::mmap(nullptr, mappedBytes(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return Status(Code::outOfMemory, "no host memory for a checkpoint of " + std::to_string(bytes) + " bytes");
  }
#if defined(MADV_HUGEPAGE)
  (void)::madvise(data, mappedBytes(bytes), MADV_HUGEPAGE);
#endif
  memory->reset(new HostMemory(static_cast<std::byte*>(data), bytes));
  return Status();
}

void HostMemory::touch() {
  // A write that changes nothing, and is no read first: that would bring the page of zeros, to be exchanged at once.
  for (int64_t at = 0; at < bytes_ && !stop.load(); at += kPage) {
    std::atomic_ref<uint8_t>(reinterpret_cast<uint8_t&>(data_[at])).fetch_or(0, std::memory_order_relaxed);
  }
}

HostMemory::~HostMemory() { ::munmap(data_, mappedBytes(bytes_)); }

}  // namespace meshwork
