// SHA-256 and CRC-32C against published values, in pieces of all sizes, with and without the processor's instructions.
#include <cstring>
#include <string>
#include <vector>

#include "io/crc32c.h"
#include "io/sha256.h"
#include "test/harness.h"

namespace meshwork {
namespace {

const std::byte* bytesOf(const std::string& text) { return reinterpret_cast<const std::byte*>(text.data()); }

std::string sha(const std::string& text, bool accelerated, size_t piece) {
  Sha256 hash(accelerated);
  for (size_t at = 0; at < text.size(); at += piece) {
    hash.update(bytesOf(text) + at, std::min(piece, text.size() - at));
  }
  return hexOf(hash.finish());
}

TEST(sha256_known) {
  const std::vector<std::pair<std::string, std::string>> known = {
      {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
      {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
      {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
       "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
      {std::string(1000000, 'a'), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"}};
  for (const auto& [text, digest] : known) {
    for (const size_t piece : {size_t{1}, size_t{63}, size_t{64}, size_t{1000}, size_t{1} << 20}) {
      CHECK_EQ(sha(text, false, piece), digest);
      if (Sha256::available()) CHECK_EQ(sha(text, true, piece), digest);
    }
  }
}

TEST(sha256_both_agree) {
  std::string text;
  for (int n = 0; n < 300; ++n) {
    text.push_back(static_cast<char>(n * 37 + n / 7));
    if (Sha256::available()) CHECK_EQ(sha(text, true, 17), sha(text, false, 1000));
  }
}

TEST(crc32c_known) {
  const std::string digits = "123456789";
  CHECK_EQ(crc32c(0, bytesOf(digits), digits.size()), 0xe3069283u);
  const std::string zeros(32, '\0');
  CHECK_EQ(crc32c(0, bytesOf(zeros), zeros.size()), 0x8a9136aau);
  std::string text;
  for (int n = 0; n < 300; ++n) {
    text.push_back(static_cast<char>(n * 37 + n / 7));
    const uint32_t whole = crc32c(0, bytesOf(text), text.size());
    CHECK_EQ(crc32cPortable(0, bytesOf(text), text.size()), whole);
    const size_t cut = text.size() / 3;
    CHECK_EQ(crc32c(crc32c(0, bytesOf(text), cut), bytesOf(text) + cut, text.size() - cut), whole);
  }
}

}  // namespace
}  // namespace meshwork
