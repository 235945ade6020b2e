// Philox against the published known answers, and the random kernel: placement, shards, distributions.
#include <cmath>

#include "backend/philox.h"
#include "test/kernel_test.h"

namespace meshwork::test {
namespace {

void checkPhilox(const std::vector<uint32_t>& counter, uint32_t key0, uint32_t key1,
                 const std::vector<uint32_t>& expected) {
  uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]};
  philox4x32(c, key0, key1);
  for (size_t i = 0; i < 4; ++i) CHECK_EQ(c[i], expected[i]);
}

// The known-answer vectors of Random123 for philox4x32 with ten rounds.
TEST(philox_known_answers) {
  checkPhilox({0, 0, 0, 0}, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const uint32_t ones = 0xffffffff;
  checkPhilox({ones, ones, ones, ones}, ones, ones, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  checkPhilox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0,
              {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

constexpr int32_t kSite = 77;

Tensor keyOf(int32_t low, int32_t high, int32_t step) {
  Tensor key(DType::i32, {3});
  const int32_t words[] = {low, high, step};
  return key.fill([&](int64_t i) { return words[i]; });
}

// The number with a global index, by the definition.
double expectedNumber(const Tensor& key, uint64_t index, int kind) {
  uint32_t c[4] = {static_cast<uint32_t>(index / 4), static_cast<uint32_t>(index / 4 >> 32), kSite,
                   static_cast<uint32_t>(static_cast<int32_t>(key.get(2)))};
  philox4x32(c, static_cast<uint32_t>(static_cast<int32_t>(key.get(0))),
             static_cast<uint32_t>(static_cast<int32_t>(key.get(1))));
  const auto uniform = [&](uint64_t lane) { return static_cast<double>(c[lane] >> 8) * 0x1p-24; };
  const uint64_t lane = index % 4;
  if (kind == 0) return static_cast<int32_t>(c[lane]);
  if (kind == 1) return uniform(lane);
  const double r = std::sqrt(-2 * std::log(1 - uniform(lane & 2))), angle = 2 * M_PI * uniform(lane | 1);
  return lane % 2 ? r * std::sin(angle) : r * std::cos(angle);
}

double errorOf(DType dtype, int kind, double value) {
  return kind < 2 && dtype != DType::bf16 ? 0 : (dtype == DType::bf16 ? 4e-3 : 1e-6) * std::fabs(value) + 2e-6;
}

TEST(random_numbers) {
  Tensor key = keyOf(-5, 123456, 9);
  for (const int kind : {0, 1, 2}) {
    for (const DType dtype : {DType::i32, DType::f32, DType::f64, DType::bf16}) {
      if ((dtype == DType::i32) != (kind == 0)) continue;
      for (const int64_t n : {0, 1, 3, 255, 1003, 40001}) {
        Tensor y(dtype, {n});
        Instruct(Op::random, {&key}, {&y}, {kind, kSite, 0, -1, static_cast<int32_t>(n)}).runAll();
        for (int64_t i = 0; i<n; i += n> 2000 ? 97 : 1) {
          const double e = expectedNumber(key, static_cast<uint64_t>(i), kind);
          CHECK_NEAR(y.get(i), e, errorOf(dtype, kind, e));
        }
      }
      Tensor scalar(dtype, {});
      Instruct(Op::random, {&key}, {&scalar}, {kind, kSite, 0}).runAll();
      CHECK_NEAR(scalar.get(0), expectedNumber(key, 0, kind), errorOf(dtype, kind, 3));
    }
  }
}

TEST(random_shards) {
  // A block of a global [50, 7, 300000] tensor, in any layout, holds the numbers of the whole: indices pass 2^32 / 4.
  Tensor key = keyOf(1, 2, 3);
  const Dims dims = {5, 3, 37};
  for (const Dims& strides : {Dims{111, 37, 1}, Dims{1, 5, 15}, Dims{200, 60, 1}}) {
    Tensor y(DType::i32, dims, strides);
    Instruct(Op::random, {&key}, {&y}, {0, kSite, 0, 1, 50, -1, 7, 0, 300000}, {}, {299001, 40}).runAll();
    for (int64_t i = 0; i < y.count(); ++i) {
      const uint64_t a = static_cast<uint64_t>(i / 111 + 40), b = static_cast<uint64_t>(i / 37 % 3),
                     c = static_cast<uint64_t>(i % 37 + 299001);
      CHECK_EQ(y.get(i), expectedNumber(key, (a * 7 + b) * 300000 + c, 0));
    }
  }
}

TEST(random_rows) {
  Tensor key = keyOf(1, 2, 3), rows(DType::i32, {4}), y(DType::f32, {4, 10}), v(DType::f32, {4});
  const int32_t index[] = {7, 2000000000, 0, -3};
  rows.fill([&](int64_t i) { return index[i]; });
  Instruct(Op::random, {&key, &rows}, {&y}, {1, kSite, 1, -1, 8, 0, 100}, {}, {50}).runAll();
  Instruct(Op::random, {&key, &rows}, {&v}, {1, kSite, 1, -1, 8}).runAll();
  for (int64_t i = 0; i < 40; ++i) {
    const uint64_t global = static_cast<uint64_t>(int64_t{index[i / 10]} * 100 + 50 + i % 10);
    CHECK_EQ(y.get(i), expectedNumber(key, global, 1));
  }
  for (int64_t i = 0; i < 4; ++i) CHECK_EQ(v.get(i), expectedNumber(key, static_cast<uint64_t>(int64_t{index[i]}), 1));
}

TEST(random_indexed_dims) {
  // A middle and a last dim in two runs each, as a zig-zag split of a sequence has them.
  Tensor key = keyOf(1, 2, 3), middle(DType::i32, {5}), last(DType::i32, {700}), y(DType::f32, {2, 5, 700});
  const auto middleOf = [](int64_t i) { return i < 3 ? 4 + i : 20 + i; };
  const auto lastOf = [](int64_t i) { return i < 301 ? 17 + i : 9000 + i; };
  middle.fill([&](int64_t i) { return middleOf(i); });
  last.fill([&](int64_t i) { return lastOf(i); });
  Instruct(Op::random, {&key, &middle, &last}, {&y}, {1, kSite, 6, 0, 8, -1, 30, -1, 10000}, {}, {3}).runAll();
  for (int64_t i = 0; i < 2 * 5 * 700; ++i) {
    const int64_t global = ((3 + i / 3500) * 30 + middleOf(i / 700 % 5)) * 10000 + lastOf(i % 700);
    CHECK_EQ(y.get(i), expectedNumber(key, static_cast<uint64_t>(global), 1));
  }
}

TEST(random_distribution) {
  const int64_t n = 200000;
  Tensor key = keyOf(42, 0, 0), normal(DType::f32, {n}), uniform(DType::f32, {n});
  Instruct(Op::random, {&key}, {&normal}, {2, 1, 0, -1, static_cast<int32_t>(n)}).run();
  Instruct(Op::random, {&key}, {&uniform}, {1, 1, 0, -1, static_cast<int32_t>(n)}).run();
  double mean = 0, square = 0, fourth = 0, middle = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double x = normal.get(i), u = uniform.get(i);
    CHECK(std::isfinite(x) && u >= 0 && u < 1);
    mean += x / static_cast<double>(n);
    square += x * x / static_cast<double>(n);
    fourth += x * x * x * x / static_cast<double>(n);
    middle += u / static_cast<double>(n);
  }
  CHECK_NEAR(mean, 0, 0.01);
  CHECK_NEAR(square, 1, 0.015);
  CHECK_NEAR(fourth, 3, 0.1);
  CHECK_NEAR(middle, 0.5, 0.004);
}

TEST(random_refuses) {
  Tensor key(DType::i32, {3}), two(DType::i32, {2}), floats(DType::f32, {3}), y(DType::f32, {4}), bits(DType::i32, {4});
  Tensor same(DType::f32, {4}, {0}), rows(DType::i32, {4}), scalar(DType::f32, {}), none(DType::i32, {0});
  const auto random = [](std::vector<Tensor*> in, Tensor* out, std::vector<int32_t> attrs) {
    return Instruct(Op::random, std::move(in), {out}, std::move(attrs), {}, {0});
  };
  CHECK(random({&key}, &y, {1, 0, 0, 0, 4}).check().ok());
  CHECK_REFUSED(random({&key}, &y, {1, 0, 0, 1, 4}));
  CHECK_REFUSED(random({&key}, &y, {1, 0, 0, -2, 4}));
  CHECK_REFUSED(random({&key}, &y, {1, 0, 0, 0, -1}));
  CHECK_REFUSED(random({&key}, &y, {1, 0, 0, 0}));
  CHECK_REFUSED(random({&key}, &y, {1, 0, 0, 0, 4, 0, 4}));
  CHECK_REFUSED(random({&key}, &y, {3, 0, 0, 0, 4}));
  CHECK_REFUSED(random({&key}, &y, {0, 0, 0, 0, 4}));
  CHECK_REFUSED(random({&key}, &bits, {1, 0, 0, 0, 4}));
  CHECK_REFUSED(random({&two}, &y, {1, 0, 0, 0, 4}));
  CHECK_REFUSED(random({&floats}, &y, {1, 0, 0, 0, 4}));
  CHECK_REFUSED(random({&key}, &same, {1, 0, 0, 0, 4}));
  CHECK_REFUSED(random({&key}, &y, {1, 0, 1, 0, 4}));
  CHECK_REFUSED(random({&key, &rows}, &y, {1, 0, 0, 0, 4}));
  CHECK_REFUSED(random({&key, &none}, &y, {1, 0, 1, 0, 4}));
  CHECK_REFUSED(random({&key, &none}, &scalar, {1, 0, 1}));
  CHECK(random({&key, &rows}, &y, {1, 0, 1, 0, 4}).check().ok());
  CHECK_REFUSED(random({&key, &rows}, &y, {1, 0, 2, 0, 4}));
  CHECK_REFUSED(random({&key, &rows, &rows}, &y, {1, 0, 1, 0, 4}));
  CHECK_REFUSED(random({&key, &rows}, &y, {1, 0, -1, 0, 4}));
}

}  // namespace
}  // namespace meshwork::test
