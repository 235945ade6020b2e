// Arguments from JavaScript: every type, range and buffer state is checked.
#include "addon/args.h"

#include <cmath>
#include <cstring>

namespace meshwork {
namespace {

constexpr uint32_t kMaxArrays = 4096;  // one per device, at most 1024
constexpr size_t kMaxString = 1 << 16;
constexpr uint32_t kMaxStrings = 1 << 16;

void setCode(Napi::Error& error, Code code) { error.Set("code", Napi::String::New(error.Env(), codeName(code))); }

}  // namespace

const char* codeName(Code code) {
  constexpr const char* names[] = {"ok",          "invalidProgram", "invalidArgument", "outOfMemory",
                                   "unsupported", "aborted",        "timeout",         "io",
                                   "invalidFile", "internal",       "device"};
  const auto index = static_cast<size_t>(code);
  return index < std::size(names) ? names[index] : "internal";
}

Napi::Error toError(Napi::Env env, const Status& status) {
  Napi::Error error = Napi::Error::New(env, status.message());
  setCode(error, status.code());
  if (const Subject* subject = status.subject()) {
    error.Set("file", Napi::String::New(env, subject->file));
    error.Set("tensor", Napi::String::New(env, subject->tensor));
  }
  return error;
}

Napi::TypeError Args::wrong(const std::string& name, const char* expected) const {
  Napi::TypeError error = Napi::TypeError::New(env(), name + " is not " + expected);
  setCode(error, Code::invalidArgument);
  return error;
}

int64_t Args::integer(size_t index, const char* name, int64_t least, int64_t most) const {
  const Napi::Value value = call_[index];
  if (!value.IsNumber()) throw wrong(name, "a number");
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= static_cast<double>(least) && number <= static_cast<double>(most)) || number != std::floor(number)) {
    Napi::RangeError error =
        Napi::RangeError::New(env(), std::string(name) + " is not an integer in [" + std::to_string(least) + ", " +
                                         std::to_string(most) + "]");
    setCode(error, Code::invalidArgument);
    throw error;
  }
  return static_cast<int64_t>(number);
}

bool Args::boolean(size_t index, const char* name) const {
  const Napi::Value value = call_[index];
  if (!value.IsBoolean()) throw wrong(name, "a boolean");
  return value.As<Napi::Boolean>().Value();
}

std::string Args::string(size_t index, const char* name) const {
  const Napi::Value value = call_[index];
  if (!value.IsString()) throw wrong(name, "a string");
  size_t length = 0;
  if (napi_get_value_string_utf8(env(), value, nullptr, 0, &length) != napi_ok || length > kMaxString) {
    throw wrong(name, "a string of at most 64 KiB");
  }
  return value.As<Napi::String>().Utf8Value();
}

ViewBytes Args::viewOf(Napi::Value value, const std::string& name) const {
  void* data = nullptr;
  size_t length = 0;
  napi_value buffer = nullptr;
  if (value.IsTypedArray()) {
    napi_typedarray_type type = napi_uint8_array;
    if (napi_get_typedarray_info(env(), value, &type, &length, &data, &buffer, nullptr) != napi_ok) {
      throw wrong(name, "a usable typed array");
    }
    length *= Napi::TypedArray(env(), value).ElementSize();
  } else if (!value.IsDataView() || napi_get_dataview_info(env(), value, &length, &data, &buffer, nullptr) != napi_ok) {
    throw wrong(name, "a typed array or DataView");
  }
  bool ordinary = false, detached = true;
  if (napi_is_arraybuffer(env(), buffer, &ordinary) != napi_ok || !ordinary) {
    throw wrong(name, "over an ArrayBuffer that is not shared");
  }
  if (napi_is_detached_arraybuffer(env(), buffer, &detached) != napi_ok || detached) {
    throw wrong(name, "over an ArrayBuffer that is still attached");
  }
  return ViewBytes{static_cast<std::byte*>(data), static_cast<int64_t>(length)};
}

namespace {

// Runs JavaScript (a getter), so that it comes before any pointer is taken.
bool isResizable(Napi::Value view) {
  if (!view.IsObject()) return false;
  const Napi::Value buffer = view.As<Napi::Object>().Get("buffer");
  return buffer.IsObject() && buffer.As<Napi::Object>().Get("resizable").ToBoolean().Value();
}

}  // namespace

ViewBytes Args::view(size_t index, const char* name) const {
  const Napi::Value value = call_[index];
  if (!value.IsTypedArray() && !value.IsDataView()) throw wrong(name, "a typed array or DataView");
  if (isResizable(value)) throw wrong(name, "over an ArrayBuffer of fixed length");
  return viewOf(value, name);
}

std::vector<std::vector<int32_t>> Args::int32Arrays(size_t index, const char* name) const {
  const Napi::Value value = call_[index];
  if (!value.IsArray()) throw wrong(name, "an array of Int32Arrays");
  const Napi::Array array = value.As<Napi::Array>();
  const uint32_t length = array.Length();
  if (length > kMaxArrays) throw wrong(name, "an array of at most 4096 Int32Arrays");
  std::vector<std::vector<int32_t>> copies;
  for (uint32_t i = 0; i < length; ++i) {
    const Napi::Value element = array[i];
    const std::string which = std::string(name) + "[" + std::to_string(i) + "]";
    if (!element.IsTypedArray() || Napi::TypedArray(env(), element).TypedArrayType() != napi_int32_array) {
      throw wrong(which, "an Int32Array");
    }
    if (isResizable(element)) throw wrong(which, "over an ArrayBuffer of fixed length");
    const ViewBytes bytes = viewOf(element, which);
    std::vector<int32_t>& copy = copies.emplace_back(static_cast<size_t>(bytes.size) / sizeof(int32_t));
    if (!copy.empty()) std::memcpy(copy.data(), bytes.data, static_cast<size_t>(bytes.size));
  }
  return copies;
}

std::vector<double> Args::float64s(size_t index, const char* name) const {
  const Napi::Value value = call_[index];
  if (!value.IsTypedArray() || Napi::TypedArray(env(), value).TypedArrayType() != napi_float64_array) {
    throw wrong(name, "a Float64Array");
  }
  const ViewBytes bytes = view(index, name);
  std::vector<double> copy(static_cast<size_t>(bytes.size) / sizeof(double));
  if (!copy.empty()) std::memcpy(copy.data(), bytes.data, static_cast<size_t>(bytes.size));
  return copy;
}

std::vector<std::string> Args::strings(size_t index, const char* name) const {
  const Napi::Value value = call_[index];
  if (!value.IsArray()) throw wrong(name, "an array of strings");
  const Napi::Array array = value.As<Napi::Array>();
  const uint32_t length = array.Length();
  if (length > kMaxStrings) throw wrong(name, "an array of at most 65536 strings");
  std::vector<std::string> copies;
  for (uint32_t i = 0; i < length; ++i) {
    const Napi::Value element = array[i];
    if (!element.IsString()) throw wrong(std::string(name) + "[" + std::to_string(i) + "]", "a string");
    copies.push_back(element.As<Napi::String>().Utf8Value());
  }
  return copies;
}

}  // namespace meshwork
