// Shards of checkpoints: safetensors files written from host memory and read back, with digests taken on the way.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/status.h"
#include "io/manifest.h"
#include "io/output.h"
#include "io/safetensors.h"
#include "io/sha256.h"

namespace meshwork {

// A file to write: its header, and the bytes of its tensors one after the other.
struct Shard {
  std::string path;
  std::string header;
  const std::byte* body = nullptr;
  std::vector<int64_t> ends;  // of each tensor in the body
};

struct ShardSums {
  int64_t bytes = 0;
  Sha256::Digest sha256 = {};
  std::vector<uint32_t> crcs;  // of each tensor
};

Status writeShard(const Shard& shard, const Stop& stop, ShardSums* sums);

// A checkpoint's folder, opened: its manifest is sound, and its files are there with the sizes that it says.
struct Checkpoint {
  std::string folder;
  Manifest manifest;
  // Cells of each file, in the order of the file: (tensor, cell of it).
  struct Place {
    uint32_t tensor;
    uint32_t cell;
  };
  std::vector<std::vector<Place>> places;
};

constexpr char kManifestName[] = "manifest.json";

// Fails with io, or with invalidFile; the subject is the file and, where it is about one, the tensor.
Status openCheckpoint(const std::string& folder, Checkpoint* checkpoint);

// Reads a file's cells into memory: cell i of the manifest to memory + targets[i], or not at all where that is
// negative. Each byte of the file is read once at most. When all cells are wanted the file's SHA-256 must be the
// manifest's, else the checksums of those that are. `bytesRead` counts.
Status readShard(const Checkpoint& checkpoint, size_t file, std::span<const int64_t> targets, std::byte* memory,
                 const Stop& stop, std::atomic<int64_t>& bytesRead);

// Runs task(0) to task(count - 1) on as many threads as there are cores; the status of the first, by number, that
// failed.
Status inParallel(size_t count, const std::function<Status(size_t)>& task);

}  // namespace meshwork
