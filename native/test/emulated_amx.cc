// Which kernels stand in for those of AMX: its own sources, over tiles in plain memory.
#include "test/emulated_amx.h"

#include "backend/cpu/kernel_list.h"

namespace meshwork {
#if defined(__x86_64__)
namespace amxemulated {
extern const KernelList matmulKernels, attentionKernels, attention_gradKernels;
}
#endif

namespace test {

bool isaTestable(Isa isa) { return isaSupported(isa) || (isa == Isa::amx && isaSupported(Isa::avx512)); }

const Kernel* testableKernel(Op op, Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::amx && !isaSupported(Isa::amx)) {
    for (const KernelList* list :
         {&amxemulated::matmulKernels, &amxemulated::attentionKernels, &amxemulated::attention_gradKernels}) {
      for (int i = 0; i < list->count; ++i) {
        if (list->kernels[i].op == op) return &list->kernels[i];
      }
    }
    return findCpuKernel(op, Isa::avx512);
  }
#endif
  return findCpuKernel(op, isa);
}

}  // namespace test
}  // namespace meshwork
