// The functions of checkpoints. Numbers come in Float64Arrays, each checked to be a whole one below 2^53.
#include "addon/checkpoints.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace meshwork {
namespace {

Status argument(std::string message) { return Status(Code::invalidArgument, std::move(message)); }

// Whole numbers, one after the other; fails for what is none and behind the end.
class Numbers {
 public:
  explicit Numbers(const std::vector<double>& values) : values_(values) {}
  bool atEnd() const { return at_ >= values_.size() || failed_; }
  bool failed() const { return failed_; }
  int64_t next(double least = 0) {
    constexpr double kMost = 9007199254740992.0;
    const double value = at_ < values_.size() ? values_[at_++] : NAN;
    if (value >= least && value <= kMost && value == std::floor(value)) return static_cast<int64_t>(value);
    failed_ = true;
    return 0;
  }

 private:
  const std::vector<double>& values_;
  size_t at_ = 0;
  bool failed_ = false;
};

template <class T>
std::shared_ptr<T> found(const Args& args, const Handles<T>& handles, int32_t handle, const char* what) {
  std::shared_ptr<T> object = handles.find(handle);
  if (object == nullptr) {
    throw toError(args.env(), argument(std::string(what) + " " + std::to_string(handle) + " is closed or unknown"));
  }
  return object;
}

// The memory of an argument, with what may have stopped its last work forgotten.
std::shared_ptr<HostMemory> memoryOf(const Args& args, CheckpointState& state, size_t index) {
  return found(args, state.memories, args.handle(index, "memory"), "memory");
}

// The checkpoint of the first argument, which must be open.
std::shared_ptr<OpenedCheckpoint> openOf(const Args& args, CheckpointState& state) {
  auto opened = found(args, state.checkpoints, args.handle(0, "checkpoint"), "checkpoint");
  if (opened->stage.load() != OpenedCheckpoint::Stage::open) {
    throw toError(args.env(), argument("a checkpoint that is not open yet"));
  }
  return opened;
}

Bytes bytesOf(const std::string& text) {
  Bytes bytes{std::make_unique_for_overwrite<std::byte[]>(text.size()), static_cast<int64_t>(text.size())};
  if (!text.empty()) std::memcpy(bytes.data.get(), text.data(), text.size());
  return bytes;
}

// work(&text) on a thread of its own; the promise gives the text's bytes.
Napi::Value background(const Args& args, CheckpointState& state, Promises& promises, std::shared_ptr<HostMemory> memory,
                       std::function<Status(std::string*)> work) {
  return promises.start(args.env(), [&](Engine::Completion done) {
    if (memory != nullptr) memory->stop.store(false);
    state.jobs.start(std::move(memory), [work = std::move(work), done = std::move(done)] {
      std::string text;
      Status status;
      try {
        status = work(&text);
        done(status, status.ok() ? bytesOf(text) : Bytes{});
      } catch (const std::bad_alloc&) {
        done(Status(Code::outOfMemory, "out of host memory"), Bytes{});
      }
    });
    return Status();
  });
}

Status decodeBlocks(const std::vector<double>& words, std::vector<CopyIn>* blocks) {
  Numbers numbers(words);
  while (!numbers.atEnd()) {
    CopyIn block;
    block.buffer = static_cast<int32_t>(std::min<int64_t>(numbers.next(), INT32_MAX));
    const int64_t from = numbers.next(), to = numbers.next();
    if (from >= kDTypeCount || to >= kDTypeCount) return argument("a block of an unknown dtype");
    block.from = static_cast<DType>(from);
    block.to = static_cast<DType>(to);
    block.source = numbers.next();
    block.target = numbers.next();
    block.run = numbers.next();
    const int64_t dims = numbers.next();
    if (dims > 8) return argument("a block of more than 8 dims");
    for (int64_t d = 0; d < dims; ++d) {
      const int64_t count = numbers.next(), source = numbers.next(), target = numbers.next();
      block.dims.push_back({count, source, target});
    }
    blocks->push_back(std::move(block));
  }
  return numbers.failed() ? argument("blocks are lists of whole numbers") : Status();
}

// Header i is headers[i]; words hold for each file: byte of the body in the memory, number of tensors, their ends.
Status decodeShards(const std::vector<std::string>& paths, const std::vector<std::string>& headers,
                    const std::vector<double>& words, const HostMemory& memory, std::vector<Shard>* shards) {
  if (headers.size() != paths.size()) return argument("one header for each file");
  Numbers numbers(words);
  for (size_t i = 0; i < paths.size(); ++i) {
    Shard shard;
    shard.path = paths[i];
    const std::string& text = headers[i];
    for (int b = 0; b < 8; ++b) shard.header.push_back(static_cast<char>(text.size() >> (8 * b) & 0xff));
    shard.header += text;
    const int64_t begin = numbers.next(), tensors = numbers.next();
    int64_t last = 0;
    for (int64_t t = 0; t < tensors && !numbers.failed(); ++t) {
      const int64_t end = numbers.next();
      if (end < last) return argument("the ends of tensors ascend");
      shard.ends.push_back(last = end);
    }
    if (numbers.failed() || begin > memory.bytes() || last > memory.bytes() - begin) {
      return argument("a file's tensors are not in the memory");
    }
    shard.body = memory.data() + begin;
    shards->push_back(std::move(shard));
  }
  return numbers.atEnd() && !numbers.failed() ? Status() : argument("more numbers than files take");
}

template <class T>
Napi::Float64Array doubles(Napi::Env env, const std::vector<T>& values) {
  Napi::Float64Array array = Napi::Float64Array::New(env, values.size());
  for (size_t i = 0; i < values.size(); ++i) array[i] = static_cast<double>(values[i]);
  return array;
}

Napi::Object manifestObject(Napi::Env env, const Manifest& manifest) {
  const size_t n = manifest.tensors.size();
  Napi::Array names = Napi::Array::New(env, n), dtypes = Napi::Array::New(env, n), roles = Napi::Array::New(env, n);
  std::vector<int64_t> ranks, cutCounts, cellFiles;
  for (uint32_t i = 0; i < n; ++i) {
    const Napi::HandleScope scope(env);
    const ManifestTensor& tensor = manifest.tensors[i];
    names[i] = Napi::String::New(env, manifest.names.data() + tensor.name, tensor.nameBytes);
    dtypes[i] = Napi::String::New(env, safetensorsDtype(tensor.dtype));
    roles[i] = Napi::String::New(env, manifestRole(tensor.role));
    ranks.push_back(tensor.rank);
    ranks.push_back(tensor.storedRank);
    cutCounts.insert(cutCounts.end(), tensor.nCuts, tensor.nCuts + tensor.rank);
  }
  for (const ManifestCell& cell : manifest.cells) cellFiles.push_back(cell.file);
  Napi::Array files = Napi::Array::New(env, manifest.files.size());
  for (uint32_t i = 0; i < manifest.files.size(); ++i) {
    Napi::Object file = Napi::Object::New(env);
    file["name"] = Napi::String::New(env, manifest.files[i].name);
    file["bytes"] = Napi::Number::New(env, static_cast<double>(manifest.files[i].bytes));
    file["sha256"] = Napi::String::New(env, hexOf(manifest.files[i].sha256));
    files[i] = file;
  }
  Napi::Object result = Napi::Object::New(env);
  result["step"] = Napi::Number::New(env, static_cast<double>(manifest.step));
  result["record"] = Napi::String::New(env, manifest.record);
  result["digest"] = Napi::String::New(env, hexOf(manifest.digest));
  result["files"] = files;
  result["names"] = names;
  result["dtypes"] = dtypes;
  result["roles"] = roles;
  result["ranks"] = doubles(env, ranks);
  result["dims"] = doubles(env, manifest.dims);
  result["cutCounts"] = doubles(env, cutCounts);
  result["cuts"] = doubles(env, manifest.cuts);
  result["cellFiles"] = doubles(env, cellFiles);
  return result;
}

}  // namespace

