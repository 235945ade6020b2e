// The table of CPU kernels: for every instruction set, op -> kernel, built once from the lists of kernels/*.cc.
#include "backend/cpu/registry.h"

#include <array>

#include "backend/cpu/kernel_list.h"

// kernel_files.inc is written by CMake: one MESHWORK_KERNEL_FILE(name) per file in kernels/.
#define MESHWORK_KERNEL_FILE(name) extern const KernelList name##Kernels;
namespace meshwork {
namespace portable {
#include "kernel_files.inc"
}
#if defined(__x86_64__)
namespace avx2 {
#include "kernel_files.inc"
}
namespace avx512 {
#include "kernel_files.inc"
}
#endif
#undef MESHWORK_KERNEL_FILE
#if defined(__x86_64__)
// Those of the pair libraries (see CMakeLists.txt).
namespace avx512bf16 {
extern const KernelList matmulKernels, attentionKernels, attention_gradKernels;
}
namespace amx {
extern const KernelList matmulKernels, attentionKernels, attention_gradKernels;
}
#endif

namespace {

using Table = std::array<const Kernel*, kOpCount>;

void add(Table& table, const KernelList& list) {
  for (int i = 0; i < list.count; ++i) table[static_cast<size_t>(list.kernels[i].op)] = &list.kernels[i];
}

Table build(Isa isa) {
  Table table{};
  if (!isaSupported(isa)) return table;
  switch (isa) {
#if defined(__x86_64__)
    case Isa::amx:
    case Isa::avx512bf16:
    case Isa::avx512:
#define MESHWORK_KERNEL_FILE(name) add(table, avx512::name##Kernels);
#include "kernel_files.inc"
#undef MESHWORK_KERNEL_FILE
      break;
    case Isa::avx2:
#define MESHWORK_KERNEL_FILE(name) add(table, avx2::name##Kernels);
#include "kernel_files.inc"
#undef MESHWORK_KERNEL_FILE
      break;
#else
    case Isa::amx:
    case Isa::avx512bf16:
    case Isa::avx512:
    case Isa::avx2:
      break;
#endif
    case Isa::portable:
#define MESHWORK_KERNEL_FILE(name) add(table, portable::name##Kernels);
#include "kernel_files.inc"
#undef MESHWORK_KERNEL_FILE
      break;
  }
#if defined(__x86_64__)
  if (isa == Isa::avx512bf16) {
    for (const KernelList* list :
         {&avx512bf16::matmulKernels, &avx512bf16::attentionKernels, &avx512bf16::attention_gradKernels}) {
      add(table, *list);
    }
  }
  if (isa == Isa::amx) {
    for (const KernelList* list : {&amx::matmulKernels, &amx::attentionKernels, &amx::attention_gradKernels}) {
      add(table, *list);
    }
  }
#endif
  return table;
}

}  // namespace

const Kernel* findCpuKernel(Op op, Isa isa) {
  static const Table tables[kIsaCount] = {build(Isa::portable), build(Isa::avx2), build(Isa::avx512),
                                          build(Isa::avx512bf16), build(Isa::amx)};
  const int32_t code = static_cast<int32_t>(op);
  if (code < 0 || code >= kOpCount) return nullptr;
  return tables[static_cast<int>(isa)][static_cast<size_t>(code)];
}

const Kernel* findCpuKernel(Op op) { return findCpuKernel(op, activeIsa()); }

}  // namespace meshwork
