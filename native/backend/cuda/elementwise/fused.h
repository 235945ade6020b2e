// Fused elementwise kernels on a device: compiled once by content, kept in memory and on disk, launched many times.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/elementwise/layout.h"

namespace meshwork::cuda {

// Turns source into machine code and starts it: NVRTC and the driver, or a stand-in in tests.
class FusedCompiler {
 public:
  virtual ~FusedCompiler() = default;
  // What the code depends on besides the source: compiler and target.
  virtual std::string identity(const Device& device) const = 0;
  virtual Status compile(const Device& device, const std::string& source, std::string* code) = 0;
  // A kernel for launch(), of this device.
  virtual Status load(const std::string& code, void** kernel) = 0;
  virtual void unload(void* kernel) = 0;
  virtual void launch(Device& device, void* kernel, unsigned blocks, const std::vector<int64_t>& parameters) = 0;
};

// NVRTC's; null where NVRTC or the driver is not found.
std::unique_ptr<FusedCompiler> nvrtcCompiler();

// Where compiled kernels are kept: MESHWORK_KERNEL_CACHE, else meshwork/kernels in XDG_CACHE_HOME or ~/.cache; empty
// (not kept) where MESHWORK_KERNEL_CACHE is empty or there is no home.
std::string kernelCacheFolder();

// Gives a device a compiler and a cache folder of its own (tests); the first call gives it NVRTC's and the user's.
void setFusedCompiler(Device& device, std::unique_ptr<FusedCompiler> compiler, std::string cacheFolder);

// Makes the kernel of a call ready, if it is not. Failures leave it to be interpreted.
void prepareFused(Device& device, const Call& call, const ElementLayout& layout);

// Launches a call's kernel; false where there is none.
bool launchFused(Device& device, const Call& call, const ElementLayout& layout);

}  // namespace meshwork::cuda
