// The seam between the runtime and a kind of device: memory, copies and kernels.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "backend/kernel.h"
#include "backend/queue.h"
#include "core/status.h"

namespace meshwork {

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;

  // False for a backend that only records: memory is null, kernels and collectives move no data.
  virtual bool computes() const = 0;

  // Memory of a device, zeroed, 64-byte aligned. `bytes` may be 0, which gives null.
  virtual Status allocate(int device, int64_t bytes, std::byte** data) = 0;
  virtual void free(int device, std::byte* data, int64_t bytes) = 0;

  // True where a device's memory is the host's own, to be read and written in place.
  virtual bool onHost() const { return false; }

  // Copies between the host and a device's memory; return when done. A device that fails throws std::runtime_error.
  virtual void copyIn(int device, std::byte* to, const std::byte* from, int64_t bytes) = 0;
  virtual void copyOut(int device, std::byte* to, const std::byte* from, int64_t bytes) = 0;

  // The device's queue; null for a backend whose kernels are done when they return.
  virtual DeviceQueue* queue(int /*device*/) { return nullptr; }

  // Null when there is none; the kernel's check() decides about dtypes and layouts.
  virtual const Kernel* findKernel(Op op) const = 0;
};

// Opens "cpu", "null" or "cuda" for so many devices. "cuda" is meshwork_cuda.so beside this library (or the file that
// MESHWORK_CUDA_LIBRARY names): Code::device where it, a driver or a GPU is not there.
Status openBackend(std::string_view name, int devices, std::shared_ptr<Backend>* backend);

// How many GPUs "cuda" would find; 0 with the reason in `detail`, else what was built.
int countCudaGpus(std::string* detail);

}  // namespace meshwork
