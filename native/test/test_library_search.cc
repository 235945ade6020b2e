// Where CUDA's libraries are looked for, and what is said when there is none.
#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "backend/library_search.h"
#include "test/harness.h"

namespace meshwork {
namespace {

TEST(library_search_folders) {
  const std::filesystem::path root = std::filesystem::temp_directory_path() / "meshwork-library-search";
  const std::filesystem::path wheel = root / "lib/python3.11/site-packages/nvidia/nccl/lib";
  std::filesystem::create_directories(wheel);
  const char* before = std::getenv("MESHWORK_CUDA_PATH");
  const std::string kept = before == nullptr ? "" : before;
  setenv("MESHWORK_CUDA_PATH", "/first:/second", 1);
  setenv("VIRTUAL_ENV", root.c_str(), 1);
  setenv("CUDA_HOME", "/toolkit", 1);
  const std::vector<std::string> folders = cudaLibraryFolders();
  const auto has = [&](const std::string& folder) {
    return std::find(folders.begin(), folders.end(), folder) != folders.end();
  };
  CHECK(folders.size() > 2 && folders[0] == "/first" && folders[1] == "/second");
  CHECK(has("/toolkit/lib64") && has(wheel.string()));
  unsetenv("VIRTUAL_ENV");
  unsetenv("CUDA_HOME");
  setenv("MESHWORK_CUDA_PATH", kept.c_str(), 1);
  std::filesystem::remove_all(root);
}

TEST(library_search_says_what_is_missing) {
  SharedLibrary library;
  const Status status = openLibrary("Nothing", {"libmeshwork-has-no-such.so.7"}, &library);
  CHECK(status.code() == Code::unsupported);
  CHECK(status.message().find("Nothing was not found (libmeshwork-has-no-such.so.7)") != std::string::npos);
  CHECK(status.message().find("MESHWORK_CUDA_PATH") != std::string::npos);
}

}  // namespace
}  // namespace meshwork
