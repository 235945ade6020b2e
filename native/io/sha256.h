// SHA-256 (FIPS 180-4), with the processor's instructions where it has them.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace meshwork {

class Sha256 {
 public:
  using Digest = std::array<uint8_t, 32>;

  // `accelerated` false: the portable code, for tests.
  explicit Sha256(bool accelerated = available());
  void update(const std::byte* data, size_t bytes);
  // The digest of all bytes so far. Nothing may be added afterwards.
  Digest finish();

  // Whether the processor has instructions for it.
  static bool available();

 private:
  using Compress = void (*)(std::array<uint32_t, 8>& state, const uint8_t* data, size_t blocks);

  static constexpr size_t kBlock = 64;
  const Compress compress_;
  std::array<uint32_t, 8> state_;
  std::array<uint8_t, kBlock> rest_ = {};
  size_t restBytes_ = 0;
  uint64_t total_ = 0;
};

// Lower-case hexadecimal digits.
std::string hexOf(const Sha256::Digest& digest);

}  // namespace meshwork
