// The places where CUDA's libraries lie, in order, and dlopen.
#include "backend/library_search.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace meshwork {
namespace {

namespace fs = std::filesystem;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(':', begin), list.size());
    if (end > begin) parts.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// Folders in `folder` whose names begin with `prefix`, sorted, the last (newest) first.
std::vector<std::string> children(const std::string& folder, const std::string& prefix) {
  std::vector<std::string> found;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.rfind(prefix, 0) == 0) found.push_back(entry->path().string());
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

void addToolkits(std::vector<std::string>& folders) {
  std::vector<std::string> roots = {variable("CUDA_HOME"), variable("CUDA_PATH")};
  for (const std::string& root : children("/usr/local", "cuda")) roots.push_back(root);
  for (const std::string& root : roots) {
    if (root.empty()) continue;
    folders.push_back(root + "/lib64");
    folders.push_back(root + "/lib");
  }
}

void addWheels(std::vector<std::string>& folders) {
  const std::string home = variable("HOME");
  for (const std::string& root : {variable("VIRTUAL_ENV"), variable("CONDA_PREFIX"), std::string("/usr"),
                                  std::string("/usr/local"), std::string("/opt/conda"), home + "/.local"}) {
    if (root.empty() || root == "/.local") continue;
    for (const std::string& python : children(root + "/lib", "python3")) {
      for (const char* site : {"/site-packages/nvidia", "/dist-packages/nvidia"}) {
        for (const std::string& package : children(python + site, "")) folders.push_back(package + "/lib");
      }
    }
  }
}

bool openIn(const std::vector<std::string>& folders, const std::vector<std::string>& names, SharedLibrary* library,
            std::string* problem) {
  for (const std::string& folder : folders) {
    for (const std::string& name : names) {
      const std::string path = folder + "/" + name;
      std::error_code error;
      if (!fs::exists(path, error)) continue;
      library->handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
      library->path = path;
      if (library->handle != nullptr) return true;
      *problem = dlerror();
    }
  }
  return false;
}

// The file behind a handle that the loader found by itself.
std::string pathOf(void* handle, const std::string& name) {
  char folder[4096] = {};
  if (dlinfo(handle, RTLD_DI_ORIGIN, folder) != 0) return name;
  return std::string(folder) + "/" + name;
}

bool openByLoader(const std::vector<std::string>& names, SharedLibrary* library) {
  for (const std::string& name : names) {
    library->handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library->handle == nullptr) continue;
    library->path = pathOf(library->handle, name);
    return true;
  }
  return false;
}

}  // namespace

std::vector<std::string> cudaLibraryFolders() {
  std::vector<std::string> folders = split(variable("MESHWORK_CUDA_PATH"));
  addToolkits(folders);
  addWheels(folders);
  return folders;
}

Status openLibrary(const char* what, const std::vector<std::string>& names, SharedLibrary* library) {
  std::string problem;
  if (openIn(split(variable("MESHWORK_CUDA_PATH")), names, library, &problem)) return Status();
  if (openByLoader(names, library)) return Status();
  if (openIn(cudaLibraryFolders(), names, library, &problem)) return Status();
  if (!problem.empty()) return Status(Code::unsupported, std::string(what) + " does not open: " + problem);
  return Status(Code::unsupported, std::string(what) + " was not found (" + names.front() +
                                       "): install it, or name its folder in MESHWORK_CUDA_PATH");
}

void* librarySymbol(const SharedLibrary& library, const char* name) { return dlsym(library.handle, name); }

}  // namespace meshwork
