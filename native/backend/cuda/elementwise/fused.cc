// The kernels of fused expressions: found by key, else compiled, else left to be interpreted.
#include "backend/cuda/elementwise/fused.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "backend/cuda/elementwise/cache.h"
#include "backend/cuda/elementwise/generate.h"
#include "backend/cuda/launch.h"
#include "core/digest.h"

namespace meshwork::cuda {
namespace {

// Machine code by content, for all devices of the process; each is compiled once however many ask.
class Codes {
 public:
  // Empty where compiling failed.
  std::string get(const std::string& name, const std::string& folder, FusedCompiler& compiler, const Device& device,
                  const std::string& source) {
    Entry* entry;
    {
      const std::lock_guard<std::mutex> hold(lock_);
      entry = &entries_[name];
    }
    const std::lock_guard<std::mutex> hold(entry->lock);
    if (!entry->tried) {
      entry->tried = true;
      if (!readKernel(folder, name, &entry->code) && compiler.compile(device, source, &entry->code).ok()) {
        writeKernel(folder, name, entry->code);
      }
    }
    return entry->code;
  }

 private:
  struct Entry {
    std::mutex lock;
    bool tried = false;
    std::string code;
  };
  std::mutex lock_;
  std::map<std::string, Entry> entries_;  // never erased: entries stay where they are
};

Codes& codes() {
  static Codes all;
  return all;
}

// What a device keeps.
struct FusedState final : KernelState {
  std::unique_ptr<FusedCompiler> compiler;
  std::string folder;
  std::unordered_map<std::string, void*> kernels;  // by key; null: it could not be made

  ~FusedState() override {
    for (const auto& [key, kernel] : kernels) {
      if (kernel != nullptr) compiler->unload(kernel);
    }
  }
};

FusedState& stateOf(Device& device) {
  auto& state = device.states[kElementwiseState];
  if (state == nullptr) setFusedCompiler(device, nvrtcCompiler(), kernelCacheFolder());
  return static_cast<FusedState&>(*state);
}

void* compile(Device& device, FusedState& state, const Call& call, const ElementLayout& layout) {
  if (fusedParameters(layout).size() * sizeof(int64_t) > kFusedParameterBytes) return nullptr;
  const std::string source = fusedSource(call, layout);
  const std::string name = hexDigest(state.compiler->identity(device) + "\n" + source);
  const std::string code = codes().get(name, state.folder, *state.compiler, device, source);
  void* kernel = nullptr;
  if (code.empty() || !state.compiler->load(code, &kernel).ok()) return nullptr;
  return kernel;
}

}  // namespace

std::string kernelCacheFolder() {
  if (const char* own = std::getenv("MESHWORK_KERNEL_CACHE")) return own;
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && cache[0] == '/') return std::string(cache) + "/meshwork/kernels";
  const char* home = std::getenv("HOME");
  return home != nullptr && home[0] == '/' ? std::string(home) + "/.cache/meshwork/kernels" : std::string();
}

void setFusedCompiler(Device& device, std::unique_ptr<FusedCompiler> compiler, std::string cacheFolder) {
  auto state = std::make_unique<FusedState>();
  state->compiler = std::move(compiler);
  state->folder = std::move(cacheFolder);
  device.states[kElementwiseState] = std::move(state);
}

void prepareFused(Device& device, const Call& call, const ElementLayout& layout) {
  FusedState& state = stateOf(device);
  if (state.compiler == nullptr) return;
  const auto [at, isNew] = state.kernels.try_emplace(fusedKey(call, layout), nullptr);
  if (isNew) at->second = compile(device, state, call, layout);
}

bool launchFused(Device& device, const Call& call, const ElementLayout& layout) {
  FusedState& state = stateOf(device);
  if (state.compiler == nullptr) return false;
  const std::string key = fusedKey(call, layout);
  auto found = state.kernels.find(key);
  if (found == state.kernels.end()) {
    // Prepared for other alignments than the data turned out to have. Nothing is compiled while a graph is captured.
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    if (!device.check(cudaStreamIsCapturing(device.compute, &capturing), "cudaStreamIsCapturing")) return false;
    if (capturing != cudaStreamCaptureStatusNone) return false;
    found = state.kernels.emplace(key, compile(device, state, call, layout)).first;
  }
  if (found->second == nullptr) return false;
  const unsigned blocks = blocksFor(device, layout.count / layout.width, kFusedThreads, 32);
  state.compiler->launch(device, found->second, blocks, fusedParameters(layout));
  return true;
}

}  // namespace meshwork::cuda
