// Reads a program's words front to back; running past the end or an out-of-range number sets a sticky failure.
#pragma once
#include <bit>
#include <cstdint>
#include <span>
#include <string>

namespace meshwork {

class Words {
 public:
  // No count of bytes or elements in a program may exceed this, so that sums and small products of them fit 64 bits.
  static constexpr int64_t kLargest = int64_t{1} << 53;

  explicit Words(std::span<const int32_t> words) : words_(words) {}

  bool failed() const { return !error_.empty(); }
  const std::string& error() const { return error_; }
  size_t position() const { return position_; }
  size_t left() const { return failed() ? 0 : words_.size() - position_; }

  void fail(const std::string& what) {
    if (error_.empty()) error_ = what + " at word " + std::to_string(position_);
  }

  int32_t word(const char* what) {
    if (left() == 0) {
      fail(std::string("the program ends inside ") + what);
      return 0;
    }
    return words_[position_++];
  }

  // An int32 in [least, most].
  int32_t inRange(const char* what, int64_t least, int64_t most) {
    const int32_t value = word(what);
    if (!failed() && (value < least || value > most)) {
      fail(std::string(what) + " is " + std::to_string(value) + ", not in [" + std::to_string(least) + ", " +
           std::to_string(most) + "]");
    }
    return failed() ? static_cast<int32_t>(least) : value;
  }

  // The number of things that follow, each at least `wordsEach` long: never more than the words left could hold.
  int32_t count(const char* what, size_t wordsEach) {
    const int32_t value = word(what);
    if (!failed() && (value < 0 || static_cast<size_t>(value) > left() / wordsEach)) {
      fail(std::string(what) + " is " + std::to_string(value) + ", which the words left cannot hold");
    }
    return failed() ? 0 : value;
  }

  // A number in [0, kLargest], low word first.
  int64_t size(const char* what) {
    const uint64_t value = bits64(what);
    if (!failed() && value > static_cast<uint64_t>(kLargest)) fail(std::string(what) + " is negative or too large");
    return failed() ? 0 : static_cast<int64_t>(value);
  }

  double float64(const char* what) { return std::bit_cast<double>(bits64(what)); }

  // The next `count` words as they are; empty where they are not there.
  std::span<const int32_t> take(const char* what, size_t count) {
    if (count > left()) {
      fail(std::string("the program ends inside ") + what);
      return {};
    }
    position_ += count;
    return words_.subspan(position_ - count, count);
  }

 private:
  uint64_t bits64(const char* what) {
    const auto low = static_cast<uint32_t>(word(what));
    const auto high = static_cast<uint32_t>(word(what));
    return static_cast<uint64_t>(high) << 32 | low;
  }

  std::span<const int32_t> words_;
  size_t position_ = 0;
  std::string error_;
};

}  // namespace meshwork
