// CRC-32C (RFC 3720), which tells which tensor of a shard is damaged; the shard's SHA-256 tells that one is.
#pragma once
#include <cstddef>
#include <cstdint>

namespace meshwork {

// The checksum of bytes that follow those of `before` (0 at the beginning).
uint32_t crc32c(uint32_t before, const std::byte* data, size_t bytes);

// The same without the processor's instruction, for tests.
uint32_t crc32cPortable(uint32_t before, const std::byte* data, size_t bytes);

}  // namespace meshwork
