// The reduce kernel against plain loops in float64: any dims, any strides, empty ones too.
#include <climits>
#include <cmath>
#include <limits>

#include "test/kernel_test.h"

namespace meshwork::test {
namespace {

const double kInf = std::numeric_limits<double>::infinity();

double identityOf(int32_t kind, DType dtype) {
  if (kind == 0) return 0;
  if (dtype == DType::i32) return kind == 1 ? INT32_MIN : INT32_MAX;
  return kind == 1 ? -kInf : kInf;
}

// The index in y (dims with 1 where reduced) of element i of x.
int64_t outputIndex(const Tensor& x, const Tensor& y, int64_t i) {
  int64_t at = 0, step = 1;
  for (int d = x.view().rank - 1; d >= 0; --d) {
    const int64_t index = i % x.view().dims[d];
    i /= x.view().dims[d];
    if (y.view().dims[d] != 1) at += index * step;
    step *= y.view().dims[d];
  }
  return at;
}

void checkReduction(const Dims& dims, const Dims& xs, const Dims& kept, DType dtype, DType outType) {
  for (const int32_t kind : {0, 1, 2}) {
    Tensor x(dtype, dims, xs), y(outType, kept);
    x.random(-3, 4, 11);
    Instruct{Op::reduce, {&x}, {&y}, {kind}}.runAll();
    std::vector<double> expected(static_cast<size_t>(y.count()), identityOf(kind, dtype)), size(expected.size(), 0);
    for (int64_t i = 0; i < x.count(); ++i) {
      const size_t j = static_cast<size_t>(outputIndex(x, y, i));
      const double v = x.get(i);
      expected[j] = kind == 0 ? expected[j] + v : kind == 1 ? std::fmax(expected[j], v) : std::fmin(expected[j], v);
      size[j] += std::fabs(v);
    }
    for (int64_t j = 0; j < y.count(); ++j) {
      const size_t at = static_cast<size_t>(j);
      CHECK_NEAR(y.get(j), expected[at],
                 kind == 0 ? epsilonOf(outType) * std::fabs(expected[at]) + 1e-15 * size[at] : 0);
    }
  }
}

void checkDTypes(const Dims& dims, const Dims& xs, const Dims& kept) {
  checkReduction(dims, xs, kept, DType::f32, DType::f32);
  checkReduction(dims, xs, kept, DType::f64, DType::f64);
  checkReduction(dims, xs, kept, DType::bf16, DType::f32);
  checkReduction(dims, xs, kept, DType::bf16, DType::bf16);
  checkReduction(dims, xs, kept, DType::i32, DType::i32);
}

TEST(reduce_layouts) {
  checkDTypes({}, {}, {});
  checkDTypes({1}, {1}, {1});
  checkDTypes({37}, {1}, {1});
  checkDTypes({37}, {3}, {1});
  checkDTypes({37}, {0}, {1});
  checkDTypes({5, 37}, {37, 1}, {5, 1});
  checkDTypes({5, 37}, {37, 1}, {1, 37});
  checkDTypes({5, 37}, {37, 1}, {1, 1});
  checkDTypes({5, 37}, {37, 1}, {5, 37});
  checkDTypes({5, 37}, {1, 5}, {5, 1});
  checkDTypes({5, 37}, {1, 5}, {1, 37});
  checkDTypes({3, 5, 7, 11}, {385, 77, 11, 1}, {1, 5, 1, 11});
  checkDTypes({3, 5, 7, 11}, {385, 77, 11, 1}, {3, 1, 7, 1});
  checkDTypes({3, 5, 7, 11}, {385, 77, 11, 1}, {1, 1, 7, 11});
  checkDTypes({3, 5, 7, 11}, {1, 3, 15, 105}, {3, 1, 7, 1});
  checkDTypes({3, 5, 4}, {40, 8, 2}, {3, 1, 4});
  checkDTypes({600, 100}, {100, 1}, {1, 100});
}

TEST(reduce_empty) {
  checkDTypes({0}, {1}, {1});
  checkDTypes({4, 0}, {1, 1}, {4, 1});
  checkDTypes({0, 4}, {4, 1}, {1, 4});
  checkDTypes({0, 4}, {4, 1}, {0, 1});
  checkDTypes({3, 0, 4}, {4, 4, 1}, {3, 1, 1});
}

TEST(reduce_large) {
  // Where a sum is split into parts: all of it, long rows, few columns.
  checkReduction({300000}, {1}, {1}, DType::f32, DType::f32);
  checkReduction({3, 90001}, {90001, 1}, {3, 1}, DType::bf16, DType::f32);
  checkReduction({4000, 10}, {10, 1}, {1, 10}, DType::f32, DType::f32);
  checkReduction({2, 3000, 9}, {27000, 9, 1}, {2, 1, 9}, DType::f32, DType::f32);
  checkReduction({70, 9000}, {9000, 1}, {1, 9000}, DType::f32, DType::f32);
  checkReduction({700, 300}, {301, 1}, {1, 1}, DType::f32, DType::f32);
}

TEST(reduce_wraps_and_keeps_nan) {
  Tensor x(DType::i32, {100}), y(DType::i32, {1});
  x.fill([](int64_t) { return 100000000; });
  Instruct{Op::reduce, {&x}, {&y}, {0}}.runAll();
  CHECK_EQ(y.get(0), static_cast<double>(static_cast<int32_t>(10000000000ll)));
  for (const int64_t at : {0, 5, 40}) {
    Tensor a(DType::f32, {41}), b(DType::f32, {1});
    a.fill([&](int64_t i) { return i == at ? std::nan("") : 1; });
    Instruct{Op::reduce, {&a}, {&b}, {1}}.runAll(false);
    CHECK(std::isnan(b.get(0)));
  }
}

TEST(reduce_refuses) {
  Tensor x(DType::f32, {4, 5}), y(DType::f32, {4, 1}), bf(DType::bf16, {4, 1}), wrong(DType::f32, {2, 1}),
      flat(DType::f32, {4});
  Tensor flags(DType::boolean, {4, 5}), flag(DType::boolean, {4, 1}), repeated(DType::f32, {4, 1}, {0, 1});
  const auto reduce = [](Tensor& a, Tensor& b, std::vector<int32_t> attrs) {
    return Instruct{Op::reduce, {&a}, {&b}, std::move(attrs)};
  };
  CHECK(reduce(x, y, {0}).check().ok());
  CHECK_REFUSED(reduce(x, y, {3}));
  CHECK_REFUSED(reduce(x, y, {-1}));
  CHECK_REFUSED(reduce(x, y, {}));
  CHECK_REFUSED(reduce(x, bf, {0}));
  CHECK_REFUSED(reduce(x, wrong, {0}));
  CHECK_REFUSED(reduce(x, flat, {0}));
  CHECK_REFUSED(reduce(flags, flag, {0}));
  CHECK_REFUSED(reduce(x, repeated, {0}));
}

}  // namespace
}  // namespace meshwork::test
