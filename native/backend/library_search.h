// Finds and opens CUDA's shared libraries, which machines keep in many places.
#pragma once
#include <string>
#include <vector>

#include "core/status.h"

namespace meshwork {

struct SharedLibrary {
  void* handle = nullptr;
  std::string path;  // of the file that was opened
};

// Folders to look in besides the loader's own: those of MESHWORK_CUDA_PATH (colon-separated) first, then lib64 and lib
// of CUDA_HOME, CUDA_PATH and /usr/local/cuda*, then nvidia/<package>/lib of the Python installations in the usual
// places.
std::vector<std::string> cudaLibraryFolders();

// Opens the first of `names` (such as "libnccl.so.2") that is found: in MESHWORK_CUDA_PATH, then where the loader
// looks, then in the other folders. It stays open. Fails with `unsupported`, naming `what` and the places.
Status openLibrary(const char* what, const std::vector<std::string>& names, SharedLibrary* library);

// Null where the library has no such symbol.
void* librarySymbol(const SharedLibrary& library, const char* name);

// Sets *function to the symbol; false where the library has none.
template <class Function>
bool findSymbol(const SharedLibrary& library, const char* name, Function** function) {
  *function = reinterpret_cast<Function*>(librarySymbol(library, name));
  return *function != nullptr;
}

}  // namespace meshwork
