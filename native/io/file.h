// A regular file open for reading, by position. Files are never mapped: truncation under a mapping kills the process.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/status.h"

namespace meshwork {

class File {
 public:
  // Refuses everything but regular files; with `followLinks` false a symbolic link too. Fails with io.
  static Status open(const std::string& path, bool followLinks, std::unique_ptr<File>* file);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  // when it was opened

  // Exactly `bytes` bytes from `offset`; fails with invalidArgument beyond size(), with io when the file has shrunk.
  Status read(int64_t offset, std::byte* to, int64_t bytes) const;

 private:
  File(std::string path, int descriptor, int64_t size) : path_(std::move(path)), descriptor_(descriptor), size_(size) {}
  const std::string path_;
  const int descriptor_;
  const int64_t size_;
};

}  // namespace meshwork
