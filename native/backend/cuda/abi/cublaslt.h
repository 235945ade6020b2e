// cuBLASLt as far as matmuls need it: its functions by dlopen, and its numbers. Hand-declared, because machines that
// build often lack its headers; where they are found, verify_cublaslt.cc holds these declarations against them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/status.h"

namespace meshwork::cuda::abi {

using CublasStatus = int;  // 0 is success
constexpr CublasStatus kCublasSuccess = 0;
constexpr CublasStatus kCublasNotSupported = 15;

enum CublasComputeType : int { kComputeF32 = 68, kComputeF64 = 70, kComputeFastTf32 = 77 };
enum CudaDataType : int {
  kCudaF32 = 0,
  kCudaF64 = 1,
  kCudaF16 = 2,
  kCudaBf16 = 14,
  kCudaE4m3 = 28,
  kCudaE5m2 = 29,
};
enum CublasOperation : int { kOpN = 0, kOpT = 1 };
enum CublasLtDescAttribute : int {
  kDescPointerMode = 2,
  kDescTransA = 3,
  kDescTransB = 4,
  kDescEpilogue = 7,
  kDescBiasPointer = 8,
  kDescEpilogueAuxPointer = 11,
  kDescEpilogueAuxLd = 12,
  kDescAScalePointer = 17,
  kDescBScalePointer = 18,
  kDescCScalePointer = 19,
  kDescDScalePointer = 20,
  kDescAmaxDPointer = 21,
  kDescFastAccum = 25,
  kDescBiasDataType = 26,
};
enum CublasLtEpilogue : int {
  kEpilogueDefault = 1,
  kEpilogueRelu = 2,
  kEpilogueBias = 4,
  kEpilogueGelu = 32,  // the tanh form
  kEpilogueGeluBias = 36,
  kEpilogueGeluAux = 160,
  kEpilogueGeluAuxBias = 164,
  kEpilogueDGelu = 192,
  kEpilogueDGeluBgrad = 208,
  kEpilogueBgradA = 256,
  kEpilogueBgradB = 512,
};
enum CublasLtLayoutAttribute : int { kLayoutOrder = 1, kLayoutBatchCount = 5, kLayoutBatchStride = 6 };
enum CublasLtPreferenceAttribute : int {
  kPreferenceWorkspace = 1,
  kPreferenceReductionMask = 3,  // 0: no split-K
  kPreferenceAlignmentA = 5,
  kPreferenceAlignmentB = 6,
  kPreferenceAlignmentC = 7,
  kPreferenceAlignmentD = 8,
};

struct CublasLtAlgo {
  uint64_t data[8];
};
struct CublasLtHeuristic {
  CublasLtAlgo algo;
  size_t workspaceSize;
  CublasStatus state;
  float wavesCount;
  int reserved[4];
};

// Descriptors are made on the library's side (Create, never Init): their sizes have grown over the versions.
using Handle = void*;
using Desc = void*;
using Layout = void*;
using Preference = void*;

struct CublasLt {
  CublasStatus (*create)(Handle*);
  CublasStatus (*destroy)(Handle);
  size_t (*getVersion)();
  CublasStatus (*descCreate)(Desc*, int computeType, int scaleType);
  CublasStatus (*descDestroy)(Desc);
  CublasStatus (*descSet)(Desc, int attribute, const void* value, size_t bytes);
  CublasStatus (*layoutCreate)(Layout*, int dataType, uint64_t rows, uint64_t columns, int64_t ld);
  CublasStatus (*layoutDestroy)(Layout);
  CublasStatus (*layoutSet)(Layout, int attribute, const void* value, size_t bytes);
  CublasStatus (*preferenceCreate)(Preference*);
  CublasStatus (*preferenceDestroy)(Preference);
  CublasStatus (*preferenceSet)(Preference, int attribute, const void* value, size_t bytes);
  CublasStatus (*heuristic)(Handle, Desc, Layout a, Layout b, Layout c, Layout d, Preference, int wanted,
                            CublasLtHeuristic* results, int* found);
  CublasStatus (*matmul)(Handle, Desc, const void* alpha, const void* a, Layout, const void* b, Layout,
                         const void* beta, const void* c, Layout, void* d, Layout, const CublasLtAlgo*, void* workspace,
                         size_t workspaceBytes, void* stream);
  std::string path = "";  // of the library
};

// The library, opened at the first call; all later calls give the same. `unsupported` where there is none.
Status loadCublasLt(const CublasLt** api);

}  // namespace meshwork::cuda::abi
