// Shards go through the cores in pieces that stay in cache between the digest and the system's call.
#include "io/shard.h"

#include <dirent.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <thread>

#include "io/crc32c.h"

namespace meshwork {
namespace {

constexpr int64_t kPiece = 1 << 20;

// Both digests of a piece, the checksum of a few blocks at a time in the shadow of SHA-256, which waits for itself.
// Without a SHA-256 to go on with there is the checksum alone.
uint32_t digest(Sha256* sha, uint32_t crc, const std::byte* data, size_t bytes) {
  constexpr size_t kStep = 128;
  for (; sha != nullptr && bytes > kStep; data += kStep, bytes -= kStep) {
    sha->update(data, kStep);
    crc = crc32c(crc, data, kStep);
  }
  if (sha != nullptr) sha->update(data, bytes);
  return crc32c(crc, data, bytes);
}

Status stopped(const std::string& path) { return Status(Code::aborted, "stopped at " + path); }

Status bad(const std::string& path, const std::string& tensor, const std::string& reason) {
  const std::string where = tensor.empty() ? path : path + ", tensor \"" + tensor + "\"";
  return Status(Code::invalidFile, where + ": " + reason, Subject{path, tensor});
}

std::string nameIn(const Manifest& manifest, uint32_t tensor) {
  return std::string(manifest.nameOf(manifest.tensors[tensor]));
}

std::string fileOf(const Checkpoint& checkpoint, size_t file) {
  return checkpoint.folder + "/" + checkpoint.manifest.files[file].name;
}

// The first tensor of a file, to say what is lost with it.
std::string firstOf(const Checkpoint& checkpoint, size_t file) {
  return nameIn(checkpoint.manifest, checkpoint.places[file].front().tensor);
}

// Holds a shard's header to the manifest: the same tensors in the same order, of the same types and shapes.
Status checkHeader(const Checkpoint& checkpoint, size_t file, const Safetensors& index) {
  const Manifest& manifest = checkpoint.manifest;
  const auto& places = checkpoint.places[file];
  const std::string path = fileOf(checkpoint, file);
  for (size_t i = 0; i < std::max(places.size(), index.tensors.size()); ++i) {
    if (i >= places.size())
      return bad(path, std::string(index.nameOf(index.tensors[i])), "the manifest has it elsewhere");
    const std::string name = nameIn(manifest, places[i].tensor);
    if (i >= index.tensors.size()) return bad(path, name, "it is not there, where the manifest has it");
    const TensorEntry& entry = index.tensors[i];
    const ManifestTensor& tensor = manifest.tensors[places[i].tensor];
    if (index.nameOf(entry) != name) {
      return bad(path, name,
                 "the file has \"" + std::string(index.nameOf(entry)) + "\" in its place: stale or swapped?");
    }
    const Manifest::Block block = manifest.block(tensor, places[i].cell);
    const bool shape =
        entry.rank == tensor.rank &&
        std::equal(block.size, block.size + tensor.rank, index.dims.begin() + static_cast<std::ptrdiff_t>(entry.dims));
    if (!shape || entry.dtype != tensor.dtype) return bad(path, name, "its shape or dtype is not the manifest's");
  }
  for (size_t i = 0; i < index.metadataEnds.size(); ++i) {
    const std::string value(index.metadataValue(i));
    if (index.metadataKey(i) != "step" || value == std::to_string(manifest.step)) continue;
    return bad(path, firstOf(checkpoint, file),
               "it was written at step " + value + ", not " + std::to_string(manifest.step) + ": a stale file");
  }
  return Status();
}

// Where in a file its size falls short: the tensor whose bytes are not all there.
Status wrongSize(const Checkpoint& checkpoint, size_t file, int64_t found) {
  const int64_t expected = checkpoint.manifest.files[file].bytes;
  int64_t rest = expected;
  std::string tensor = firstOf(checkpoint, file);
  const auto& places = checkpoint.places[file];
  for (auto place = places.rbegin(); place != places.rend(); ++place) {
    rest -= checkpoint.manifest.block(checkpoint.manifest.tensors[place->tensor], place->cell).bytes;
    tensor = nameIn(checkpoint.manifest, place->tensor);
    if (rest <= found) break;
  }
  return bad(fileOf(checkpoint, file), tensor,
             std::to_string(found) + " bytes, where the manifest has " + std::to_string(expected));
}

// A shard that is open, its header read and held to the manifest.
struct OpenShard {
  Safetensors index;
  std::string header;  // with the length before it
};

Status openShard(const Checkpoint& checkpoint, size_t file, OpenShard* shard) {
  const std::string path = fileOf(checkpoint, file);
  Status status = openSafetensors(path, false, &shard->index, &shard->header);
  if (status.code() == Code::io) return bad(path, firstOf(checkpoint, file), status.message());
  const int64_t size = shard->index.file == nullptr ? 0 : shard->index.file->size();
  if (size != checkpoint.manifest.files[file].bytes) return wrongSize(checkpoint, file, size);
  if (!status.ok()) {
    const std::string first = firstOf(checkpoint, file);
    return Status(status.code(), status.message() + "; tensor \"" + first + "\" is in this file", Subject{path, first});
  }
  return checkHeader(checkpoint, file, shard->index);
}

// Files of tensors that no manifest lists are left from something else: the folder is not what was written.
Status refuseExtraFiles(const Checkpoint& checkpoint) {
  DIR* const folder = ::opendir(checkpoint.folder.c_str());
  if (folder == nullptr) return bad(checkpoint.folder, "", "the folder cannot be listed");
  std::string extra;
  while (const dirent* entry = ::readdir(folder)) {
    const std::string name = entry->d_name;
    const auto listed = [&](const ManifestFile& file) { return file.name == name; };
    const auto& files = checkpoint.manifest.files;
    if (!name.ends_with(".safetensors") || std::any_of(files.begin(), files.end(), listed)) continue;
    extra = std::max(extra, name);
  }
  ::closedir(folder);
  if (extra.empty()) return Status();
  const std::string path = checkpoint.folder + "/" + extra;
  Safetensors index;
  const bool readable = openSafetensors(path, false, &index).ok() && !index.tensors.empty();
  return bad(path, readable ? std::string(index.nameOf(index.tensors.front())) : "",
             "the manifest does not list this file");
}

void listPlaces(Checkpoint* checkpoint) {
  const Manifest& manifest = checkpoint->manifest;
  checkpoint->places.assign(manifest.files.size(), {});
  for (uint32_t t = 0; t < manifest.tensors.size(); ++t) {
    for (uint32_t c = 0; c < manifest.tensors[t].nCells; ++c) {
      checkpoint->places[manifest.cells[manifest.tensors[t].cells + c].file].push_back({t, c});
    }
  }
}

// Reads cells of one shard that are wanted, in pieces, taking the digest of everything that passes.
class ShardReader {
 public:
  ShardReader(const Checkpoint& checkpoint, size_t file, std::span<const int64_t> targets, std::byte* memory)
      : checkpoint_(checkpoint), file_(file), targets_(targets), memory_(memory), path_(fileOf(checkpoint, file)) {}

