// What must be the CPU's bits on CUDA: random numbers, and sums of embedding gradients in the order of the ids.
#include "backend/cpu/registry.h"
#include "runtime/pool.h"
#include "test/kernel_test.h"

namespace meshwork::test {
namespace {

void checkSameBits(const Instruct& call) {
  CHECK_EQ(call.check().message(), std::string());
  call.run();
  std::vector<std::vector<std::byte>> emulated;
  for (const Tensor* t : call.out) emulated.push_back(t->bytes());
  Pool pool(1);
  call.runOn([&](Call c) {
    c.pool = &pool;
    findCpuKernel(call.op)->run(c);
  });
  for (size_t k = 0; k < call.out.size(); ++k) CHECK(call.out[k]->bytes() == emulated[k]);
}

TEST(random_has_the_cpus_bits) {
  Tensor key(DType::i32, {3});
  key.fill([](int64_t i) { return static_cast<double>(i * 1234567 - 99); });
  for (const int kind : {0, 1, 2}) {
    for (const DType dtype : {DType::i32, DType::f32, DType::f64, DType::bf16}) {
      if ((dtype == DType::i32) != (kind == 0)) continue;
      Tensor y(dtype, {7, 1001}, {1003, 1});
      checkSameBits({Op::random, {&key}, {&y}, {kind, 5, 0, 0, 9, 1, 2003}, {}, {2, 501}});
    }
  }
}

TEST(embedding_grad_has_the_cpus_bits) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t width : {64, 1000}) {
      Tensor dy(dtype, {3000, width}), ids(DType::i32, {3000}), table(DType::f32, {150, width});
      dy.random(-3, 3, 1);
      // Many of one id, more than a block lists at a time, and some outside of the table.
      ids.fill([](int64_t i) { return i % 3 != 0 ? 77 : static_cast<double>(i * 7919 % 160 - 5); });
      checkSameBits({Op::embedding_grad, {&dy, &ids}, {&table}, {0}, {}, {0}});
    }
  }
}

}  // namespace
}  // namespace meshwork::test
