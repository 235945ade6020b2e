// Compiles fused kernels with NVRTC and starts them through the driver.
#include "backend/cuda/abi/nvrtc.h"

#include <utility>

#include "backend/cuda/elementwise/fused.h"
#include "backend/cuda/elementwise/generate.h"

namespace meshwork::cuda {
namespace {

Status failure(const char* what, const char* why, std::string log = {}) {
  return Status(Code::internal, std::string(what) + ": " + why + (log.empty() ? "" : "\n" + log));
}

class NvrtcCompiler final : public FusedCompiler {
 public:
  NvrtcCompiler(const abi::Nvrtc& nvrtc, const abi::Driver& driver) : nvrtc_(nvrtc), driver_(driver) {}

  std::string identity(const Device& device) const override {
    int major = 0, minor = 0;
    nvrtc_.version(&major, &minor);
    return "nvrtc " + std::to_string(major) + "." + std::to_string(minor) + " " + target(device);
  }

  Status compile(const Device& device, const std::string& source, std::string* code) override {
    void* program = nullptr;
    int result = nvrtc_.createProgram(&program, source.c_str(), "fused.cu", 0, nullptr, nullptr);
    if (result != 0) return failure("nvrtcCreateProgram", nvrtc_.errorString(result));
    const std::string architecture = "--gpu-architecture=" + target(device);
    const char* const options[] = {architecture.c_str(), "--std=c++17", "--fmad=false"};
    result = nvrtc_.compileProgram(program, 3, options);
    Status status;
    if (result != 0) {
      status = failure("nvrtcCompileProgram", nvrtc_.errorString(result), logOf(program));
    } else {
      size_t bytes = 0;
      result = nvrtc_.getCubinSize(program, &bytes);
      code->resize(bytes);
      if (result == 0) result = nvrtc_.getCubin(program, code->data());
      if (result != 0) status = failure("nvrtcGetCUBIN", nvrtc_.errorString(result));
    }
    nvrtc_.destroyProgram(&program);
    if (!status.ok()) code->clear();
    return status;
  }

  Status load(const std::string& code, void** kernel) override {
    auto loaded = std::make_unique<Loaded>();
    if (const int result = driver_.moduleLoadData(&loaded->module, code.data()); result != 0) {
      return failure("cuModuleLoadData", textOf(result));
    }
    if (const int result = driver_.moduleGetFunction(&loaded->function, loaded->module, kFusedName); result != 0) {
      driver_.moduleUnload(loaded->module);
      return failure("cuModuleGetFunction", textOf(result));
    }
    *kernel = loaded.release();
    return Status();
  }

  void unload(void* kernel) override {
    const std::unique_ptr<Loaded> loaded(static_cast<Loaded*>(kernel));
    driver_.moduleUnload(loaded->module);
  }

  void launch(Device& device, void* kernel, unsigned blocks, const std::vector<int64_t>& parameters) override {
    auto* words = const_cast<int64_t*>(parameters.data());
    void* arguments[] = {words};
    const int result = driver_.launchKernel(static_cast<Loaded*>(kernel)->function, blocks, 1, 1, kFusedThreads, 1, 1,
                                            0, device.compute, arguments, nullptr);
    device.check(static_cast<cudaError_t>(result), "cuLaunchKernel");  // the driver's codes are the runtime's
  }

 private:
  struct Loaded {
    void* module = nullptr;
    void* function = nullptr;
  };

  static std::string target(const Device& device) { return "sm_" + std::to_string(device.computeCapability); }
  std::string logOf(void* program) const {
    size_t bytes = 0;
    std::string log;
    if (nvrtc_.getLogSize(program, &bytes) != 0 || bytes == 0) return log;
    log.resize(bytes);
    nvrtc_.getLog(program, log.data());
    return log;
  }
  const char* textOf(int result) const {
    const char* text = nullptr;
    driver_.getErrorString(result, &text);
    return text == nullptr ? "unknown error" : text;
  }

  const abi::Nvrtc& nvrtc_;
  const abi::Driver& driver_;
};

}  // namespace

std::unique_ptr<FusedCompiler> nvrtcCompiler() {
  const abi::Nvrtc* nvrtc = nullptr;
  const abi::Driver* driver = nullptr;
  if (!abi::loadNvrtc(&nvrtc).ok() || !abi::loadDriver(&driver).ok()) return nullptr;
  return std::make_unique<NvrtcCompiler>(*nvrtc, *driver);
}

}  // namespace meshwork::cuda
