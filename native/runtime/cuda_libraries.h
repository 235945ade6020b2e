// Which of CUDA's libraries are found, for `meshwork doctor`.
#pragma once
#include <string>
#include <vector>

namespace meshwork {

struct CudaLibrary {
  std::string name;
  std::string version;  // empty when it was not found
  std::string detail;   // where it was found, or why it was not
};

// Opens the driver's library, cuBLASLt, NVRTC and NCCL as the CUDA backend does, and asks their versions.
std::vector<CudaLibrary> findCudaLibraries();

}  // namespace meshwork
