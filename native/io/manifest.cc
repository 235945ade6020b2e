// Manifests: strict JSON with its members in one order, and a digest of all of it at the end.
#include "io/manifest.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "io/json.h"
#include "io/safetensors.h"

namespace meshwork {
namespace {

constexpr std::string_view kTail = "\"digest\":\"";
constexpr std::string_view kEnd = "\"\n}\n";
constexpr size_t kHex = 64;
constexpr size_t kTailBytes = kTail.size() + kHex + kEnd.size();
constexpr uint64_t kLargest = uint64_t{1} << 53;  // what a JavaScript number holds exactly
constexpr std::array<const char*, 2> kRoles = {"parameter", "state"};
constexpr size_t kShownName = 200;

int hexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool readHex(std::string_view text, uint8_t* bytes, size_t count) {
  if (text.size() != 2 * count) return false;
  for (size_t i = 0; i < count; ++i) {
    const int high = hexDigit(text[2 * i]), low = hexDigit(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

// A plain name of a safetensors file: nothing that leads out of the folder.
bool plainName(std::string_view name) {
  constexpr std::string_view suffix = ".safetensors";
  if (name.size() <= suffix.size() || name.size() > 255 || !name.ends_with(suffix) || name.front() == '.') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
           c == '.';
  });
}

class Parser {
 public:
  Parser(std::string_view text, Manifest& manifest) : json_(text), manifest_(manifest) {}

  Status parse() {
    json_.expect('{');
    member("format", [&] { word("meshwork checkpoint", "not a meshwork checkpoint"); });
    next("version", [&] { version(); });
    next("step", [&] { manifest_.step = integer("step"); });
    next("record", [&] { record(); });
    next("files", [&] { list([&] { file(); }); });
    next("tensors", [&] { list([&] { tensor(); }); });
    next("digest", [&] { take(); });
    json_.expect('}');
    json_.end();
    if (json_.failed()) return bad(json_.error());
    return consistent();
  }

 private:
  Status bad(const std::string& what) const { return Status(Code::invalidFile, what, Subject{"", tensorName_}); }

  template <class Read>
  void member(std::string_view name, const Read& read) {
    text_.clear();
    json_.string(text_);
    if (!json_.failed() && text_ != name) json_.fail("\"" + std::string(name) + "\" is expected");
    json_.expect(':');
    if (!json_.failed()) read();
  }
  template <class Read>
  void next(std::string_view name, const Read& read) {
    json_.expect(',');
    member(name, read);
  }
  template <class Read>
  void list(const Read& read) {
    json_.expect('[');
    if (json_.accept(']')) return;
    do {
      read();
    } while (!json_.failed() && json_.accept(','));
    json_.expect(']');
  }
  const std::string& take() {
    text_.clear();
    json_.string(text_);
    return text_;
  }
  void word(std::string_view expected, const char* otherwise) {
    if (take() != expected) json_.fail(otherwise);
  }
  int64_t integer(const char* what) {
    const uint64_t value = json_.unsignedInteger();
    if (!json_.failed() && value > kLargest) json_.fail(std::string(what) + " is beyond 2^53");
    return static_cast<int64_t>(value);
  }

  void version() {
    const int64_t version = integer("version");
    if (!json_.failed() && version != 1) {
      json_.fail("format version " + std::to_string(version) + ", where 1 is understood: a newer meshwork wrote it");
    }
  }

  void record() {
    if (json_.peek() != '{') json_.fail("\"record\" is no object");
    manifest_.record = json_.skipValue();
  }

  void file() {
    ManifestFile file;
    json_.expect('{');
    member("name", [&] { file.name = take(); });
    if (!json_.failed() && !plainName(file.name)) json_.fail("no plain name of a .safetensors file");
    next("bytes", [&] { file.bytes = integer("bytes"); });
    next("sha256", [&] {
      if (!readHex(take(), file.sha256.data(), file.sha256.size())) json_.fail("sha256 is not 64 hexadecimal digits");
    });
    json_.expect('}');
    if (manifest_.files.size() == kMaxShards) json_.fail("more than 4096 files");
    if (!json_.failed()) manifest_.files.push_back(std::move(file));
  }

  void tensor() {
    ManifestTensor tensor;
    json_.expect('{');
    member("name", [&] { name(tensor); });
    next("role", [&] { tensor.role = oneOf(kRoles.size(), manifestRole, "an unknown role"); });
    next("dtype", [&] { tensor.dtype = oneOf(256, safetensorsDtype, "an unknown dtype"); });
    next("shape", [&] { shape(tensor); });
    next("stored", [&] { stored(tensor); });
    next("cuts", [&] { cuts(tensor); });
    next("files", [&] { cells(tensor); });
    next("crc32c", [&] { checksums(tensor); });
    json_.expect('}');
    if (json_.failed()) return;
    if (manifest_.tensors.size() == kMaxTensors) return json_.fail("more than a million tensors");
    manifest_.tensors.push_back(tensor);
    tensorName_.clear();
  }

  void name(ManifestTensor& tensor) {
    tensor.name = static_cast<uint32_t>(manifest_.names.size());
    json_.string(manifest_.names);
    tensor.nameBytes = static_cast<uint32_t>(manifest_.names.size()) - tensor.name;
    tensorName_ = std::string(manifest_.nameOf(tensor).substr(0, kShownName));
    if (!json_.failed() && tensor.nameBytes == 0) json_.fail("a tensor without a name");
    if (!json_.failed() && tensorName_ == "__metadata__") json_.fail("no tensor can be named __metadata__");
  }

  uint8_t oneOf(size_t count, const char* (*nameAt)(uint8_t), const char* otherwise) {
    take();
    for (size_t i = 0; i < count && !json_.failed(); ++i) {
      const char* known = nameAt(static_cast<uint8_t>(i));
      if (known != nullptr && text_ == known && text_ != "?") return static_cast<uint8_t>(i);
    }
    if (!json_.failed()) json_.fail(otherwise);
    return 0;
  }

  uint8_t sizes() {
    uint8_t rank = 0;
    list([&] {
      const int64_t size = integer("a dim");
      if (rank == kMaxTensorRank) return json_.fail("more than 8 dims");
      manifest_.dims.push_back(size);
      ++rank;
    });
    return rank;
  }

  static bool product(const int64_t* sizes, uint8_t rank, int64_t unit, int64_t* result) {
    *result = unit;
    // A zero anywhere makes the product zero, whatever the other sizes.
    if (std::find(sizes, sizes + rank, 0) != sizes + rank) *result = 0;
    for (uint8_t d = 0; d < rank; ++d) {
      if (__builtin_mul_overflow(*result, sizes[d], result) || *result > static_cast<int64_t>(kLargest)) return false;
    }
    return true;
  }

  void shape(ManifestTensor& tensor) {
    tensor.dims = static_cast<uint32_t>(manifest_.dims.size());
    tensor.rank = sizes();
    int64_t bytes = 0;
    if (json_.failed()) return;
    if (!product(manifest_.dims.data() + tensor.dims, tensor.rank, safetensorsDtypeBytes(tensor.dtype), &bytes)) {
      json_.fail("its size overflows");
    }
  }

  void stored(ManifestTensor& tensor) {
    tensor.storedRank = sizes();
    if (json_.failed()) return;
    const int64_t* shape = manifest_.dims.data() + tensor.dims;
    int64_t inner = 0, outer = 0;
    const bool fits =
        product(shape, tensor.rank, 1, &inner) && product(shape + tensor.rank, tensor.storedRank, 1, &outer);
    if (!fits || inner != outer) json_.fail("the stored shape has another number of elements than the shape");
  }

  void cuts(ManifestTensor& tensor) {
    tensor.cuts = static_cast<uint32_t>(manifest_.cuts.size());
    uint8_t d = 0;
    uint64_t cells = 1;
    list([&] {
      if (d == tensor.rank) return json_.fail("cuts of more dims than it has");
      const int64_t size = manifest_.dims[tensor.dims + d];
      int64_t last = 0;
      uint64_t count = 0;
      list([&] {
        const int64_t cut = integer("a cut");
        if (json_.failed()) return;
        if (cut <= last || cut >= size) return json_.fail("cuts do not ascend within the dim");
        last = cut;
        manifest_.cuts.push_back(cut);
        if (++count >= kMaxShards) json_.fail("too many cuts");
      });
      tensor.nCuts[d++] = static_cast<uint16_t>(count);
      cells *= count + 1;
      if (cells > kMaxShards) json_.fail("more cells than files can be");
    });
    if (!json_.failed() && d != tensor.rank) json_.fail("cuts of fewer dims than it has");
    tensor.nCells = static_cast<uint32_t>(cells);
  }

  void cells(ManifestTensor& tensor) {
    tensor.cells = static_cast<uint32_t>(manifest_.cells.size());
    uint32_t count = 0;
    list([&] {
      const int64_t file = integer("a file's number");
      if (json_.failed()) return;
      if (static_cast<size_t>(file) >= manifest_.files.size()) return json_.fail("a file that is not listed");
      if (++count > tensor.nCells) return json_.fail("more files than cells");
      ManifestCell cell;
      cell.file = static_cast<uint16_t>(file);
      manifest_.cells.push_back(cell);
    });
    if (!json_.failed() && count != tensor.nCells) json_.fail("fewer files than cells");
  }

  void checksums(ManifestTensor& tensor) {
    uint32_t count = 0;
    list([&] {
      std::array<uint8_t, 4> bytes = {};
      if (!readHex(take(), bytes.data(), bytes.size())) return json_.fail("crc32c is not 8 hexadecimal digits");
      if (count == tensor.nCells) return json_.fail("more checksums than cells");
      uint32_t& crc = manifest_.cells[tensor.cells + count++].crc32c;
      for (const uint8_t byte : bytes) crc = crc << 8 | byte;
    });
    if (!json_.failed() && count != tensor.nCells) json_.fail("fewer checksums than cells");
  }

  // What one entry alone does not show: names twice, a file with two cells of a tensor, files with nothing in them.
  Status consistent() {
    std::vector<uint32_t> order(manifest_.tensors.size());
    std::iota(order.begin(), order.end(), 0u);
    const auto nameAt = [&](uint32_t i) { return manifest_.nameOf(manifest_.tensors[i]); };
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return nameAt(a) < nameAt(b); });
    const auto same = [&](uint32_t a, uint32_t b) { return nameAt(a) == nameAt(b); };
    const auto twice = std::adjacent_find(order.begin(), order.end(), same);
    if (twice != order.end()) return wrong(manifest_.tensors[*twice], "it is listed twice");
    std::vector<std::string_view> files;
    for (const ManifestFile& file : manifest_.files) files.push_back(file.name);
    std::sort(files.begin(), files.end());
    if (std::adjacent_find(files.begin(), files.end()) != files.end()) return bad("a file is listed twice");
    std::vector<uint32_t> lastUser(manifest_.files.size(), 0);
    uint32_t number = 0;
    for (const ManifestTensor& tensor : manifest_.tensors) {
      ++number;
      for (uint32_t c = 0; c < tensor.nCells; ++c) {
        uint32_t& user = lastUser[manifest_.cells[tensor.cells + c].file];
        if (user == number) return wrong(tensor, "two of its cells are in one file");
        user = number;
      }
    }
    if (std::find(lastUser.begin(), lastUser.end(), 0u) != lastUser.end())
      return bad("a file is listed that holds nothing");
    return Status();
  }

