// Host memory for arenas and buffers.
#pragma once
#include <cstddef>
#include <cstdint>

namespace meshwork {

// Zeroed, 64-byte aligned, in huge pages where that helps; null when there is none. `bytes` > 0.
std::byte* allocateHost(int64_t bytes);
void freeHost(std::byte* data, int64_t bytes);

}  // namespace meshwork