// memoryAlloc(bytes): handle
Napi::Value memoryAlloc(const Args& args, CheckpointState& state) {
  std::shared_ptr<HostMemory> memory;
  throwUnless(args.env(), HostMemory::allocate(args.bytes(0, "bytes"), &memory));
  Napi::MemoryManagement::AdjustExternalMemory(args.env(), memory->bytes());
  return Napi::Number::New(args.env(), state.memories.add(std::move(memory)));
}

// memoryTouch(memory): Promise of nothing
Napi::Value memoryTouch(const Args& args, CheckpointState& state, Promises& promises) {
  const std::shared_ptr<HostMemory> memory = memoryOf(args, state, 0);
  return background(args, state, promises, memory, [memory](std::string*) {
    memory->touch();
    return Status();
  });
}

// memoryFree(memory): what uses it still does
Napi::Value memoryFree(const Args& args, CheckpointState& state) {
  const std::shared_ptr<HostMemory> memory = memoryOf(args, state, 0);
  Napi::MemoryManagement::AdjustExternalMemory(args.env(), -memory->bytes());
  state.memories.remove(args.handle(0, "memory"));
  return args.env().Undefined();
}

// memoryStop(memory): the work on it fails with `aborted`
Napi::Value memoryStop(const Args& args, CheckpointState& state) {
  memoryOf(args, state, 0)->stop.store(true);
  return args.env().Undefined();
}

