// What meshwork_cuda.so gives to the addon, which opens it at run time: the addon itself needs neither CUDA nor a
// driver.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "backend/backend.h"

namespace meshwork::cuda {

struct Entry {
  uint32_t opTableHash;  // kOpTableHash of the sources it was built from
  const char* build;     // e.g. "CUDA 13.0: sm_80 sm_90a"
  // How many GPUs the driver gives this process; 0 with the reason in `problem`.
  int (*countGpus)(std::string* problem);
  Status (*open)(int devices, std::shared_ptr<Backend>* backend);
};

constexpr const char* kEntryName = "meshworkCudaEntry";
using EntryFunction = const Entry* (*)();

}  // namespace meshwork::cuda
