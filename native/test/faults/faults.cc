// Preloaded into a process under test (LD_PRELOAD): makes the n-th file operation under a path fail, be cut short, or
// be the last thing the process does. Instructions are read from the environment at each operation, so that a process
// can change its own:
//   MESHWORK_FAULT_UNDER  text that the paths of counted operations contain
//   MESHWORK_FAULT        "N:ACTION": operation N, counted from 1 since this text changed; ACTION is kill, short (a
//   write
//                         of half the bytes), or an errno's number, with a + behind it from operation N on
//   MESHWORK_FAULT_LOG    file that gets the name of every counted operation, a line each
//   MESHWORK_READ_LOG     file that gets a line for every read of a file under the path: byte, bytes read, its path
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

namespace {

constexpr int kDescriptors = 65536;
std::atomic<bool> watched[kDescriptors];
std::mutex mutex;
std::string current;
long count = 0;

template <class Function>
Function real(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

bool isUnder(const char* path) {
  const char* under = std::getenv("MESHWORK_FAULT_UNDER");
  return under != nullptr && path != nullptr && std::strstr(path, under) != nullptr;
}
bool isWatched(int descriptor) { return descriptor >= 0 && descriptor < kDescriptors && watched[descriptor].load(); }

void log(const char* variable, const std::string& text) {
  const char* file = std::getenv(variable);
  if (file == nullptr) return;
  const int descriptor = real<int (*)(const char*, int, ...)>("open")(file, O_WRONLY | O_CREAT | O_APPEND, 0666);
  const std::string line = text + "\n";
  (void)!real<ssize_t (*)(int, const void*, size_t)>("write")(descriptor, line.data(), line.size());
  real<int (*)(int)>("close")(descriptor);
}

// A read that is over; gives what it gave, errno as it was.
ssize_t wasRead(int descriptor, off_t at, ssize_t bytes) {
  const int error = errno;
  if (isWatched(descriptor) && bytes > 0) {
    std::string path(4096, '\0');
    const ssize_t length =
        ::readlink(("/proc/self/fd/" + std::to_string(descriptor)).c_str(), path.data(), path.size());
    path.resize(length < 0 ? 0 : static_cast<size_t>(length));
    log("MESHWORK_READ_LOG", std::to_string(at) + " " + std::to_string(bytes) + " " + path);
  }
  errno = error;
  return bytes;
}

enum class Fault { none, error, cut };

// Counts an operation, and says what is to become of it; for an error errno is set.
Fault next(const char* name) {
  const std::lock_guard lock(mutex);
  const char* text = std::getenv("MESHWORK_FAULT");
  if (text == nullptr) return Fault::none;
  if (current != text) {
    current = text;
    count = 0;
  }
  ++count;
  log("MESHWORK_FAULT_LOG", name);
  const long at = std::strtol(text, nullptr, 10);
  const char* action = std::strchr(text, ':');
  if (action == nullptr) return Fault::none;
  ++action;
  const bool on = text[std::strlen(text) - 1] == '+';
  if (count != at && !(on && count > at)) return Fault::none;
  if (std::strncmp(action, "kill", 4) == 0) ::kill(::getpid(), SIGKILL), ::pause();
  if (std::strncmp(action, "short", 5) == 0) return Fault::cut;
  errno = static_cast<int>(std::strtol(action, nullptr, 10));
  return Fault::error;
}

int opened(const char* path, int descriptor) {
  if (descriptor >= 0 && descriptor < kDescriptors) watched[descriptor].store(isUnder(path));
  return descriptor;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int open(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(list, mode_t) : 0;
  va_end(list);
  if (isUnder(path) && next("open") == Fault::error) return -1;
  return opened(path, real<int (*)(const char*, int, ...)>("open")(path, flags, mode));
}

__attribute__((visibility("default"))) int open64(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(list, mode_t) : 0;
  va_end(list);
  if (isUnder(path) && next("open") == Fault::error) return -1;
  return opened(path, real<int (*)(const char*, int, ...)>("open64")(path, flags, mode));
}

// What open() becomes where it is compiled with checks.
__attribute__((visibility("default"))) int __open_2(const char* path, int flags) { return open(path, flags); }
__attribute__((visibility("default"))) int __open64_2(const char* path, int flags) { return open64(path, flags); }

__attribute__((visibility("default"))) ssize_t write(int descriptor, const void* data, size_t bytes) {
  if (isWatched(descriptor)) {
    const Fault fault = next("write");
    if (fault == Fault::error) return -1;
    if (fault == Fault::cut) bytes = std::max<size_t>(1, bytes / 2);
  }
  return real<ssize_t (*)(int, const void*, size_t)>("write")(descriptor, data, bytes);
}

__attribute__((visibility("default"))) ssize_t read(int descriptor, void* to, size_t bytes) {
  const off_t at = isWatched(descriptor) ? ::lseek(descriptor, 0, SEEK_CUR) : 0;
  return wasRead(descriptor, at, real<ssize_t (*)(int, void*, size_t)>("read")(descriptor, to, bytes));
}

__attribute__((visibility("default"))) ssize_t pread(int descriptor, void* to, size_t bytes, off_t at) {
  return wasRead(descriptor, at, real<ssize_t (*)(int, void*, size_t, off_t)>("pread")(descriptor, to, bytes, at));
}

__attribute__((visibility("default"))) ssize_t pread64(int descriptor, void* to, size_t bytes, off64_t at) {
  return wasRead(descriptor, at, real<ssize_t (*)(int, void*, size_t, off64_t)>("pread64")(descriptor, to, bytes, at));
}

__attribute__((visibility("default"))) int fsync(int descriptor) {
  if (isWatched(descriptor) && next("fsync") == Fault::error) return -1;
  return real<int (*)(int)>("fsync")(descriptor);
}

__attribute__((visibility("default"))) int close(int descriptor) {
  const bool counted = isWatched(descriptor);
  const bool fails = counted && next("close") == Fault::error;
  if (counted) watched[descriptor].store(false);
  const int error = errno;
  const int result = real<int (*)(int)>("close")(descriptor);
  if (!fails) return result;
  errno = error;
  return -1;
}

__attribute__((visibility("default"))) int rename(const char* from, const char* to) {
  if (isUnder(from) && next("rename") == Fault::error) return -1;
  return real<int (*)(const char*, const char*)>("rename")(from, to);
}

__attribute__((visibility("default"))) int mkdir(const char* path, mode_t mode) {
  if (isUnder(path) && next("mkdir") == Fault::error) return -1;
  return real<int (*)(const char*, mode_t)>("mkdir")(path, mode);
}

__attribute__((visibility("default"))) int unlink(const char* path) {
  if (isUnder(path) && next("unlink") == Fault::error) return -1;
  return real<int (*)(const char*)>("unlink")(path);
}

__attribute__((visibility("default"))) int rmdir(const char* path) {
  if (isUnder(path) && next("rmdir") == Fault::error) return -1;
  return real<int (*)(const char*)>("rmdir")(path);
}

}  // extern "C"
