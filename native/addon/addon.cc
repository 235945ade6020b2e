// The Node-API addon: its entry point and the functions it exports.
#include <napi.h>

#include "core/opcodes.h"
#include "runtime/machine.h"

namespace meshwork {
namespace {

Napi::Value info(const Napi::CallbackInfo& call) {
  Napi::Env env = call.Env();
  Napi::Object result = Napi::Object::New(env);
  result["opTableHash"] = Napi::Number::New(env, kOpTableHash);
  result["isa"] = Napi::String::New(env, machineIsa());
  result["cores"] = Napi::Number::New(env, machineCores());
  return result;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports["info"] = Napi::Function::New(env, info, "info");
  return exports;
}

NODE_API_MODULE(meshwork, init)

}  // namespace
}  // namespace meshwork