// memoryRead(memory, byteOffset, view)
Napi::Value memoryRead(const Args& args, CheckpointState& state) {
  const std::shared_ptr<HostMemory> memory = memoryOf(args, state, 0);
  const int64_t offset = args.bytes(1, "byteOffset");
  const ViewBytes view = args.view(2, "target");
  if (view.size > memory->bytes() || offset > memory->bytes() - view.size) {
    throw toError(args.env(), argument("bytes beyond the memory's end"));
  }
  if (view.size > 0) std::memcpy(view.data, memory->data() + offset, static_cast<size_t>(view.size));
  return args.env().Undefined();
}

// snapshot(engine, memory, [buffer, bytes, byteOffset in the memory]...): Promise of nothing
Napi::Value snapshot(const Args& args, CheckpointState& state, Promises& promises, Engine& engine) {
  const std::shared_ptr<HostMemory> memory = memoryOf(args, state, 1);
  const std::vector<double> words = args.float64s(2, "copies");
  std::vector<CopyOut> copies;
  Numbers numbers(words);
  while (!numbers.atEnd()) {
    CopyOut copy;
    copy.buffer = static_cast<int32_t>(std::min<int64_t>(numbers.next(), INT32_MAX));
    copy.bytes = numbers.next();
    copy.offset = numbers.next();
    copies.push_back(copy);
  }
  if (numbers.failed()) throw toError(args.env(), argument("copies are lists of three whole numbers"));
  return promises.start(args.env(),
                        [&](Engine::Completion done) { return engine.queueSnapshot(copies, memory, std::move(done)); });
}

// restore(engine, memory, blocks): Promise of nothing. A block: buffer, dtype there, dtype in the buffer, byte in the
// memory, element in the buffer, run, number of dims, then count, stride there, stride in the buffer of each.
Napi::Value restore(const Args& args, CheckpointState& state, Promises& promises, Engine& engine) {
  const std::shared_ptr<HostMemory> memory = memoryOf(args, state, 1);
  std::vector<CopyIn> blocks;
  throwUnless(args.env(), decodeBlocks(args.float64s(2, "blocks"), &blocks));
  return promises.start(args.env(), [&](Engine::Completion done) {
    return engine.queueRestore(std::move(blocks), memory, std::move(done));
  });
}

// shardsWrite(memory, paths, headers, words): Promise of lines of text, one a file: bytes, SHA-256, CRC-32C of each
// tensor
Napi::Value shardsWrite(const Args& args, CheckpointState& state, Promises& promises) {
  const std::shared_ptr<HostMemory> memory = memoryOf(args, state, 0);
  const auto shards = std::make_shared<std::vector<Shard>>();
  throwUnless(args.env(), decodeShards(args.strings(1, "paths"), args.strings(2, "headers"), args.float64s(3, "words"),
                                       *memory, shards.get()));
  return background(args, state, promises, memory, [memory, shards](std::string* text) {
    std::vector<ShardSums> sums(shards->size());
    Status status =
        inParallel(shards->size(), [&](size_t i) { return writeShard((*shards)[i], memory->stop, &sums[i]); });
    for (const ShardSums& sum : sums) {
      *text += std::to_string(sum.bytes) + " " + hexOf(sum.sha256);
      for (const uint32_t crc : sum.crcs) {
        std::array<char, 16> hex;
        std::snprintf(hex.data(), hex.size(), " %08x", crc);
        *text += hex.data();
      }
      *text += "\n";
    }
    return status;
  });
}

// checkpointNew(): handle
Napi::Value checkpointNew(const Args& args, CheckpointState& state) {
  return Napi::Number::New(args.env(), state.checkpoints.add(std::make_shared<OpenedCheckpoint>()));
}

