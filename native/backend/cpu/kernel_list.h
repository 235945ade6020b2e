// How a file in kernels/ hands its kernels to the registry.
//
// Every kernels/NAME.cc is compiled once per instruction set, with other flags and another value of the macro
// MESHWORK_ISA (portable, avx2, avx512). Everything in it must live in namespace meshwork::MESHWORK_ISA, so that the
// linker never merges an inline function compiled for a wide set with one that a narrow processor runs. For the same
// reason such a file holds run() functions only: check() functions build strings, and live in checks/, compiled once.
#pragma once
#include "backend/kernel.h"

#ifndef MESHWORK_ISA
#define MESHWORK_ISA portable
#define MESHWORK_ISA_LEVEL 0
#endif

// MESHWORK_KERNELS(matmul, {Op::matmul, checkMatmul, runMatmul}, ...) at the end of kernels/matmul.cc, outside of any
// namespace. NAME is the file's name.
#define MESHWORK_KERNELS(NAME, ...)                                                                       \
  namespace meshwork::MESHWORK_ISA {                                                                      \
  namespace {                                                                                             \
  constexpr Kernel NAME##Array[] = {__VA_ARGS__};                                                         \
  }                                                                                                       \
  extern const KernelList NAME##Kernels;                                                                  \
  const KernelList NAME##Kernels = {NAME##Array, static_cast<int>(sizeof(NAME##Array) / sizeof(Kernel))}; \
  }
