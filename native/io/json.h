// Strict JSON, read front to back: the parts that safetensors headers and manifests have. Nothing is recursive.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace meshwork {

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  bool failed() const { return !error_.empty(); }
  // What is wrong, with its byte; empty while all is well.
  const std::string& error() const { return error_; }
  void fail(const std::string& what);

  // The next character other than white space, or '\0' at the end (or after a failure).
  char peek();
  // Takes `c` if it is next.
  bool accept(char c);
  void expect(char c);
  // Appends the string's UTF-8 to `to`. Escapes are resolved; control characters, lone surrogates, zero characters and
  // bytes that are no UTF-8 fail.
  void string(std::string& to);
  // A number without sign, fraction, exponent or leading zeros, below 2^64.
  uint64_t unsignedInteger();
  // Steps over a value of any kind, nested at most `kMaxDepth` deep; its text is returned. Numbers need no exact
  // reading.
  std::string_view skipValue();
  // Nothing but white space is left.
  void end();

  static constexpr int kMaxDepth = 9;

 private:
  void escape(std::string& to);
  void skipScalar();
  void skipNumber();
  void skipString();
  uint32_t hex4();
  void utf8Sequence(std::string& to);

  std::string_view text_;
  size_t position_ = 0;
  std::string error_;
};

}  // namespace meshwork
