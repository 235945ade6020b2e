// Embedding rows and their gradient: shards, ids that are not there, repeated ids.
#include <climits>

#include "test/kernel_test.h"

namespace meshwork::test {
namespace {

void checkEmbeddingOn(DType dtype, int64_t rows, int64_t width, int64_t count, int64_t pitch, int32_t start) {
  Tensor table(dtype, {rows, width}, {pitch, 1}), ids(DType::i32, {count}), y(dtype, {count, width});
  table.random(-1, 1, 1);
  std::mt19937 engine(3);
  ids.fill([&](int64_t i) {
    if (i % 7 == 3) return static_cast<double>(i % 2 ? INT32_MIN : INT32_MAX);
    return static_cast<double>(static_cast<int64_t>(engine() % static_cast<unsigned>(rows + 2)) - 1 + start);
  });
  Instruct(Op::embedding, {&table, &ids}, {&y}, {1}, {}, {99, start}).runAll();
  Tensor sums(dtype == DType::f64 ? DType::f64 : DType::f32, {rows, width}, {pitch, 1});
  Instruct(Op::embedding_grad, {&y, &ids}, {&sums}, {0}, {}, {start}).runAll();
  std::vector<double> expected(static_cast<size_t>(rows * width), 0);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = static_cast<int64_t>(ids.get(i)) - start;
    const bool here = row >= 0 && row < rows;
    for (int64_t w = 0; w < width; ++w) {
      CHECK_EQ(y.get(i * width + w), here ? table.get(row * width + w) : 0.0);
      if (here) expected[static_cast<size_t>(row * width + w)] += table.get(row * width + w);
    }
  }
  for (int64_t i = 0; i < rows * width; ++i) {
    const double e = expected[static_cast<size_t>(i)];
    CHECK_NEAR(sums.get(i), e, 50 * epsilonOf(sums.dtype()) * (e < 0 ? -e : e));
  }
}

TEST(embedding_and_grad) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    checkEmbeddingOn(dtype, 10, 33, 50, 33, 0);
    checkEmbeddingOn(dtype, 10, 130, 50, 160, 5);
    checkEmbeddingOn(dtype, 1, 1, 1, 1, -4);
    checkEmbeddingOn(dtype, 3000, 70, 700, 70, INT32_MAX - 10);
    checkEmbeddingOn(dtype, 1000, 20, 3000, 24, 7);
    checkEmbeddingOn(dtype, 4, 0, 5, 0, 0);
    checkEmbeddingOn(dtype, 4, 5, 0, 5, 0);
    checkEmbeddingOn(dtype, 0, 5, 3, 5, 0);
  }
}

TEST(embedding_refuses) {
  Tensor table(DType::f32, {4, 3}), ids(DType::i32, {2}), y(DType::f32, {2, 3}), wrong(DType::f32, {2, 4}),
      f64(DType::f64, {2, 3});
  Tensor apart(DType::f32, {4, 3}, {8, 2}), floats(DType::f32, {2}), three(DType::i32, {3}),
      repeated(DType::f32, {2, 3}, {0, 1});
  const auto embedding = [](Tensor* t, Tensor* i, Tensor* out, int32_t start) {
    return Instruct(Op::embedding, {t, i}, {out}, {start}, {}, {0});
  };
  CHECK(embedding(&table, &ids, &y, 0).check().ok());
  CHECK_REFUSED(embedding(&table, &ids, &y, 1));
  CHECK_REFUSED(embedding(&table, &ids, &y, -1));
  CHECK_REFUSED(embedding(&apart, &ids, &y, 0));
  CHECK_REFUSED(embedding(&table, &floats, &y, 0));
  CHECK_REFUSED(embedding(&table, &three, &y, 0));
  CHECK_REFUSED(embedding(&table, &ids, &wrong, 0));
  CHECK_REFUSED(embedding(&table, &ids, &f64, 0));
  CHECK_REFUSED(embedding(&table, &ids, &repeated, 0));
  CHECK_REFUSED(Instruct(Op::embedding_grad, {&y, &three}, {&table}, {0}, {}, {0}));
  CHECK_REFUSED(Instruct(Op::embedding_grad, {&f64, &ids}, {&table}, {0}, {}, {0}));
  CHECK_REFUSED(Instruct(Op::embedding_grad, {&y, &ids}, {&table}, {0}, {}, {}));
}

}  // namespace
}  // namespace meshwork::test
