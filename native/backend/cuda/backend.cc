// The CUDA backend: GPUs for ranks, and their memory.
#include <cuda_runtime.h>

#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/entry.h"
#include "backend/cuda/registry.h"

namespace meshwork::cuda {
namespace {

std::string explain(const char* call, cudaError_t error) {
  return std::string(call) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")";
}

int countGpus(std::string* problem) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    *problem = explain("cudaGetDeviceCount", error);
    return 0;
  }
  if (count == 0) *problem = "the driver lists no GPU";
  return count;
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(int devices, int gpus) : devices_(static_cast<size_t>(devices)) {
    // Neighbouring ranks share a GPU where there are more ranks than GPUs.
    for (int rank = 0; rank < devices; ++rank) {
      Device& device = devices_[static_cast<size_t>(rank)];
      device.rank = rank;
      device.ordinal = devices <= gpus ? rank : static_cast<int>(int64_t{rank} * gpus / devices);
    }
  }

  const char* name() const override { return "cuda"; }
  bool computes() const override { return true; }

  Status allocate(int device, int64_t bytes, std::byte** data) override {
    *data = nullptr;
    if (bytes == 0) return Status();
    cudaSetDevice(ordinal(device));
    void* memory = nullptr;
    cudaError_t error = cudaMalloc(&memory, static_cast<size_t>(bytes));
    if (error == cudaSuccess) error = cudaMemset(memory, 0, static_cast<size_t>(bytes));
    if (error != cudaSuccess) {
      cudaFree(memory);
      cudaGetLastError();
      return Status(Code::outOfMemory, "cannot allocate " + std::to_string(bytes) + " bytes on GPU " +
                                           std::to_string(ordinal(device)) + ": " + explain("cudaMalloc", error));
    }
    *data = static_cast<std::byte*>(memory);
    return Status();
  }

  void free(int device, std::byte* data, int64_t) override {
    if (data == nullptr) return;
    cudaSetDevice(ordinal(device));
    cudaFree(data);
  }

  void copyIn(int device, std::byte* to, const std::byte* from, int64_t bytes) override {
    if (bytes == 0) return;
    cudaSetDevice(ordinal(device));
    cudaMemcpy(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice);
  }
  void copyOut(int device, std::byte* to, const std::byte* from, int64_t bytes) override {
    if (bytes == 0) return;
    cudaSetDevice(ordinal(device));
    cudaMemcpy(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost);
  }
  const Kernel* findKernel(Op op) const override { return cuda::findKernel(op); }

 private:
  int ordinal(int device) const { return devices_[static_cast<size_t>(device)].ordinal; }

  std::vector<Device> devices_;
};

Status open(int devices, std::shared_ptr<Backend>* backend) {
  std::string problem;
  const int gpus = countGpus(&problem);
  if (gpus == 0) return Status(Code::unsupported, "no CUDA device can be used: " + problem);
  *backend = std::make_shared<CudaBackend>(devices, gpus);
  return Status();
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const Entry* meshworkCudaEntry() {
  static const Entry entry{kOpTableHash, MESHWORK_CUDA_BUILD, countGpus, open};
  return &entry;
}

}  // namespace meshwork::cuda