  Status wrong(const ManifestTensor& tensor, const char* what) {
    tensorName_ = manifest_.nameOf(tensor).substr(0, kShownName);
    return bad("tensor \"" + tensorName_ + "\": " + what);
  }

  JsonReader json_;
  Manifest& manifest_;
  std::string text_;
  std::string tensorName_;  // of the entry that is being read
};

}  // namespace

const char* manifestRole(uint8_t role) { return role < kRoles.size() ? kRoles[role] : nullptr; }

Manifest::Block Manifest::block(const ManifestTensor& tensor, uint32_t cell) const {
  Block block;
  block.bytes = safetensorsDtypeBytes(tensor.dtype);
  uint32_t cutsEnd = tensor.cuts;
  for (uint8_t d = 0; d < tensor.rank; ++d) cutsEnd += tensor.nCuts[d];
  for (int d = tensor.rank - 1; d >= 0; --d) {
    const uint32_t count = tensor.nCuts[d], at = cell % (count + 1);
    cell /= count + 1;
    cutsEnd -= count;
    const int64_t size = dims[tensor.dims + static_cast<size_t>(d)];
    block.start[d] = at == 0 ? 0 : cuts[cutsEnd + at - 1];
    block.size[d] = (at == count ? size : cuts[cutsEnd + at]) - block.start[d];
    block.bytes *= block.size[d];
  }
  return block;
}

Status manifestDigestMatches(std::string_view text, Sha256::Digest* digest) {
  const auto cut = [&] { return Status(Code::invalidFile, "it does not end with its digest: cut off?"); };
  if (text.size() < kTailBytes) return cut();
  const std::string_view tail = text.substr(text.size() - kTailBytes);
  if (!tail.starts_with(kTail) || !tail.ends_with(kEnd)) return cut();
  if (!readHex(tail.substr(kTail.size(), kHex), digest->data(), digest->size())) return cut();
  const std::string_view body = text.substr(0, text.size() - kTailBytes);
  Sha256 hash;
  hash.update(reinterpret_cast<const std::byte*>(body.data()), body.size());
  if (hash.finish() == *digest) return Status();
  return Status(Code::invalidFile, "its digest does not match: it was changed or damaged");
}

Status parseManifest(std::string_view text, bool digestMatters, Manifest* manifest) {
  const Status matches = manifestDigestMatches(text, &manifest->digest);
  if (!matches.ok() && digestMatters) return matches;
  return Parser(text, *manifest).parse();
}

}  // namespace meshwork
