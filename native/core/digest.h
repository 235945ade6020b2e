// SHA-256 (FIPS 180-4).
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace meshwork {

constexpr size_t kHexDigest = 64;

// The digest of `bytes` as 64 hexadecimal digits.
std::string hexDigest(std::string_view bytes);

}  // namespace meshwork
