// A checkpoint's manifest: which tensors it has, how each is cut into cells, and which file holds each cell.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "io/sha256.h"

namespace meshwork {

struct ManifestFile {
  std::string name;
  int64_t bytes = 0;
  Sha256::Digest sha256 = {};
};

// The cells of a tensor are the rectangles between the cuts of its dims, row-major.
struct ManifestTensor {
  uint32_t name = 0;  // byte in Manifest::names
  uint32_t nameBytes = 0;
  uint32_t dims = 0;   // index in Manifest::dims: the shape, then the shape in files of models
  uint32_t cuts = 0;   // index in Manifest::cuts
  uint32_t cells = 0;  // index in Manifest::cells
  uint32_t nCells = 1;
  uint8_t rank = 0;
  uint8_t storedRank = 0;
  uint8_t dtype = 0;  // index for safetensorsDtype()
  uint8_t role = 0;   // index for manifestRole()
  uint16_t nCuts[8] = {};
};

struct ManifestCell {
  uint32_t crc32c = 0;
  uint16_t file = 0;
};

struct Manifest {
  int64_t step = 0;
  std::string record;  // JSON: what else the writer noted
  std::vector<ManifestFile> files;
  std::vector<ManifestTensor> tensors;
  std::vector<ManifestCell> cells;
  std::vector<int64_t> dims;
  std::vector<int64_t> cuts;  // inner ones: neither 0 nor the dim's size
  std::string names;
  Sha256::Digest digest = {};  // of the text before it

  std::string_view nameOf(const ManifestTensor& tensor) const {
    return std::string_view(names).substr(tensor.name, tensor.nameBytes);
  }
  // First index and number of elements of a cell in each dim.
  struct Block {
    int64_t start[8] = {};
    int64_t size[8] = {};
    int64_t bytes = 0;
  };
  Block block(const ManifestTensor& tensor, uint32_t cell) const;
};

constexpr int64_t kMaxManifestBytes = 1 << 30;
constexpr size_t kMaxShards = 4096;

// "parameter" or "state"; null for no role.
const char* manifestRole(uint8_t role);

// Checks everything that a manifest says by itself. Fails with invalidFile, naming the tensor where it is about one.
// `digestMatters` false: the digest at the end is not compared, to find out what else is wrong.
Status parseManifest(std::string_view text, bool digestMatters, Manifest* manifest);

// The digest that belongs at the end of a manifest's text.
Status manifestDigestMatches(std::string_view text, Sha256::Digest* digest);

}  // namespace meshwork
