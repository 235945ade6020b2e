// Weight files for JavaScript.
#pragma once
#include <napi.h>

#include "io/safetensors.h"

namespace meshwork {

// Everything a safetensors index says, as arrays; the TypeScript type is SafetensorsIndex in lib/runtime/addon.ts.
Napi::Object safetensorsObject(Napi::Env env, const Safetensors& index);

}  // namespace meshwork