// checkpointOpen(checkpoint, folder): Promise of nothing, when the manifest has been read and checked. Once for each.
Napi::Value checkpointOpen(const Args& args, CheckpointState& state, Promises& promises) {
  using Stage = OpenedCheckpoint::Stage;
  const auto opened = found(args, state.checkpoints, args.handle(0, "checkpoint"), "checkpoint");
  const std::string folder = args.string(1, "folder");
  Stage stage = Stage::fresh;
  if (!opened->stage.compare_exchange_strong(stage, Stage::opening)) {
    throw toError(args.env(), argument("a checkpoint is opened once"));
  }
  return background(args, state, promises, nullptr, [opened, folder](std::string*) {
    Status status = openCheckpoint(folder, &opened->checkpoint);
    if (status.ok()) opened->stage.store(Stage::open);
    return status;
  });
}

// checkpointManifest(checkpoint): what its manifest says
Napi::Value checkpointManifest(const Args& args, CheckpointState& state) {
  return manifestObject(args.env(), openOf(args, state)->checkpoint.manifest);
}

// checkpointRead(checkpoint, memory, targets): Promise of the number of bytes read, as text. Byte in the memory of each
// cell, in the manifest's order; -1 for one that is not wanted.
Napi::Value checkpointRead(const Args& args, CheckpointState& state, Promises& promises) {
  const std::shared_ptr<OpenedCheckpoint> opened = openOf(args, state);
  const Checkpoint& checkpoint = opened->checkpoint;
  const std::shared_ptr<HostMemory> memory = memoryOf(args, state, 1);
  const std::vector<double> words = args.float64s(2, "targets");
  const auto targets = std::make_shared<std::vector<int64_t>>();
  Numbers numbers(words);
  while (!numbers.atEnd()) targets->push_back(numbers.next(-1));
  const Manifest& manifest = checkpoint.manifest;
  bool fits = !numbers.failed() && targets->size() == manifest.cells.size();
  for (const ManifestTensor& tensor : manifest.tensors) {
    for (uint32_t c = 0; fits && c < tensor.nCells; ++c) {
      const int64_t target = (*targets)[tensor.cells + c], bytes = manifest.block(tensor, c).bytes;
      fits = target < 0 || (bytes <= memory->bytes() && target <= memory->bytes() - bytes);
    }
  }
  if (!fits) throw toError(args.env(), argument("one place in the memory for each cell"));
  return background(args, state, promises, memory, [opened, memory, targets](std::string* text) {
    std::atomic<int64_t> bytesRead{0};
    Status status = inParallel(opened->checkpoint.manifest.files.size(), [&](size_t file) {
      return readShard(opened->checkpoint, file, *targets, memory->data(), memory->stop, bytesRead);
    });
    *text = std::to_string(bytesRead.load());
    return status;
  });
}

Napi::Value checkpointClose(const Args& args, CheckpointState& state) {
  const int32_t handle = args.handle(0, "checkpoint");
  found(args, state.checkpoints, handle, "checkpoint");
  state.checkpoints.remove(handle);
  return args.env().Undefined();
}

// folderSteps(kinds, paths, others): Promise of nothing. `others` are contents for "write", targets for "rename".
Napi::Value folderSteps(const Args& args, CheckpointState& state, Promises& promises) {
  using Kind = FolderStep::Kind;
  constexpr std::array<std::pair<const char*, Kind>, 5> kKinds = {{{"makeFolder", Kind::makeFolder},
                                                                   {"write", Kind::writeFile},
                                                                   {"syncFolder", Kind::syncFolder},
                                                                   {"rename", Kind::rename},
                                                                   {"remove", Kind::remove}}};
  const auto kinds = args.strings(0, "kinds"), paths = args.strings(1, "paths"), others = args.strings(2, "others");
  if (paths.size() != kinds.size() || others.size() != kinds.size()) {
    throw toError(args.env(), argument("as many paths and texts as kinds"));
  }
  const auto steps = std::make_shared<std::vector<FolderStep>>();
  for (size_t i = 0; i < kinds.size(); ++i) {
    const auto known =
        std::find_if(kKinds.begin(), kKinds.end(), [&](const auto& kind) { return kinds[i] == kind.first; });
    if (known == kKinds.end() || paths[i].find('\0') != std::string::npos) {
      throw toError(args.env(), argument("no folder step: " + kinds[i]));
    }
    FolderStep& step = steps->emplace_back();
    step.kind = known->second;
    step.path = paths[i];
    (step.kind == Kind::rename ? step.to : step.content) = others[i];
  }
  return background(args, state, promises, nullptr, [steps](std::string*) { return runFolderSteps(*steps); });
}

}  // namespace meshwork
