// How a file in kernels/ looks, and how it hands its kernels to the registry.
//
// kernels/FAMILY.cu holds the kernels of the ops of one family: __global__ functions, and a run() function an op, which
// launches them with launch() (launch.h) on its device, deviceOf(call), in namespace meshwork::cuda. As on the CPU,
// run() never fails, waits or allocates: what does not fit registers and shared memory goes to device.workspace. It may
// look at views, attributes, `floats` and the table, which are the host's, and never at what operands point to. It is
// called again and again with the same call, or once while the compute stream is being captured as a graph, so that its
// launches depend on nothing else than the call and the device. Sums have a fixed order: no float atomics. The check()
// functions are those of native/backend/checks. kernels/copy.cu is the simplest example.
#pragma once
#include "backend/kernel.h"

// MESHWORK_CUDA_KERNELS(copy, {Op::copy, checkCopy, runCopy}, ...) at the end of kernels/copy.cu, outside of any
// namespace. NAME is the file's name.
#define MESHWORK_CUDA_KERNELS(NAME, ...)                                                                  \
  namespace meshwork::cuda {                                                                              \
  namespace {                                                                                             \
  constexpr Kernel NAME##Array[] = {__VA_ARGS__};                                                         \
  }                                                                                                       \
  extern const KernelList NAME##Kernels;                                                                  \
  const KernelList NAME##Kernels = {NAME##Array, static_cast<int>(sizeof(NAME##Array) / sizeof(Kernel))}; \
  }
