// Eight bytes at a time: by the processor's instruction, or by eight tables.
#include "io/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace meshwork {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected

// tables[k][b]: the checksum of byte b with k zero bytes behind it.
constexpr std::array<std::array<uint32_t, 256>, 8> makeTables() {
  std::array<std::array<uint32_t, 256>, 8> tables = {};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t c = b;
    for (int bit = 0; bit < 8; ++bit) c = (c & 1) != 0 ? c >> 1 ^ kPolynomial : c >> 1;
    tables[0][b] = c;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t b = 0; b < 256; ++b) tables[k][b] = tables[k - 1][b] >> 8 ^ tables[0][tables[k - 1][b] & 0xff];
  }
  return tables;
}
constexpr auto kTables = makeTables();

uint64_t eightBytes(const std::byte* data) {
  uint64_t word = 0;
  for (size_t i = 0; i < 8; ++i) word |= std::to_integer<uint64_t>(data[i]) << (8 * i);
  return word;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t crc32cSse(uint32_t before, const std::byte* data, size_t bytes) {
  uint64_t crc = ~before;
  for (; bytes >= 8; bytes -= 8, data += 8) {
    uint64_t word = 0;
    std::memcpy(&word, data, 8);
    crc = _mm_crc32_u64(crc, word);
  }
  auto last = static_cast<uint32_t>(crc);
  for (; bytes > 0; --bytes, ++data) last = _mm_crc32_u8(last, std::to_integer<uint8_t>(*data));
  return ~last;
}
#endif

}  // namespace

uint32_t crc32cPortable(uint32_t before, const std::byte* data, size_t bytes) {
  uint32_t crc = ~before;
  for (; bytes >= 8; bytes -= 8, data += 8) {
    const uint64_t word = eightBytes(data) ^ crc;
    crc = 0;
    for (size_t i = 0; i < 8; ++i) crc ^= kTables[7 - i][word >> (8 * i) & 0xff];
  }
  for (; bytes > 0; --bytes, ++data) crc = crc >> 8 ^ kTables[0][(crc ^ std::to_integer<uint32_t>(*data)) & 0xff];
  return ~crc;
}

uint32_t crc32c(uint32_t before, const std::byte* data, size_t bytes) {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("sse4.2") != 0;
  if (has) return crc32cSse(before, data, bytes);
#endif
  return crc32cPortable(before, data, bytes);
}

}  // namespace meshwork
