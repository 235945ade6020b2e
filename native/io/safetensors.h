// The safetensors format: an untrusted file's header, checked completely before anything is allocated by what it says.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "io/file.h"

namespace meshwork {

// Compact, so that no header makes this much larger than itself: names and dims lie in the index's pools.
struct TensorEntry {
  uint32_t name = 0;  // byte in Safetensors::names
  uint32_t nameBytes = 0;
  uint32_t dims = 0;  // index in Safetensors::dims
  uint8_t rank = 0;
  uint8_t dtype = 0;  // index for safetensorsDtype()
  int64_t begin = 0;  // bytes in the file
  int64_t end = 0;
};

struct Safetensors {
  std::unique_ptr<File> file;
  std::vector<TensorEntry> tensors;  // in the header's order
  std::string names;
  std::vector<int64_t> dims;
  // The pairs of __metadata__, one text after the other; (end of the key, end of the value) of each.
  std::string metadata;
  std::vector<std::pair<uint32_t, uint32_t>> metadataEnds;

  std::string_view nameOf(const TensorEntry& tensor) const {
    return std::string_view(names).substr(tensor.name, tensor.nameBytes);
  }
  std::string_view metadataKey(size_t i) const {
    const uint32_t begin = i == 0 ? 0 : metadataEnds[i - 1].second;
    return std::string_view(metadata).substr(begin, metadataEnds[i].first - begin);
  }
  std::string_view metadataValue(size_t i) const {
    const auto& [key, end] = metadataEnds[i];
    return std::string_view(metadata).substr(key, end - key);
  }
};

constexpr int64_t kMaxHeaderBytes = 100 << 20;
constexpr int kMaxTensorRank = 8;
constexpr size_t kMaxTensors = 1 << 20;

// The format's name of a dtype, e.g. "BF16".
const char* safetensorsDtype(uint8_t dtype);
// Bytes of an element.
int64_t safetensorsDtypeBytes(uint8_t dtype);

// Fails with io, or with invalidFile naming the file, the tensor and what is wrong with it. `header` (may be null) is
// given the header as it stands in the file, with the eight bytes of its length.
Status openSafetensors(const std::string& path, bool followLinks, Safetensors* index, std::string* header = nullptr);

// The header's text against a file with `dataBytes` behind the header, which begins at byte `dataBegin`.
Status parseSafetensorsHeader(std::string_view text, int64_t dataBegin, int64_t dataBytes, Safetensors* index);

}  // namespace meshwork
