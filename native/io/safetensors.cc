// Safetensors headers. The format: u64 header length, JSON header, data; little-endian.
#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "io/json.h"

namespace meshwork {
namespace {

struct DtypeName {
  const char* name;
  int64_t bytes;
};
constexpr std::array<DtypeName, 15> kDtypes = {{{"F32", 4},
                                                {"F64", 8},
                                                {"BF16", 2},
                                                {"F16", 2},
                                                {"I32", 4},
                                                {"BOOL", 1},
                                                {"I64", 8},
                                                {"U8", 1},
                                                {"I8", 1},
                                                {"I16", 2},
                                                {"U16", 2},
                                                {"U32", 4},
                                                {"U64", 8},
                                                {"F8_E4M3", 1},
                                                {"F8_E5M2", 1}}};
constexpr uint64_t kLargest = uint64_t{1} << 53;  // what a JavaScript number holds exactly
constexpr size_t kShownName = 200;

class HeaderParser {
 public:
  HeaderParser(std::string_view text, int64_t dataBegin, int64_t dataBytes, Safetensors& index)
      : json_(text), headerBytes_(text.size()), dataBegin_(dataBegin), dataBytes_(dataBytes), index_(index) {}

  Status parse() {
    json_.expect('{');
    if (!json_.accept('}')) {
      do {
        entry();
      } while (!json_.failed() && json_.accept(','));
      json_.expect('}');
    }
    json_.end();
    if (json_.failed()) return Status(Code::invalidFile, "header: " + json_.error());
    Status status = distinctNames();
    return status.ok() ? contiguous() : status;
  }

 private:
  void entry() {
    const size_t begin = index_.names.size();
    json_.string(index_.names);
    json_.expect(':');
    if (json_.failed()) return;
    if (std::string_view(index_.names).substr(begin) == "__metadata__") {
      index_.names.resize(begin);
      return metadata();
    }
    if (index_.tensors.size() == kMaxTensors) return json_.fail("more than a million tensors");
    TensorEntry tensor;
    tensor.name = static_cast<uint32_t>(begin);
    tensor.nameBytes = static_cast<uint32_t>(index_.names.size() - begin);
    if (tensor.nameBytes == 0) return json_.fail("a tensor without a name");
    fields(tensor);
    if (!json_.failed()) index_.tensors.push_back(tensor);
  }

  void metadata() {
    if (seenMetadata_) return json_.fail("a second __metadata__");
    seenMetadata_ = true;
    json_.expect('{');
    if (json_.accept('}')) return;
    // A pair takes seven bytes of the header at least.
    index_.metadataEnds.reserve(headerBytes_ / 7);
    do {
      json_.string(index_.metadata);
      const auto key = static_cast<uint32_t>(index_.metadata.size());
      json_.expect(':');
      json_.string(index_.metadata);
      if (!json_.failed()) index_.metadataEnds.emplace_back(key, static_cast<uint32_t>(index_.metadata.size()));
    } while (!json_.failed() && json_.accept(','));
    json_.expect('}');
  }

  std::string quoted(const TensorEntry& tensor) const {
    const std::string_view name = index_.nameOf(tensor);
    return "tensor '" + std::string(name.substr(0, kShownName)) + (name.size() > kShownName ? "...'" : "'");
  }

  void fields(TensorEntry& tensor) {
    bool dtype = false, shape = false, offsets = false;
    uint64_t begin = 0, end = 0;
    std::string key;
    json_.expect('{');
    do {
      key.clear();
      json_.string(key);
      json_.expect(':');
      if (json_.failed()) return;
      bool* seen = key == "dtype" ? &dtype : key == "shape" ? &shape : key == "data_offsets" ? &offsets : nullptr;
      if (seen == nullptr) return json_.fail(quoted(tensor) + ": unknown field");
      if (*seen) return json_.fail(quoted(tensor) + ": " + key + " twice");
      *seen = true;
      if (seen == &dtype) dtypeField(tensor);
      if (seen == &shape) shapeField(tensor);
      if (seen == &offsets) {
        json_.expect('[');
        begin = json_.unsignedInteger();
        json_.expect(',');
        end = json_.unsignedInteger();
        json_.expect(']');
      }
    } while (!json_.failed() && json_.accept(','));
    json_.expect('}');
    if (json_.failed()) return;
    if (!dtype || !shape || !offsets) return json_.fail(quoted(tensor) + ": dtype, shape or data_offsets is missing");
    range(tensor, begin, end);
  }

  void dtypeField(TensorEntry& tensor) {
    std::string name;
    json_.string(name);
    if (json_.failed()) return;
    const auto found = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeName& d) { return name == d.name; });
    if (found == kDtypes.end()) return json_.fail(quoted(tensor) + ": unknown dtype '" + name.substr(0, 32) + "'");
    tensor.dtype = static_cast<uint8_t>(found - kDtypes.begin());
  }

  void shapeField(TensorEntry& tensor) {
    tensor.dims = static_cast<uint32_t>(index_.dims.size());
    json_.expect('[');
    if (json_.accept(']')) return;
    do {
      const uint64_t dim = json_.unsignedInteger();
      if (json_.failed()) return;
      if (dim > kLargest) return json_.fail(quoted(tensor) + ": a dim beyond 2^53");
      if (tensor.rank == kMaxTensorRank) return json_.fail(quoted(tensor) + ": more than 8 dims");
      index_.dims.push_back(static_cast<int64_t>(dim));
      ++tensor.rank;
    } while (json_.accept(','));
    json_.expect(']');
  }

