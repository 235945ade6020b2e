// The copy kernels: every pair of layouts moves every element once; a shard is the part that its start says.
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
  Tensor x(DType::f32, {4}), y(DType::f32, {4}), f64(DType::f64, {4}), five(DType::f32, {5}),
      repeated(DType::f32, {4}, {0});
  CHECK_REFUSED((Instruct{Op::copy, {&x}, {&f64}}));
  CHECK_REFUSED((Instruct{Op::copy, {&x}, {&five}}));
  CHECK_REFUSED((Instruct{Op::copy, {&x}, {&repeated}}));
  CHECK_REFUSED((Instruct{Op::copy, {&x, &x}, {&y}}));
  CHECK_REFUSED((Instruct{Op::copy, {&x}, {&y}, {1}}));
}

// y[i, j, k] = x[i, start + j, k], with start moved into x.
TEST(shard_slice_takes_its_part) {
  for (const DType dtype : {DType::bf16, DType::f32, DType::i32, DType::f64, DType::boolean}) {
    for (const Dims& strides : {Dims{35, 5, 1}, Dims{1, 15, 3}}) {
      for (const int32_t start : {0, 2, 3, -9, 100}) {
        Tensor x(dtype, {3, 7, 5}, strides), y(dtype, {3, 4, 5});
        x.random(-100, 100, 3);
        Instruct{Op::shard_slice, {&x}, {&y}, {1, 2}, {}, {0, 0, start}}.runAll();
        const int64_t from = start < 0 ? 0 : start > 3 ? 3 : start;
        for (int64_t i = 0; i < y.count(); ++i) {
          CHECK_EQ(y.get(i), x.get(i / 20 * 35 + (i / 5 % 4 + from) * 5 + i % 5));
        }
      }
    }
  }
  Tensor x(DType::f32, {4}), none(DType::f32, {0}), all(DType::f32, {4});
  x.random(-1, 1, 5);
  Instruct{Op::shard_slice, {&x}, {&none}, {0, 0}, {}, {4}}.runAll();
  Instruct{Op::shard_slice, {&x}, {&all}, {0, 0}, {}, {0}}.runAll();
  CHECK(all.bytes() == x.bytes());
}

TEST(shard_slice_refuses) {
  Tensor x(DType::f32, {4, 3}), y(DType::f32, {2, 3}), wide(DType::f32, {5, 3}), other(DType::f32, {2, 2});
  Tensor flat(DType::f32, {4}), f64(DType::f64, {2, 3}), repeated(DType::f32, {2, 3}, {0, 1});
  CHECK((Instruct{Op::shard_slice, {&x}, {&y}, {0, 0}, {}, {0}}).check().ok());
  for (Tensor* to : {&wide, &other, &flat, &f64, &repeated}) {
    CHECK_REFUSED((Instruct{Op::shard_slice, {&x}, {to}, {0, 0}, {}, {0}}));
  }
  for (const int32_t dim : {-1, 1, 2}) CHECK_REFUSED((Instruct{Op::shard_slice, {&x}, {&y}, {dim, 0}, {}, {0}}));
  CHECK_REFUSED((Instruct{Op::shard_slice, {&x}, {&y}, {0, 1}, {}, {0}}));
  CHECK_REFUSED((Instruct{Op::shard_slice, {&x}, {&y}, {0}, {}, {0}}));
}

}  // namespace
}  // namespace meshwork::test
