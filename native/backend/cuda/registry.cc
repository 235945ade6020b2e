// The table of CUDA kernels: op -> kernel, built once from the lists of kernels/*.cu.
#include "backend/cuda/registry.h"

#include <array>

// cuda_kernel_files.inc is written by CMake: one MESHWORK_KERNEL_FILE(name) per file in kernels/.
namespace meshwork::cuda {

#define MESHWORK_KERNEL_FILE(name) extern const KernelList name##Kernels;
#include "cuda_kernel_files.inc"
#undef MESHWORK_KERNEL_FILE

const Kernel* findKernel(Op op) {
  static const auto table = [] {
    std::array<const Kernel*, kOpCount> kernels{};
    const auto add = [&](const KernelList& list) {
      for (int i = 0; i < list.count; ++i) kernels[static_cast<size_t>(list.kernels[i].op)] = &list.kernels[i];
    };
#define MESHWORK_KERNEL_FILE(name) add(name##Kernels);
#include "cuda_kernel_files.inc"
#undef MESHWORK_KERNEL_FILE
    return kernels;
  }();
  const auto code = static_cast<int32_t>(op);
  return code < 0 || code >= kOpCount ? nullptr : table[static_cast<size_t>(code)];
}

}  // namespace meshwork::cuda
