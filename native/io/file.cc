// Regular files by pread.
#include "io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace meshwork {
namespace {

constexpr int64_t kLargestRead = int64_t{1} << 30;

Status ioError(const std::string& what, const std::string& path, int error) {
  return Status(Code::io, what + " " + path + ": " + std::generic_category().message(error));
}

}  // namespace

Status File::open(const std::string& path, bool followLinks, std::unique_ptr<File>* file) {
  if (path.find('\0') != std::string::npos) return Status(Code::io, "a path has a zero byte in it");
  // Without O_NONBLOCK opening a pipe would wait for its writer.
  const int flags = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (followLinks ? 0 : O_NOFOLLOW);
  const int descriptor = ::open(path.c_str(), flags);
  if (descriptor < 0) return ioError("cannot open", path, errno);
  struct stat info = {};
  if (fstat(descriptor, &info) != 0) {
    const int error = errno;
    ::close(descriptor);
    return ioError("cannot stat", path, error);
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(descriptor);
    return Status(Code::io, "cannot open " + path + ": not a regular file");
  }
  file->reset(new File(path, descriptor, info.st_size));
  return Status();
}

File::~File() { ::close(descriptor_); }

Status File::read(int64_t offset, std::byte* to, int64_t bytes) const {
  if (offset < 0 || bytes < 0 || offset > size_ || bytes > size_ - offset) {
    return Status(Code::invalidArgument, "bytes " + std::to_string(offset) + " to " + std::to_string(offset) + " + " +
                                             std::to_string(bytes) + " of " + path_ + ", which has " +
                                             std::to_string(size_));
  }
  while (bytes > 0) {
    const ssize_t got = pread(descriptor_, to, static_cast<size_t>(std::min(bytes, kLargestRead)), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ioError("cannot read", path_, errno);
    if (got == 0) return Status(Code::io, "cannot read " + path_ + ": it has become shorter");
    offset += got;
    to += got;
    bytes -= got;
  }
  return Status();
}

}  // namespace meshwork
