// A file is the digest of the code in hexadecimal, then the code.
#include "backend/cuda/elementwise/cache.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

#include "core/digest.h"

namespace meshwork::cuda {

bool readKernel(const std::string& folder, const std::string& name, std::string* code) {
  if (folder.empty()) return false;
  std::ifstream file(folder + "/" + name, std::ios::binary);
  if (!file) return false;
  std::ostringstream text;
  text << file.rdbuf();
  const std::string all = text.str();
  if (all.size() <= kHexDigest || hexDigest(all.substr(kHexDigest)) != all.substr(0, kHexDigest)) return false;
  *code = all.substr(kHexDigest);
  return true;
}

void writeKernel(const std::string& folder, const std::string& name, const std::string& code) {
  if (folder.empty()) return;
  static std::atomic<unsigned> number = 0;
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  const std::string path = folder + "/" + name;
  const std::string partial = path + "." + std::to_string(getpid()) + "." + std::to_string(number++);
  {
    std::ofstream file(partial, std::ios::binary | std::ios::trunc);
    file << hexDigest(code) << code;
    file.close();
    if (!file) {
      std::filesystem::remove(partial, error);
      return;
    }
  }
  std::filesystem::rename(partial, path, error);
  if (error) std::filesystem::remove(partial, error);
}

}  // namespace meshwork::cuda
