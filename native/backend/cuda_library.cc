// Finds and opens meshwork_cuda.so, once: the file that MESHWORK_CUDA_LIBRARY names, or the one beside this library.
#include "backend/cuda_library.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>

namespace meshwork::cuda {
namespace {

std::string libraryPath() {
  if (const char* named = std::getenv("MESHWORK_CUDA_LIBRARY"); named != nullptr && named[0] != '\0') return named;
  Dl_info self = {};
  std::string folder = ".";
  if (dladdr(reinterpret_cast<const void*>(&loadEntry), &self) != 0 && self.dli_fname != nullptr) {
    const std::string file = self.dli_fname;
    if (const size_t slash = file.rfind('/'); slash != std::string::npos) folder = file.substr(0, slash);
  }
  return folder + "/meshwork_cuda.so";
}

Status open(const Entry** entry) {
  const auto missing = [](const std::string& why) { return Status(Code::device, "no CUDA backend: " + why); };
  const std::string path = libraryPath();
  if (access(path.c_str(), R_OK) != 0) {
    return missing(path + " was not built; MESHWORK_CUDA=1 npm run build:native builds it where nvcc is");
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return missing(dlerror());
  const auto function = reinterpret_cast<EntryFunction>(dlsym(library, kEntryName));
  if (function == nullptr) return missing(path + " has no " + kEntryName);
  const Entry* found = function();
  if (found->opTableHash != kOpTableHash) {
    return missing(path + " was built from other sources than the addon: run MESHWORK_CUDA=1 npm run build:native");
  }
  *entry = found;
  return Status();
}

}  // namespace

Status loadEntry(const Entry** entry) {
  static const Entry* found = nullptr;
  static const Status status = open(&found);
  *entry = found;
  return status;
}

}  // namespace meshwork::cuda
