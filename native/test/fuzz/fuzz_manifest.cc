// The reader of manifests on any text, with and without regard to the digest; what it accepts is walked through.
#include <cstdlib>

#include "io/manifest.h"
#include "test/fuzz/target.h"

namespace meshwork {
namespace {

// Bounds of everything that users of a manifest index by it.
void walk(const Manifest& manifest) {
  for (const ManifestTensor& tensor : manifest.tensors) {
    if (manifest.nameOf(tensor).empty() || manifestRole(tensor.role) == nullptr) std::abort();
    for (uint32_t c = 0; c < tensor.nCells; ++c) {
      if (manifest.cells.at(tensor.cells + c).file >= manifest.files.size()) std::abort();
      const Manifest::Block block = manifest.block(tensor, c);
      for (int d = 0; d < tensor.rank; ++d) {
        const int64_t size = manifest.dims.at(tensor.dims + static_cast<size_t>(d));
        if (block.start[d] < 0 || block.size[d] < 0 || block.start[d] + block.size[d] > size) std::abort();
      }
    }
  }
}

}  // namespace

size_t fuzzOne(const std::string& input) {
  for (const bool digestMatters : {false, true}) {
    Manifest manifest;
    if (parseManifest(input, digestMatters, &manifest).ok()) walk(manifest);
  }
  return input.size();
}

const std::vector<std::string>& fuzzWords() {
  static const std::vector<std::string> words = {
      "\"format\":\"meshwork checkpoint\",",
      "\"version\":1,",
      "\"step\":",
      "\"record\":{",
      "\"files\":[",
      "{\"name\":\"device-0000.safetensors\",\"bytes\":10,\"sha256\":\"" + std::string(64, 'a') + "\"}",
      "\"tensors\":[",
      "{\"name\":\"w\",\"role\":\"parameter\",\"dtype\":\"F32\",\"shape\":[4],\"stored\":[2,2],\"cuts\":[[2]],"
      "\"files\":[0,1],\"crc32c\":[\"00000000\",\"ffffffff\"]}",
      "\"cuts\":[[]],",
      "\"state\"",
      "\"BF16\"",
      "\"digest\":\"" + std::string(64, '0') + "\"\n}\n",
      "\\u0041",
      "\\ud83d\\ude00",
      "__metadata__",
      "null",
      "true",
      "-1.5e3",
      "[[[[[[[[[[",
      "{\"a\":"};
  return words;
}

}  // namespace meshwork
