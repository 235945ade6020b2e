// Asks each library its version.
#include "runtime/cuda_libraries.h"

#include "backend/cuda/abi/cublaslt.h"
#include "backend/cuda/abi/nccl.h"
#include "backend/cuda/abi/nvrtc.h"

namespace meshwork {
namespace {

std::string dotted(int major, int minor, int patch) {
  return std::to_string(major) + "." + std::to_string(minor) + (patch < 0 ? "" : "." + std::to_string(patch));
}

std::string driverVersion(const cuda::abi::Driver& driver) {
  int version = 0;
  driver.driverGetVersion(&version);
  return "CUDA " + dotted(version / 1000, version % 1000 / 10, -1);
}
std::string cublasVersion(const cuda::abi::CublasLt& cublas) {
  const auto version = static_cast<int>(cublas.getVersion());
  return dotted(version / 10000, version / 100 % 100, version % 100);
}
std::string nvrtcVersion(const cuda::abi::Nvrtc& nvrtc) {
  int major = 0, minor = 0;
  nvrtc.version(&major, &minor);
  return dotted(major, minor, -1);
}
std::string ncclVersion(const cuda::abi::Nccl& nccl) {
  int version = 0;
  nccl.getVersion(&version);
  return dotted(version / 10000, version / 100 % 100, version % 100);
}

template <class Api>
CudaLibrary find(const char* name, Status (*load)(const Api**), std::string (*version)(const Api&)) {
  const Api* api = nullptr;
  const Status status = load(&api);
  if (!status.ok()) return {name, "", status.message()};
  return {name, version(*api), api->path};
}

}  // namespace

std::vector<CudaLibrary> findCudaLibraries() {
  return {find("CUDA driver library", cuda::abi::loadDriver, driverVersion),
          find("NCCL", cuda::abi::loadNccl, ncclVersion), find("cuBLASLt", cuda::abi::loadCublasLt, cublasVersion),
          find("NVRTC", cuda::abi::loadNvrtc, nvrtcVersion)};
}

}  // namespace meshwork
