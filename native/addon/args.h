// Reads arguments from JavaScript. Anything but what is asked for throws a TypeError or RangeError; nothing can crash.
#pragma once
#include <napi.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/status.h"

namespace meshwork {

// The name of a status code, the `code` of errors thrown to JavaScript.
const char* codeName(Code code);

Napi::Error toError(Napi::Env env, const Status& status);
inline void throwUnless(Napi::Env env, const Status& status) {
  if (!status.ok()) throw toError(env, status);
}

// A typed array's memory, valid until JavaScript runs again.
struct ViewBytes {
  std::byte* data = nullptr;
  int64_t size = 0;
};

class Args {
 public:
  explicit Args(const Napi::CallbackInfo& call) : call_(call) {}
  Napi::Env env() const { return call_.Env(); }

  // An integer in [least, most].
  int64_t integer(size_t index, const char* name, int64_t least, int64_t most) const;
  int32_t handle(size_t index, const char* name) const {
    return static_cast<int32_t>(integer(index, name, 1, INT32_MAX));
  }
  int64_t bytes(size_t index, const char* name) const { return integer(index, name, 0, int64_t{1} << 53); }
  bool boolean(size_t index, const char* name) const;
  std::string string(size_t index, const char* name) const;
  // Any typed array or DataView over an ordinary ArrayBuffer: not shared, resizable or detached. Read it last.
  ViewBytes view(size_t index, const char* name) const;
  // A JS array of Int32Arrays, copied.
  std::vector<std::vector<int32_t>> int32Arrays(size_t index, const char* name) const;
  // Copies of a Float64Array's elements, and of an array of strings of any length.
  std::vector<double> float64s(size_t index, const char* name) const;
  std::vector<std::string> strings(size_t index, const char* name) const;

 private:
  Napi::TypeError wrong(const std::string& name, const char* expected) const;
  ViewBytes viewOf(Napi::Value value, const std::string& name) const;

  const Napi::CallbackInfo& call_;
};

}  // namespace meshwork