  void range(TensorEntry& tensor, uint64_t begin, uint64_t end) {
    int64_t bytes = kDtypes[tensor.dtype].bytes;
    for (int d = 0; d < tensor.rank; ++d) {
      if (__builtin_mul_overflow(bytes, index_.dims[tensor.dims + static_cast<size_t>(d)], &bytes)) {
        return json_.fail(quoted(tensor) + ": its size overflows");
      }
    }
    const auto limit = static_cast<uint64_t>(dataBytes_);
    if (begin > end || end > limit) {
      return json_.fail(quoted(tensor) + ": data_offsets " + std::to_string(begin) + " to " + std::to_string(end) +
                        " of " + std::to_string(limit) + " bytes of data");
    }
    if (end - begin != static_cast<uint64_t>(bytes)) {
      return json_.fail(quoted(tensor) + ": " + std::to_string(end - begin) + " bytes of data for a shape of " +
                        std::to_string(bytes));
    }
    tensor.begin = dataBegin_ + static_cast<int64_t>(begin);
    tensor.end = dataBegin_ + static_cast<int64_t>(end);
  }

  Status distinctNames() const {
    std::vector<uint32_t> order(index_.tensors.size());
    std::iota(order.begin(), order.end(), 0u);
    const auto name = [&](uint32_t i) { return index_.nameOf(index_.tensors[i]); };
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return name(a) < name(b); });
    const auto twice =
        std::adjacent_find(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return name(a) == name(b); });
    if (twice != order.end()) return Status(Code::invalidFile, "header: " + quoted(index_.tensors[*twice]) + " twice");
    std::vector<uint32_t> keys(index_.metadataEnds.size());
    std::iota(keys.begin(), keys.end(), 0u);
    const auto key = [&](uint32_t i) { return index_.metadataKey(i); };
    std::sort(keys.begin(), keys.end(), [&](uint32_t a, uint32_t b) { return key(a) < key(b); });
    const auto same = [&](uint32_t a, uint32_t b) { return key(a) == key(b); };
    if (std::adjacent_find(keys.begin(), keys.end(), same) != keys.end()) {
      return Status(Code::invalidFile, "header: a key of __metadata__ twice");
    }
    return Status();
  }

  // The tensors cover the data with no hole, no overlap and no tail.
  Status contiguous() const {
    std::vector<uint32_t> order(index_.tensors.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      const TensorEntry &x = index_.tensors[a], &y = index_.tensors[b];
      return x.begin != y.begin ? x.begin < y.begin : x.end < y.end;
    });
    int64_t at = dataBegin_;
    for (const uint32_t i : order) {
      const TensorEntry& tensor = index_.tensors[i];
      if (tensor.begin != at) {
        return Status(Code::invalidFile, "header: " + quoted(tensor) + " begins at byte " +
                                             std::to_string(tensor.begin - dataBegin_) + " of the data, " +
                                             (tensor.begin < at ? "inside another" : "behind a hole that begins at ") +
                                             (tensor.begin < at ? "" : std::to_string(at - dataBegin_)));
      }
      at = tensor.end;
    }
    const int64_t tail = dataBegin_ + dataBytes_ - at;
    if (tail != 0) return Status(Code::invalidFile, std::to_string(tail) + " bytes behind the last tensor");
    return Status();
  }

  JsonReader json_;
  const size_t headerBytes_;
  const int64_t dataBegin_;
  const int64_t dataBytes_;
  Safetensors& index_;
  bool seenMetadata_ = false;
};

}  // namespace

const char* safetensorsDtype(uint8_t dtype) { return dtype < kDtypes.size() ? kDtypes[dtype].name : "?"; }

int64_t safetensorsDtypeBytes(uint8_t dtype) { return dtype < kDtypes.size() ? kDtypes[dtype].bytes : 0; }

Status parseSafetensorsHeader(std::string_view text, int64_t dataBegin, int64_t dataBytes, Safetensors* index) {
  if (text.empty() || text.front() != '{') return Status(Code::invalidFile, "header: does not begin with '{'");
  return HeaderParser(text, dataBegin, dataBytes, *index).parse();
}

Status openSafetensors(const std::string& path, bool followLinks, Safetensors* index, std::string* header) {
  Status status = File::open(path, followLinks, &index->file);
  if (!status.ok()) return status;
  const File& file = *index->file;
  const auto bad = [&](const std::string& what) { return Status(Code::invalidFile, path + ": " + what); };
  std::array<std::byte, 8> prefix = {};
  if (file.size() < 8) return bad("too short for a safetensors file");
  status = file.read(0, prefix.data(), 8);
  if (!status.ok()) return status;
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | std::to_integer<uint64_t>(prefix[static_cast<size_t>(i)]);
  if (length > static_cast<uint64_t>(file.size() - 8)) {
    return bad("a header of " + std::to_string(length) + " bytes in a file of " + std::to_string(file.size()));
  }
  if (length > static_cast<uint64_t>(kMaxHeaderBytes)) return bad("a header of more than 100 MiB");
  const auto headerBytes = static_cast<int64_t>(length);
  std::string text(static_cast<size_t>(headerBytes), '\0');
  status = file.read(8, reinterpret_cast<std::byte*>(text.data()), headerBytes);
  if (!status.ok()) return status;
  if (header != nullptr) header->assign(reinterpret_cast<const char*>(prefix.data()), prefix.size()).append(text);
  status = parseSafetensorsHeader(text, 8 + headerBytes, file.size() - 8 - headerBytes, index);
  return status.ok() ? status : bad(status.message());
}

}  // namespace meshwork
