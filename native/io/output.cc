// Files by write and fsync; every short write and interrupted call is taken up again, every error named.
#include "io/output.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <system_error>

namespace meshwork {
namespace {

constexpr size_t kLargestWrite = size_t{1} << 30;

Status ioError(const char* what, const std::string& path, int error = errno) {
  std::string reason = std::generic_category().message(error);
  return Status(Code::io, std::string("cannot ") + what + " " + path + ": " + reason, Subject{path, ""});
}

Status makeFolder(const std::string& path) {
  return ::mkdir(path.c_str(), 0777) == 0 ? Status() : ioError("make the folder", path);
}

Status writeFile(const std::string& path, const std::string& content) {
  OutputFile file;
  Status status = file.create(path);
  if (status.ok()) status = file.write(reinterpret_cast<const std::byte*>(content.data()), content.size());
  return status.ok() ? file.finish() : status;
}

Status syncFolder(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return ioError("open the folder", path);
  Status status = ::fsync(descriptor) == 0 ? Status() : ioError("sync the folder", path);
  if (::close(descriptor) != 0 && status.ok()) status = ioError("close the folder", path);
  return status;
}

Status renamePath(const std::string& from, const std::string& to) {
  return ::rename(from.c_str(), to.c_str()) == 0 ? Status() : ioError("rename", from + " to " + to);
}

// A file, or a folder with the files in it; checkpoints have no folders in them. No link is followed.
Status removePath(const std::string& path) {
  if (::unlink(path.c_str()) == 0 || errno == ENOENT) return Status();
  if (errno != EISDIR && errno != EPERM) return ioError("remove", path);
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(path.c_str()), ::closedir);
  if (folder == nullptr) return ioError("open the folder", path);
  while (const dirent* entry = ::readdir(folder.get())) {
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    const std::string inner = path + "/" + name;
    if (::unlink(inner.c_str()) != 0 && errno != ENOENT) return ioError("remove", inner);
  }
  return ::rmdir(path.c_str()) == 0 || errno == ENOENT ? Status() : ioError("remove the folder", path);
}

Status runStep(const FolderStep& step) {
  switch (step.kind) {
    case FolderStep::Kind::makeFolder:
      return makeFolder(step.path);
    case FolderStep::Kind::writeFile:
      return writeFile(step.path, step.content);
    case FolderStep::Kind::syncFolder:
      return syncFolder(step.path);
    case FolderStep::Kind::rename:
      return renamePath(step.path, step.to);
    case FolderStep::Kind::remove:
      return removePath(step.path);
  }
  return Status(Code::internal, "an unknown step");
}

}  // namespace

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Status OutputFile::create(const std::string& path) {
  path_ = path;
  descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
  return descriptor_ >= 0 ? Status() : ioError("create", path_);
}

Status OutputFile::write(const std::byte* data, size_t bytes) {
  [[maybe_unused]] const int64_t begin = written_;
  while (bytes > 0) {
    const ssize_t done = ::write(descriptor_, data, std::min(bytes, kLargestWrite));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return ioError("write", path_);
    if (done == 0) return ioError("write", path_, ENOSPC);
    data += done;
    bytes -= static_cast<size_t>(done);
    written_ += done;
  }
#if defined(__linux__)
  // The disk begins at once, so that the sync at the end finds little left. Only a hint: errors show there.
  if (written_ > begin) (void)::sync_file_range(descriptor_, begin, written_ - begin, SYNC_FILE_RANGE_WRITE);
#endif
  return Status();
}

Status OutputFile::finish() {
  Status status = ::fsync(descriptor_) == 0 ? Status() : ioError("sync", path_);
  // After an error of close() the descriptor is gone all the same.
  if (::close(descriptor_) != 0 && status.ok()) status = ioError("close", path_);
  descriptor_ = -1;
  return status;
}

Status runFolderSteps(std::span<const FolderStep> steps) {
  for (const FolderStep& step : steps) {
    Status status = runStep(step);
    if (!status.ok()) return status;
  }
  return Status();
}

}  // namespace meshwork
