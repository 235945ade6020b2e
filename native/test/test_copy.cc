// The copy kernel: every pair of layouts moves every element once.
#include "test/kernel_test.h"

namespace meshwork::test {
namespace {

void checkCopyOf(const Dims& dims, const Dims& xs, const Dims& ys) {
  for (const DType dtype : {DType::boolean, DType::bf16, DType::f32, DType::i32, DType::f64, DType::f16}) {
    Tensor x(dtype, dims, xs), y(dtype, dims, ys);
    if (dtype != DType::f16) x.random(-100, 100, 7);
    Instruct{Op::copy, {&x}, {&y}}.runAll();
    if (dtype == DType::f16) continue;
    for (int64_t i = 0; i < x.count(); ++i) CHECK_EQ(y.get(i), x.get(i));
  }
}

TEST(copy_layouts) {
  checkCopyOf({}, {}, {});
  checkCopyOf({0, 5}, {5, 1}, {5, 1});
  checkCopyOf({7}, {0}, {1});
  checkCopyOf({6, 50}, {50, 1}, {64, 1});
  checkCopyOf({50, 70}, {1, 50}, {70, 1});
  checkCopyOf({50, 70}, {70, 1}, {1, 50});
  checkCopyOf({3, 33, 4, 9}, {1188, 36, 9, 1}, {1188, 9, 297, 1});
  checkCopyOf({3, 33, 4, 9}, {1188, 36, 9, 1}, {1, 3, 99, 396});
  checkCopyOf({2, 65, 3, 40}, {7800, 120, 40, 1}, {7800, 1, 2600, 65});
  checkCopyOf({5, 4}, {8, 2}, {3, 16});
  checkCopyOf({2, 1, 3}, {3, 99, 1}, {3, 3, 1});
  checkCopyOf({70000}, {1}, {1});
  checkCopyOf({200000}, {2}, {1});
}

TEST(copy_refuses) {
  Tensor x(DType::f32, {4}), y(DType::f32, {4}), f64(DType::f64, {4}), five(DType::f32, {5}), repeated(DType::f32, {4}, {0});
  CHECK_REFUSED((Instruct{Op::copy, {&x}, {&f64}}));
  CHECK_REFUSED((Instruct{Op::copy, {&x}, {&five}}));
  CHECK_REFUSED((Instruct{Op::copy, {&x}, {&repeated}}));
  CHECK_REFUSED((Instruct{Op::copy, {&x, &x}, {&y}}));
  CHECK_REFUSED((Instruct{Op::copy, {&x}, {&y}, {1}}));
}

}  // namespace
}  // namespace meshwork::test
