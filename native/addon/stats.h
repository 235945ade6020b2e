// An engine's statistics as a JavaScript object.
#pragma once
#include <napi.h>

#include "runtime/engine.h"

namespace meshwork {

Napi::Object statsObject(Napi::Env env, const char* backend, const EngineStats& stats);

}  // namespace meshwork
