// Every op that is a kernel on the CPU is one on CUDA, with the same check.
#include "backend/cpu/registry.h"
#include "backend/cuda/registry.h"
#include "test/harness.h"

namespace meshwork::test {
namespace {

TEST(every_op_has_a_cuda_kernel) {
  for (int32_t code = 1; code < kOpCount; ++code) {
    const auto op = static_cast<Op>(code);
    const Kernel *cpu = findCpuKernel(op), *gpu = cuda::findKernel(op);
    CHECK_EQ(std::string(kOpInfo[code].name) + (gpu != nullptr ? " has one" : " has none"),
             std::string(kOpInfo[code].name) + (cpu != nullptr ? " has one" : " has none"));
    if (cpu != nullptr && gpu != nullptr) CHECK(cpu->check == gpu->check && gpu->op == op);
  }
}

}  // namespace
}  // namespace meshwork::test
