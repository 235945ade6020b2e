// A small test harness: TEST(name) { CHECK(...); }. Every test runs; a failed check is printed and fails its test.
#pragma once
#include <cmath>
#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

namespace meshwork::test {

struct Case {
  const char* name;
  void (*body)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

// Failed checks of the running test.
inline int& failures() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, void (*body)()) { cases().push_back({name, body}); }
};

inline void fail(const char* file, int line, const std::string& message) {
  if (++failures() <= 20) std::printf("  %s:%d: %s\n", file, line, message.c_str());
}

template <class A, class B>
std::string comparison(const char* text, const A& a, const B& b) {
  std::ostringstream out;
  out.precision(17);
  out << text << " (" << a << " and " << b << ")";
  return out.str();
}

// |a - b| <= tolerance; equal infinities and two NaNs are near.
inline bool near(double a, double b, double tolerance) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return a == b || std::fabs(a - b) <= tolerance;
}

// Runs the tests whose names contain `filter` (all of them for null). Returns the exit code.
inline int runAll(const char* filter) {
  int passed = 0, failed = 0;
  for (const Case& test : cases()) {
    if (filter && std::string(test.name).find(filter) == std::string::npos) continue;
    failures() = 0;
    test.body();
    if (failures() == 0) {
      ++passed;
    } else {
      ++failed;
      std::printf("FAILED %s (%d checks)\n", test.name, failures());
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace meshwork::test

#define TEST(name)                                                             \
  static void test_##name();                                                   \
  static const ::meshwork::test::Register register_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) ::meshwork::test::fail(__FILE__, __LINE__, #condition); \
  } while (0)

#define CHECK_EQ(a, b)                                                                                \
  do {                                                                                                \
    const auto a_ = (a);                                                                              \
    const auto b_ = (b);                                                                              \
    if (!(a_ == b_)) {                                                                                \
      ::meshwork::test::fail(__FILE__, __LINE__, ::meshwork::test::comparison(#a " == " #b, a_, b_)); \
    }                                                                                                 \
  } while (0)

#define CHECK_NEAR(a, b, tolerance)                                                                  \
  do {                                                                                               \
    const double a_ = static_cast<double>(a);                                                        \
    const double b_ = static_cast<double>(b);                                                        \
    if (!::meshwork::test::near(a_, b_, static_cast<double>(tolerance))) {                           \
      ::meshwork::test::fail(__FILE__, __LINE__, ::meshwork::test::comparison(#a " ~ " #b, a_, b_)); \
    }                                                                                                \
  } while (0)
