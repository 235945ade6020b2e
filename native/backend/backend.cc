// The backends there are: the CPU, one that only records, and CUDA in a library of its own.
#include "backend/backend.h"

#include <cstring>

#include "backend/cpu/registry.h"
#include "backend/cuda_library.h"
#include "backend/memory.h"

namespace meshwork {
namespace {

class CpuBackend final : public Backend {
 public:
  const char* name() const override { return "cpu"; }
  bool computes() const override { return true; }
  bool onHost() const override { return true; }
  Status allocate(int, int64_t bytes, std::byte** data) override {
    *data = bytes == 0 ? nullptr : allocateHost(bytes);
    if (bytes != 0 && *data == nullptr) {
      return Status(Code::outOfMemory, "cannot allocate " + std::to_string(bytes) + " bytes of host memory");
    }
    return Status();
  }
  void free(int, std::byte* data, int64_t bytes) override { freeHost(data, bytes); }
  void copyIn(int, std::byte* to, const std::byte* from, int64_t bytes) override { copy(to, from, bytes); }
  void copyOut(int, std::byte* to, const std::byte* from, int64_t bytes) override { copy(to, from, bytes); }
  const Kernel* findKernel(Op op) const override { return findCpuKernel(op); }

 private:
  static void copy(std::byte* to, const std::byte* from, int64_t bytes) {
    if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
  }
};

// Holds programs to the CPU's kernels, then runs nothing: layouts of many devices can be loaded and counted anywhere.
class NullBackend final : public Backend {
 public:
  const char* name() const override { return "null"; }
  bool computes() const override { return false; }
  Status allocate(int, int64_t, std::byte** data) override {
    *data = nullptr;
    return Status();
  }
  void free(int, std::byte*, int64_t) override {}
  void copyIn(int, std::byte*, const std::byte*, int64_t) override {}
  void copyOut(int, std::byte* to, const std::byte*, int64_t bytes) override {
    if (bytes > 0) std::memset(to, 0, static_cast<size_t>(bytes));
  }
  const Kernel* findKernel(Op op) const override { return findCpuKernel(op); }
};

}  // namespace

Status openBackend(std::string_view name, int devices, std::shared_ptr<Backend>* backend) {
  if (name == "cuda") {
    const cuda::Entry* entry = nullptr;
    Status status = cuda::loadEntry(&entry);
    return status.ok() ? entry->open(devices, backend) : status;
  }
  if (name == "cpu")
    *backend = std::make_shared<CpuBackend>();
  else if (name == "null")
    *backend = std::make_shared<NullBackend>();
  else
    return Status(Code::invalidArgument, "there is no backend '" + std::string(name) + "'");
  return Status();
}

int countCudaGpus(std::string* detail) {
  const cuda::Entry* entry = nullptr;
  const Status status = cuda::loadEntry(&entry);
  if (!status.ok()) {
    *detail = status.message();
    return 0;
  }
  const int gpus = entry->countGpus(detail);
  if (gpus > 0) *detail = entry->build;
  return gpus;
}

}  // namespace meshwork
