// Writing: files that last once they are closed, and the folder operations a checkpoint is put in place with.
#pragma once
#include <atomic>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "core/status.h"

namespace meshwork {

// Set from another thread to end work early; it then fails with `aborted`.
using Stop = std::atomic<bool>;

// A file being written. It must not exist before; on failure it is left as it is.
class OutputFile {
 public:
  OutputFile() = default;
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  Status create(const std::string& path);
  Status write(const std::byte* data, size_t bytes);
  // Waits until the disk has everything, and closes.
  Status finish();

 private:
  std::string path_;
  int descriptor_ = -1;
  int64_t written_ = 0;
};

struct FolderStep {
  enum class Kind { makeFolder, writeFile, syncFolder, rename, remove };
  Kind kind = Kind::makeFolder;
  std::string path;
  std::string to;       // rename
  std::string content;  // writeFile
};

// Does the steps in order, up to the first that fails. What does not exist counts as removed.
Status runFolderSteps(std::span<const FolderStep> steps);

}  // namespace meshwork
