// The CUDA backend: GPUs for ranks, and their memory.
#include <cuda_runtime.h>

#include <stdexcept>
#include <vector>

#include "backend/cuda/blocks.h"
#include "backend/cuda/entry.h"
#include "backend/cuda/queue.h"
#include "backend/cuda/registry.h"

namespace meshwork::cuda {
namespace {

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
  Status open(int devices, int gpus) {
    copies_.resize(static_cast<size_t>(gpus), nullptr);
    for (int rank = 0; rank < devices; ++rank) {
      // Neighbouring ranks share a GPU where there are more ranks than GPUs.
      const int gpu = devices <= gpus ? rank : static_cast<int>(int64_t{rank} * gpus / devices);
      Status status = Queue::open(rank, gpu, &queues_.emplace_back());
      if (!status.ok()) return status;
      cudaStream_t& copies = copies_[static_cast<size_t>(gpu)];
      if (copies != nullptr) continue;
      const cudaError_t error = cudaStreamCreateWithFlags(&copies, cudaStreamNonBlocking);
      if (error != cudaSuccess) return Status(Code::device, explain("cudaStreamCreate", error));
    }
    enablePeers();
    return Status();
  }
  ~CudaBackend() override {
    for (const cudaStream_t stream : copies_) {
      if (stream != nullptr) cudaStreamDestroy(stream);
    }
  }

  const char* name() const override { return "cuda"; }
  bool computes() const override { return true; }
  DeviceQueue* queue(int device) override { return queues_[static_cast<size_t>(device)].get(); }

  Status allocate(int device, int64_t bytes, std::byte** data) override {
    *data = nullptr;
    if (bytes == 0) return Status();
    const cudaStream_t stream = select(device);
    void* memory = nullptr;
    cudaError_t error = cudaMalloc(&memory, static_cast<size_t>(bytes));
    if (error == cudaSuccess) error = cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
    if (error != cudaSuccess) {
      cudaFree(memory);
      cudaGetLastError();
      size_t left = 0, all = 0;
      cudaMemGetInfo(&left, &all);
      return Status(error == cudaErrorMemoryAllocation ? Code::outOfMemory : Code::device,
                    "cannot allocate " + std::to_string(bytes) + " bytes on GPU " + std::to_string(gpuOf(device)) +
                        ", which has " + std::to_string(left) + " of " + std::to_string(all) +
                        " free: " + explain("cudaMalloc", error));
    }
    *data = static_cast<std::byte*>(memory);
    return Status();
  }

  void free(int device, std::byte* data, int64_t) override { queues_[static_cast<size_t>(device)]->free(data); }

  void copyIn(int device, std::byte* to, const std::byte* from, int64_t bytes) override {
    copy(device, to, from, bytes, cudaMemcpyHostToDevice);
  }
  void copyOut(int device, std::byte* to, const std::byte* from, int64_t bytes) override {
    copy(device, to, from, bytes, cudaMemcpyDeviceToHost);
  }
  const Kernel* findKernel(Op op) const override { return cuda::findKernel(op); }

 private:
  int gpuOf(int device) const { return queues_[static_cast<size_t>(device)]->gpu(); }

  // Makes the device's GPU the calling thread's; gives the stream of its copies.
  cudaStream_t select(int device) const {
    cudaSetDevice(gpuOf(device));
    return copies_[static_cast<size_t>(gpuOf(device))];
  }

  // Throws what the engine makes a device's failure of: what was not copied must not be taken for data.
  void copy(int device, std::byte* to, const std::byte* from, int64_t bytes, cudaMemcpyKind kind) {
    Queue& queue = *queues_[static_cast<size_t>(device)];
    if (bytes == 0) return;
    if (!queue.usable()) throw std::runtime_error("the engine is dead since an earlier failure");
    const cudaStream_t stream = select(device);
    cudaError_t error = cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
    if (error == cudaSuccess) return;
    queue.abandon(Status(Code::device, explain("cudaMemcpyAsync", error)));
    throw std::runtime_error(explain("cudaMemcpyAsync", error));
  }

  void enablePeers() {
    for (const auto& queue : queues_) {
      cudaSetDevice(queue->gpu());
      for (const auto& other : queues_) {
        if (other->gpu() == queue->gpu() || !queue->reaches(*other)) continue;
        cudaDeviceEnablePeerAccess(other->gpu(), 0);  // an error says that it is enabled
        cudaGetLastError();
      }
    }
  }

  std::vector<std::unique_ptr<Queue>> queues_;  // of each rank
  std::vector<cudaStream_t> copies_;            // of each GPU in use: copies at once, beside runs
};

Status open(int devices, std::shared_ptr<Backend>* backend) {
  std::string problem;
  const int gpus = countGpus(&problem);
  if (gpus == 0) return Status(Code::device, "no CUDA device can be used: " + problem);
  if (devices > kMaxReduceRanks) {
    return Status(Code::invalidArgument, "a mesh of CUDA devices has at most " + std::to_string(kMaxReduceRanks) +
                                             " ranks in one process, not " + std::to_string(devices));
  }
  auto opened = std::make_shared<CudaBackend>();
  Status status = opened->open(devices, gpus);
  if (status.ok()) *backend = std::move(opened);
  return status;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const Entry* meshworkCudaEntry() {
  static const Entry entry{kOpTableHash, MESHWORK_CUDA_BUILD, countGpus, open};
  return &entry;
}

}  // namespace meshwork::cuda