  Status read(const Stop& stop, std::atomic<int64_t>& bytesRead) {
    Status status = openShard(checkpoint_, file_, &shard_);
    if (!status.ok()) return status;
    const auto& places = checkpoint_.places[file_];
    whole_ = std::all_of(places.begin(), places.end(), [&](const auto& place) { return targetOf(place) >= 0; });
    bytesRead += static_cast<int64_t>(shard_.header.size());
    sha_.update(reinterpret_cast<const std::byte*>(shard_.header.data()), shard_.header.size());
    for (size_t i = 0; i < places.size() && status.ok(); ++i) {
      if (targetOf(places[i]) >= 0) status = cell(i, stop, bytesRead);
    }
    if (!status.ok()) return status;
    const bool same = !whole_ || sha_.finish() == checkpoint_.manifest.files[file_].sha256;
    if (!damaged_.empty()) return bad(path_, damaged_, "its bytes are not those that were written (CRC-32C)");
    return same ? status : bad(path_, firstOf(checkpoint_, file_), "the file's SHA-256 is not the manifest's");
  }

 private:
  int64_t targetOf(const Checkpoint::Place& place) const {
    return targets_[checkpoint_.manifest.tensors[place.tensor].cells + place.cell];
  }

  Status cell(size_t i, const Stop& stop, std::atomic<int64_t>& bytesRead) {
    const Checkpoint::Place& place = checkpoint_.places[file_][i];
    const TensorEntry& entry = shard_.index.tensors[i];
    std::byte* const to = memory_ + targetOf(place);
    uint32_t crc = 0;
    for (int64_t at = entry.begin; at < entry.end; at += kPiece) {
      if (stop.load()) return stopped(path_);
      const int64_t bytes = std::min(kPiece, entry.end - at);
      std::byte* const piece = to + (at - entry.begin);
      Status status = shard_.index.file->read(at, piece, bytes);
      if (!status.ok()) return Status(status.code(), status.message(), Subject{path_, nameAt(place)});
      crc = digest(whole_ ? &sha_ : nullptr, crc, piece, static_cast<size_t>(bytes));
      bytesRead += bytes;
    }
    const Manifest& manifest = checkpoint_.manifest;
    if (crc != manifest.cells[manifest.tensors[place.tensor].cells + place.cell].crc32c && damaged_.empty()) {
      damaged_ = nameAt(place);
    }
    return Status();
  }

  std::string nameAt(const Checkpoint::Place& place) const { return nameIn(checkpoint_.manifest, place.tensor); }

