// Statistics for JavaScript; the TypeScript type is EngineStats in lib/runtime/addon.ts.
#include "addon/stats.h"

namespace meshwork {
namespace {

Napi::Object traffic(Napi::Env env, const std::string& op, int groupSize, const Counters::Traffic& traffic) {
  Napi::Object result = Napi::Object::New(env);
  result["op"] = Napi::String::New(env, op);
  result["groupSize"] = Napi::Number::New(env, groupSize);
  result["calls"] = Napi::Number::New(env, static_cast<double>(traffic.calls));
  result["bytes"] = Napi::Number::New(env, static_cast<double>(traffic.bytes));
  return result;
}

Napi::Object counters(Napi::Env env, const Counters& counters) {
  Napi::Object instructions = Napi::Object::New(env);
  for (size_t op = 1; op < counters.instructions.size(); ++op) {
    if (counters.instructions[op] == 0) continue;
    instructions[kOpInfo[op].name] = Napi::Number::New(env, static_cast<double>(counters.instructions[op]));
  }
  Napi::Array collectives = Napi::Array::New(env);
  uint32_t n = 0;
  for (const auto& [key, count] : counters.collectives) {
    collectives[n++] = traffic(env, kOpInfo[key.first].name, key.second, count);
  }
  if (counters.sends.calls > 0) collectives[n++] = traffic(env, "send", 2, counters.sends);
  Napi::Object result = Napi::Object::New(env);
  result["runs"] = Napi::Number::New(env, static_cast<double>(counters.runs));
  result["instructions"] = instructions;
  result["traffic"] = collectives;
  return result;
}

Napi::Array numbers(Napi::Env env, const std::vector<int64_t>& values) {
  Napi::Array array = Napi::Array::New(env, values.size());
  for (uint32_t i = 0; i < values.size(); ++i) array[i] = Napi::Number::New(env, static_cast<double>(values[i]));
  return array;
}

Napi::Array profile(Napi::Env env, const std::vector<ProfileEvent>& events) {
  Napi::Array array = Napi::Array::New(env, events.size());
  for (uint32_t i = 0; i < events.size(); ++i) {
    const Napi::HandleScope scope(env);
    const ProfileEvent& event = events[i];
    Napi::Object object = Napi::Object::New(env);
    object["device"] = Napi::Number::New(env, event.device);
    object["op"] = Napi::String::New(env, event.op == 0 ? event.label : kOpInfo[event.op].name);
    object["label"] = Napi::String::New(env, event.label);
    object["begin"] = Napi::Number::New(env, event.begin);
    object["end"] = Napi::Number::New(env, event.end);
    array[i] = object;
  }
  return array;
}

}  // namespace

Napi::Object statsObject(Napi::Env env, const char* backend, const EngineStats& stats) {
  Napi::Object result = Napi::Object::New(env);
  result["backend"] = Napi::String::New(env, backend);
  result["threads"] = Napi::Number::New(env, stats.threads);
  result["runs"] = Napi::Number::New(env, static_cast<double>(stats.runs));
  result["lastSeconds"] = Napi::Number::New(env, stats.lastSeconds);
  result["arenaBytes"] = numbers(env, stats.arenaBytes);
  result["bufferBytes"] = numbers(env, stats.bufferBytes);
  Napi::Array devices = Napi::Array::New(env, stats.counters.size());
  for (uint32_t d = 0; d < stats.counters.size(); ++d) devices[d] = counters(env, stats.counters[d]);
  result["devices"] = devices;
  result["profile"] = profile(env, stats.profile);
  return result;
}

}  // namespace meshwork
