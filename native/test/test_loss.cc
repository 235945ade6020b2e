// Cross-entropy, its sharded parts and its gradient against float64.
#include <cmath>
#include <limits>

#include "test/kernel_test.h"

namespace meshwork::test {
namespace {

constexpr int32_t kIgnore = -100;

double lseOf(const Tensor& logits, int64_t row, int64_t width) {
  double max = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t j = 0; j < width; ++j) max = std::fmax(max, logits.get(row * width + j));
  for (int64_t j = 0; j < width; ++j) sum += std::exp(logits.get(row * width + j) - max);
  return max + std::log(sum);
}

double targetOf(int64_t row, int64_t width) {
  if (row % 5 == 1) return kIgnore;
  if (row % 5 == 2) return static_cast<double>(width + row);
  return static_cast<double>(row * 7919 % std::max<int64_t>(width, 1));
}

void checkLossOn(DType dtype, int64_t rows, int64_t width, int64_t pitch) {
  const DType wide = dtype == DType::f64 ? DType::f64 : DType::f32;
  Tensor logits(dtype, {rows, width}, {pitch, 1}), targets(DType::i32, {rows}), nll(wide, {rows}),
      lse(wide, {rows}, {2});
  logits.random(-20, 20, 1);
  targets.fill([&](int64_t i) { return targetOf(i, width); });
  Instruct(Op::cross_entropy, {&logits, &targets}, {&nll, &lse}, {kIgnore}).runAll();
  const double eps = epsilonOf(wide) * 100;
  for (int64_t i = 0; i < rows; ++i) {
    const double expected = lseOf(logits, i, width);
    const int64_t target = static_cast<int64_t>(targets.get(i));
    CHECK_NEAR(lse.get(i), expected, eps);
    CHECK_NEAR(nll.get(i), target >= 0 && target < width ? expected - logits.get(i * width + target) : 0, eps);
  }
  Tensor dnll(wide, {rows}, {0}), grad(dtype, {rows, width});
  dnll.fill([](int64_t) { return 0.25; });
  Instruct(Op::cross_entropy_grad, {&logits, &targets, &lse, &dnll}, {&grad}, {kIgnore, 0}, {}, {0}).runAll();
  double rowLse = 0;
  for (int64_t i = 0; i < rows * width; ++i) {
    const int64_t row = i / width, target = static_cast<int64_t>(targets.get(row));
    if (i % width == 0) rowLse = lseOf(logits, row, width);
    const double p = std::exp(logits.get(i) - rowLse) - (i % width == target ? 1 : 0);
    const double expected = target == kIgnore ? 0 : p * 0.25;
    CHECK_NEAR(grad.get(i), expected, epsilonOf(dtype) * std::fabs(expected) + eps);
  }
}

TEST(cross_entropy_and_grad) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    checkLossOn(dtype, 7, 33, 33);
    checkLossOn(dtype, 11, 5000, 5008);
    checkLossOn(dtype, 3, 1, 1);
    checkLossOn(dtype, 0, 8, 8);
  }
}

// Two shards combined as the compiler does it give what the whole gives.
TEST(cross_entropy_shards) {
  const int64_t rows = 9, width = 50, cut = 20;
  Tensor logits(DType::f32, {rows, width}), targets(DType::i32, {rows}), max(DType::f32, {rows});
  logits.random(-9, 9, 1);
  targets.fill([&](int64_t i) { return i == 4 ? kIgnore : static_cast<double>(i * 6 % width); });
  max.fill([&](int64_t) { return 9; });
  std::vector<double> sums(static_cast<size_t>(rows), 0), chosen(sums);
  for (const bool second : {false, true}) {
    const int64_t n = second ? width - cut : cut, start = second ? cut : 0;
    Tensor part(DType::f32, {rows, n}), sum(DType::f32, {rows}), target(DType::f32, {rows});
    part.fill([&](int64_t i) { return logits.get(i / n * width + start + i % n); });
    Instruct(Op::cross_entropy_partial, {&part, &targets, &max}, {&sum, &target}, {kIgnore, 0}, {},
             {static_cast<int32_t>(start)})
        .runAll();
    for (int64_t i = 0; i < rows; ++i) {
      sums[static_cast<size_t>(i)] += sum.get(i);
      chosen[static_cast<size_t>(i)] += target.get(i);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    const size_t at = static_cast<size_t>(i);
    CHECK_NEAR(9 + std::log(sums[at]), lseOf(logits, i, width), 1e-5);
    CHECK_NEAR(chosen[at], i == 4 ? 0 : logits.get(i * width + static_cast<int64_t>(targets.get(i))), 0);
  }
}

TEST(cross_entropy_empty_and_infinite) {
  const double inf = std::numeric_limits<double>::infinity();
  Tensor none(DType::f32, {3, 0}), targets(DType::i32, {3}), max(DType::f32, {3}), sum(DType::f32, {3}),
      target(DType::f32, {3});
  targets.fill([](int64_t) { return 0; });
  max.fill([&](int64_t) { return -inf; });
  Instruct(Op::cross_entropy_partial, {&none, &targets, &max}, {&sum, &target}, {kIgnore, 0}, {}, {0}).runAll();
  for (int64_t i = 0; i < 3; ++i) {
    CHECK_EQ(sum.get(i), 0.0);
    CHECK_EQ(target.get(i), 0.0);
  }
  Tensor masked(DType::f32, {3, 20}), nll(DType::f32, {3}), lse(DType::f32, {3});
  masked.fill([&](int64_t i) { return i % 20 == 0 ? 3 : -inf; });
  Instruct(Op::cross_entropy, {&masked, &targets}, {&nll, &lse}, {kIgnore}).runAll();
  CHECK_EQ(lse.get(1), 3.0);
  CHECK_EQ(nll.get(1), 0.0);
}

TEST(cross_entropy_refuses) {
  Tensor logits(DType::f32, {4, 3}), targets(DType::i32, {4}), r(DType::f32, {4}), five(DType::f32, {5}),
      r64(DType::f64, {4});
  Tensor apart(DType::f32, {4, 3}, {6, 2}), ints(DType::i32, {4, 3}), once(DType::f32, {4}, {0});
  const auto loss = [](Tensor* x, Tensor* t, Tensor* a, Tensor* b) {
    return Instruct(Op::cross_entropy, {x, t}, {a, b}, {0});
  };
  CHECK(loss(&logits, &targets, &r, &r).check().ok());
  CHECK_REFUSED(loss(&apart, &targets, &r, &r));
  CHECK_REFUSED(loss(&ints, &targets, &r, &r));
  CHECK_REFUSED(loss(&logits, &r, &r, &r));
  CHECK_REFUSED(loss(&logits, &targets, &five, &r));
  CHECK_REFUSED(loss(&logits, &targets, &r, &r64));
  CHECK_REFUSED(loss(&logits, &targets, &r, &once));
  CHECK_REFUSED(Instruct(Op::cross_entropy_grad, {&logits, &targets, &r, &r}, {&apart}, {0, 0}, {}, {0}));
  CHECK_REFUSED(Instruct(Op::cross_entropy_grad, {&logits, &targets, &r, &r}, {&logits}, {0, 1}, {}, {0}));
  CHECK_REFUSED(Instruct(Op::cross_entropy_grad, {&logits, &targets, &r, &five}, {&logits}, {0, 0}, {}, {0}));
  CHECK_REFUSED(Instruct(Op::cross_entropy_partial, {&logits, &targets, &r}, {&r, &r}, {0, 5}, {}, {0}));
}

}  // namespace
}  // namespace meshwork::test