  const Checkpoint& checkpoint_;
  const size_t file_;
  const std::span<const int64_t> targets_;
  std::byte* const memory_;
  const std::string path_;
  OpenShard shard_;
  Sha256 sha_;
  bool whole_ = true;
  std::string damaged_;  // the first tensor whose checksum is wrong
};

// Why a manifest is refused: what its own text, or the shards held to it, show besides the digest.
Status explainManifest(const std::string& path, const std::string& text, const Status& found, Checkpoint* checkpoint) {
  const std::string prefix = path + ": " + found.message();
  Manifest& manifest = checkpoint->manifest;
  manifest = Manifest();
  const Status parsed = parseManifest(text, false, &manifest);
  if (!parsed.ok()) {
    const std::string tensor = parsed.subject() == nullptr ? "" : parsed.subject()->tensor;
    const std::string about = tensor.empty() ? "" : "tensor \"" + tensor + "\": ";
    return Status(Code::invalidFile, prefix + "; " + about + parsed.message(), Subject{path, tensor});
  }
  listPlaces(checkpoint);
  // Every cell to the same place: what is read counts for nothing here but its checksum.
  const std::vector<int64_t> targets(manifest.cells.size(), 0);
  std::vector<std::byte> scratch;
  for (size_t file = 0; file < manifest.files.size(); ++file) {
    OpenShard shard;
    Status status = openShard(*checkpoint, file, &shard);
    if (status.ok()) {
      // It has as many bytes as the manifest says: none of its cells is larger.
      scratch.resize(static_cast<size_t>(manifest.files[file].bytes));
      std::atomic<int64_t> bytesRead{0};
      status = ShardReader(*checkpoint, file, targets, scratch.data()).read(Stop(false), bytesRead);
    }
    if (status.ok() || status.subject() == nullptr) continue;
    return Status(Code::invalidFile, prefix + "; " + status.message(), Subject{path, status.subject()->tensor});
  }
  return Status(Code::invalidFile, prefix, Subject{path, ""});
}

}  // namespace

Status writeShard(const Shard& shard, const Stop& stop, ShardSums* sums) {
  OutputFile file;
  Status status = file.create(shard.path);
  const auto* header = reinterpret_cast<const std::byte*>(shard.header.data());
  if (status.ok()) status = file.write(header, shard.header.size());
  Sha256 sha;
  sha.update(header, shard.header.size());
  sums->crcs.assign(shard.ends.size(), 0);
  const int64_t total = shard.ends.empty() ? 0 : shard.ends.back();
  size_t tensor = 0;
  for (int64_t at = 0; at < total && status.ok(); at += kPiece) {
    if (stop.load()) return stopped(shard.path);
    const int64_t end = std::min(at + kPiece, total);
    for (int64_t from = at; from < end;) {
      while (shard.ends[tensor] <= from) ++tensor;
      const int64_t to = std::min(end, shard.ends[tensor]);
      sums->crcs[tensor] = digest(&sha, sums->crcs[tensor], shard.body + from, static_cast<size_t>(to - from));
      from = to;
    }
    status = file.write(shard.body + at, static_cast<size_t>(end - at));
  }
  sums->bytes = static_cast<int64_t>(shard.header.size()) + total;
  sums->sha256 = sha.finish();
  return status.ok() ? file.finish() : status;
}

Status openCheckpoint(const std::string& folder, Checkpoint* checkpoint) {
  checkpoint->folder = folder;
  const std::string path = folder + "/" + kManifestName;
  std::unique_ptr<File> file;
  Status status = File::open(path, false, &file);
  if (!status.ok()) return Status(status.code(), status.message(), Subject{path, ""});
  if (file->size() > kMaxManifestBytes) return bad(path, "", "larger than any manifest");
  std::string text(static_cast<size_t>(file->size()), '\0');
  status = file->read(0, reinterpret_cast<std::byte*>(text.data()), file->size());
  if (!status.ok()) return Status(status.code(), status.message(), Subject{path, ""});
  status = parseManifest(text, true, &checkpoint->manifest);
  if (!status.ok()) return explainManifest(path, text, status, checkpoint);
  listPlaces(checkpoint);
  return refuseExtraFiles(*checkpoint);
}

Status readShard(const Checkpoint& checkpoint, size_t file, std::span<const int64_t> targets, std::byte* memory,
                 const Stop& stop, std::atomic<int64_t>& bytesRead) {
  return ShardReader(checkpoint, file, targets, memory).read(stop, bytesRead);
}

Status inParallel(size_t count, const std::function<Status(size_t)>& task) {
  std::vector<Status> results(count);
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&] {
    for (size_t i = next++; i < count && !failed.load(); i = next++) {
      try {
        results[i] = task(i);
      } catch (const std::exception& error) {
        results[i] = Status(Code::outOfMemory, std::string("out of host memory: ") + error.what());
      }
      if (!results[i].ok()) failed.store(true);
    }
  };
  std::vector<std::thread> threads;
  const size_t wanted = std::min<size_t>(count, std::max(1u, std::thread::hardware_concurrency()));
  try {
    while (threads.size() + 1 < wanted) threads.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads to be had: those there are do it all.
  }
  work();
  for (std::thread& thread : threads) thread.join();
  for (Status& status : results) {
    if (!status.ok()) return std::move(status);
  }
  return Status();
}

}  // namespace meshwork
