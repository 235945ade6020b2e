// Safetensors indexes for JavaScript. Names travel as array elements, never as object keys.
#include "addon/files.h"

namespace meshwork {

Napi::Object safetensorsObject(Napi::Env env, const Safetensors& index) {
  const size_t n = index.tensors.size();
  Napi::Array names = Napi::Array::New(env, n), dtypes = Napi::Array::New(env, n);
  Napi::Int32Array ranks = Napi::Int32Array::New(env, n);
  Napi::Float64Array begins = Napi::Float64Array::New(env, n), ends = Napi::Float64Array::New(env, n);
  Napi::Float64Array dims = Napi::Float64Array::New(env, index.dims.size());
  size_t at = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const Napi::HandleScope scope(env);
    const TensorEntry& tensor = index.tensors[i];
    names[i] = Napi::String::New(env, index.names.data() + tensor.name, tensor.nameBytes);
    dtypes[i] = Napi::String::New(env, safetensorsDtype(tensor.dtype));
    ranks[i] = tensor.rank;
    begins[i] = static_cast<double>(tensor.begin);
    ends[i] = static_cast<double>(tensor.end);
    for (size_t d = 0; d < tensor.rank; ++d) dims[at++] = static_cast<double>(index.dims[tensor.dims + d]);
  }
  const size_t pairs = index.metadataEnds.size();
  Napi::Array metadata = Napi::Array::New(env, pairs);
  for (uint32_t i = 0; i < pairs; ++i) {
    const std::string_view key = index.metadataKey(i), value = index.metadataValue(i);
    Napi::Array pair = Napi::Array::New(env, 2);
    pair[0u] = Napi::String::New(env, key.data(), key.size());
    pair[1u] = Napi::String::New(env, value.data(), value.size());
    metadata[i] = pair;
  }
  Napi::Object result = Napi::Object::New(env);
  result["bytes"] = Napi::Number::New(env, static_cast<double>(index.file->size()));
  result["names"] = names;
  result["dtypes"] = dtypes;
  result["ranks"] = ranks;
  result["dims"] = dims;
  result["begins"] = begins;
  result["ends"] = ends;
  result["metadata"] = metadata;
  return result;
}

}  // namespace meshwork
