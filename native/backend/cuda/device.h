// A CUDA device as its kernels and libraries see it: streams, workspace, properties, and the first error.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "backend/kernel.h"

namespace meshwork::cuda {

// What the kernels of a family keep from call to call on a device (handles, descriptors, compiled kernels).
struct KernelState {
  virtual ~KernelState() = default;
};
enum StateSlot { kMatmulState, kElementwiseState, kAttentionState, kStateSlots };

// Belongs to one rank and is used by its thread alone. Several ranks may share a GPU: each has a Device of its own.
struct Device {
  int rank = 0;
  int ordinal = 0;            // of the GPU
  int multiprocessors = 0;    // how many the GPU has
  int computeCapability = 0;  // 10 * major + minor: 80, 90, ...
  int sharedMemory = 0;       // bytes a block may use when it asks for them
  cudaStream_t compute = nullptr;
  cudaStream_t communication = nullptr;
  // Scratch of the running kernel, in order on the compute stream: a kernel finds there what the last one left.
  std::byte* workspace = nullptr;
  int64_t workspaceBytes = 0;
  std::unique_ptr<KernelState> states[kStateSlots];  // made by the family's first call (or prepare); any type of theirs

  // The first failure since the run began; later ones are its consequences. Null: none.
  const char* failedCall = nullptr;
  cudaError_t error = cudaSuccess;
  bool failed() const { return failedCall != nullptr; }
  // Records a failure of `what`, a literal; returns whether `result` is success.
  bool check(cudaError_t result, const char* what) {
    if (result == cudaSuccess) return true;
    if (failedCall == nullptr) {
      failedCall = what;
      error = result;
    }
    return false;
  }
};

// The device of a kernel's call.
inline Device& deviceOf(const Call& call) { return *static_cast<Device*>(call.device); }

}  // namespace meshwork::cuda
