// Strict JSON tokens.
#include "io/json.h"

namespace meshwork {
namespace {

void appendUtf8(uint32_t code, std::string& to) {
  const auto put = [&](uint32_t byte) { to.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6);
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

}  // namespace

void JsonReader::fail(const std::string& what) {
  if (error_.empty()) error_ = what + " at byte " + std::to_string(position_);
}

char JsonReader::peek() {
  if (failed()) return '\0';
  while (position_ < text_.size()) {
    const char c = text_[position_];
    if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return c;
    ++position_;
  }
  return '\0';
}

bool JsonReader::accept(char c) {
  if (peek() != c || failed() || position_ == text_.size()) return false;
  ++position_;
  return true;
}

void JsonReader::expect(char c) {
  if (!accept(c)) fail(std::string("expected '") + c + "'");
}

void JsonReader::end() {
  peek();
  if (!failed() && position_ != text_.size()) fail("something follows the object's end");
}

void JsonReader::string(std::string& to) {
  expect('"');
  while (!failed()) {
    if (position_ == text_.size()) return fail("a string does not end");
    const auto c = static_cast<unsigned char>(text_[position_]);
    if (c == '"') {
      ++position_;
      return;
    }
    if (c < 0x20) return fail("a control character in a string");
    if (c == '\\') {
      escape(to);
    } else if (c < 0x80) {
      to.push_back(static_cast<char>(c));
      ++position_;
    } else {
      utf8Sequence(to);
    }
  }
}

void JsonReader::escape(std::string& to) {
  ++position_;
  if (position_ == text_.size()) return fail("a string does not end");
  const char c = text_[position_++];
  switch (c) {
    case '"':
    case '\\':
    case '/':
      return to.push_back(c);
    case 'b':
      return to.push_back('\b');
    case 'f':
      return to.push_back('\f');
    case 'n':
      return to.push_back('\n');
    case 'r':
      return to.push_back('\r');
    case 't':
      return to.push_back('\t');
    case 'u':
      break;
    default:
      return fail("an unknown escape");
  }
  uint32_t code = hex4();
  if (failed()) return;
  if (code == 0) return fail("a zero character in a string");
  if (code >= 0xdc00 && code < 0xe000) return fail("a lone surrogate");
  if (code >= 0xd800 && code < 0xdc00) {
    if (text_.substr(position_, 2) != "\\u") return fail("a lone surrogate");
    position_ += 2;
    const uint32_t low = hex4();
    if (failed()) return;
    if (low < 0xdc00 || low >= 0xe000) return fail("a lone surrogate");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }
  appendUtf8(code, to);
}

uint32_t JsonReader::hex4() {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i, ++position_) {
    const char c = position_ < text_.size() ? text_[position_] : '\0';
    if (c >= '0' && c <= '9') {
      value = value << 4 | static_cast<uint32_t>(c - '0');
    } else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')) {
      value = value << 4 | static_cast<uint32_t>((c | 0x20) - 'a' + 10);
    } else {
      fail("not four hexadecimal digits");
      return 0;
    }
  }
  return value;
}

void JsonReader::utf8Sequence(std::string& to) {
  const auto byte = [&](size_t i) {
    return position_ + i < text_.size() ? static_cast<unsigned char>(text_[position_ + i]) : 0u;
  };
  const uint32_t first = byte(0);
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4) return fail("bytes that are not UTF-8");
  uint32_t code = first & (0xffu >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return fail("bytes that are not UTF-8");
    code = code << 6 | (byte(i) & 0x3f);
  }
  const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  if (overlong || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return fail("bytes that are not UTF-8");
  to.append(text_.substr(position_, length));
  position_ += length;
}

uint64_t JsonReader::unsignedInteger() {
  const char first = peek();
  if (first < '0' || first > '9') {
    fail("not an unsigned integer");
    return 0;
  }
  uint64_t value = 0;
  size_t digits = 0;
  for (; position_ < text_.size() && text_[position_] >= '0' && text_[position_] <= '9'; ++position_, ++digits) {
    if (__builtin_mul_overflow(value, uint64_t{10}, &value) ||
        __builtin_add_overflow(value, static_cast<uint64_t>(text_[position_] - '0'), &value)) {
      fail("an integer beyond 64 bits");
      return 0;
    }
  }
  const char next = position_ < text_.size() ? text_[position_] : '\0';
  if (digits > 1 && first == '0') fail("a leading zero");
  if (next == '.' || next == 'e' || next == 'E') fail("not an unsigned integer");
  return value;
}

void JsonReader::skipString() {
  std::string text;
  string(text);
}

void JsonReader::skipNumber() {
  const auto digits = [&] {
    const size_t begin = position_;
    while (position_ < text_.size() && text_[position_] >= '0' && text_[position_] <= '9') ++position_;
    return position_ - begin;
  };
  const auto next = [&](char c) { return position_ < text_.size() && text_[position_] == c; };
  if (next('-')) ++position_;
  const bool zero = next('0');
  const size_t whole = digits();
  if (whole == 0 || (zero && whole > 1)) return fail("not a number");
  if (next('.')) {
    ++position_;
    if (digits() == 0) return fail("not a number");
  }
  if (next('e') || next('E')) {
    ++position_;
    if (next('+') || next('-')) ++position_;
    if (digits() == 0) return fail("not a number");
  }
}

void JsonReader::skipScalar() {
  const char c = peek();
  if (c == '"') return skipString();
  if (c == '-' || (c >= '0' && c <= '9')) return skipNumber();
  for (const std::string_view word : {"true", "false", "null"}) {
    if (text_.substr(position_, word.size()) != word) continue;
    position_ += word.size();
    return;
  }
  fail("a value is expected");
}

std::string_view JsonReader::skipValue() {
  peek();
  const size_t begin = position_;
  std::string open;  // the brackets around the place
  do {
    const char c = peek();
    if (c == '{' || c == '[') {
      if (open.size() == kMaxDepth) fail("values nested too deeply");
      accept(c);
      open.push_back(c == '{' ? '}' : ']');
      if (!accept(open.back())) {
        if (c == '{') skipString(), expect(':');
        continue;
      }
      open.pop_back();
    } else {
      skipScalar();
    }
    // Behind a value: the next member, or the ends of what it is in.
    while (!failed() && !open.empty()) {
      if (accept(',')) {
        if (open.back() == '}') skipString(), expect(':');
        break;
      }
      expect(open.back());
      open.pop_back();
    }
  } while (!failed() && !open.empty());
  return text_.substr(begin, position_ - begin);
}

}  // namespace meshwork
