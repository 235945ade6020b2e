// matmul by cuBLASLt's interface, on a stand-in: layouts, batches, addends, epilogues, and what it must not be given.
#include "backend/checks/matmul.h"
#include "test/cuda_emulator/alike.h"
#include "test/cuda_emulator/cublaslt_stand_in.h"

namespace meshwork::test {
namespace {

constexpr int64_t kM = 9, kN = 14, kK = 20;

Dims strides(int64_t rows, int64_t columns, bool byRows, int64_t padding) {
  return byRows ? Dims{rows * (columns + padding), columns + padding, 1}
                : Dims{columns * (rows + padding), 1, rows + padding};
}

// Runs a product on the stand-in and on the CPU; returns how many the stand-in computed.
int compare(const CublasLtStandIn& library, DType dtype, DType result, int32_t flags, int form, double alpha,
            int64_t padding = 3) {
  Tensor a(dtype, {2, kM, kK}, strides(kM, kK, form & 1, padding)),
      b(dtype, {2, kK, kN}, strides(kK, kN, form & 2, padding)), bias(result, {kN}),
      residual(result, {2, kM, kN}, strides(kM, kN, true, 2 * padding)),
      d(result, {2, kM, kN}, strides(kM, kN, true, padding));
  a.random(-1, 1, 1);
  b.random(-1, 1, 2);
  bias.random(-1, 1, 3);
  residual.random(-1, 1, 4);
  d.random(-1, 1, 5);
  std::vector<Tensor*> inputs = {&a, &b};
  if (flags & matmul_flag::bias) inputs.push_back(&bias);
  if (flags & matmul_flag::residual) inputs.push_back(&residual);
  const int before = library.products();
  checkAlike({Op::matmul, inputs, {&d}, {flags, 0}, {alpha}}, 40);
  CHECK_EQ(library.living(), 0);
  return library.products() - before;
}

TEST(matmul_library_layouts_and_epilogues) {
  const CublasLtStandIn library;
  for (int form = 0; form < 4; ++form) {
    for (const int32_t flags : {0, 1, 2, 3, 4, 6, 8, 10}) {
      CHECK_EQ(compare(library, DType::bf16, DType::bf16, flags, form, 0.7), 2);
      CHECK_EQ(compare(library, DType::bf16, DType::f32, flags, form, 0.7, 0), 2);
      CHECK_EQ(compare(library, DType::f64, DType::f64, flags, form, -1.5), 2);
    }
  }
}

TEST(matmul_library_is_not_asked_for_other_meanings) {
  CublasLtStandIn library;
  for (const int32_t flags : {5, 9, 12, 16, 18, 20}) {  // two addends, an activation before one, silu
    CHECK_EQ(compare(library, DType::bf16, DType::bf16, flags, 1, 1), 0);
  }
  CHECK_EQ(compare(library, DType::f32, DType::f32, 0, 1, 1), 0);  // small: sums in float64
  CHECK_EQ(library.heuristics(), 0);
  library.refuseAlgorithms();
  CHECK_EQ(compare(library, DType::bf16, DType::bf16, 0, 1, 1), 0);
  CHECK_EQ(library.heuristics(), 2);
}

TEST(matmul_library_plans_are_kept) {
  const CublasLtStandIn library;
  Tensor a(DType::f32, {1, 3, 4200}), b(DType::f32, {1, 4200, 5}), d(DType::f32, {1, 3, 5});
  a.random(-1, 1, 1);
  b.random(-1, 1, 2);
  const Instruct product(Op::matmul, {&a, &b}, {&d}, {0, 0}, {1});
  cuda::Device device;
  const Kernel& kernel = *cuda::findKernel(Op::matmul);
  product.prepareOn([&](Call call) {
    call.device = &device;
    kernel.prepare(call);
  });
  CHECK_EQ(library.heuristics(), 1);
  for (int i = 0; i < 3; ++i) {
    product.runOn([&](Call call) {
      call.device = &device;
      kernel.run(call);
    });
  }
  CHECK_EQ(library.products(), 3);
  CHECK(library.heuristics() <= 2);  // once more where the operands are not aligned as prepare() hoped
}

}  // namespace
}  // namespace meshwork::test
