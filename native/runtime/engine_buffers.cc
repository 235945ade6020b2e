// The engine's buffers: allocated, written and read, copied out for checkpoints and filled from them.
#include <algorithm>
#include <numeric>

#include "runtime/engine_parts.h"

namespace meshwork {

Status Engine::findBuffer(int32_t handle, std::shared_ptr<Buffer>* buffer) const {
  *buffer = buffers_.find(handle);
  return *buffer == nullptr ? stale("buffer", handle) : Status();
}

Status Engine::checkRange(const Buffer& buffer, int64_t offset, int64_t bytes) const {
  if (offset < 0 || bytes < 0 || offset > buffer.bytes || bytes > buffer.bytes - offset) {
    return argument("bytes " + std::to_string(offset) + " to " + std::to_string(offset) + " + " +
                    std::to_string(bytes) + " of a buffer of " + std::to_string(buffer.bytes) + " bytes");
  }
  return Status();
}

Status Engine::allocate(int device, int64_t bytes, int32_t* handle) {
  if (device < 0 || device >= devices()) return argument("device " + std::to_string(device) + " does not exist");
  if (bytes < 0) return argument("a buffer's size is not negative");
  auto buffer = std::make_shared<Buffer>(backend_, device, bytes);
  Status status = backend_->allocate(device, bytes, &buffer->data);
  if (!status.ok()) return status;
  *handle = buffers_.add(std::move(buffer));
  const std::lock_guard lock(mutex_);
  stats_.bufferBytes[static_cast<size_t>(device)] += bytes;
  return Status();
}

Status Engine::freeBuffer(int32_t handle) {
  std::shared_ptr<Buffer> buffer;
  Status status = findBuffer(handle, &buffer);
  if (!status.ok()) return status;
  buffers_.remove(handle);
  const std::lock_guard lock(mutex_);
  stats_.bufferBytes[static_cast<size_t>(buffer->device)] -= buffer->bytes;
  return Status();
}

Status Engine::bufferSize(int32_t handle, int64_t* bytes) const {
  std::shared_ptr<Buffer> buffer;
  Status status = findBuffer(handle, &buffer);
  if (status.ok()) *bytes = buffer->bytes;
  return status;
}

int64_t Engine::heldBytes() const {
  if (!backend_->computes()) return 0;
  const std::lock_guard lock(mutex_);
  return std::accumulate(stats_.bufferBytes.begin(), stats_.bufferBytes.end(), int64_t{0});
}

Status Engine::write(int32_t handle, int64_t offset, const std::byte* from, int64_t bytes) {
  std::shared_ptr<Buffer> buffer;
  Status status = findBuffer(handle, &buffer);
  if (status.ok()) status = checkRange(*buffer, offset, bytes);
  if (status.ok() && busy()) status = argument("a buffer is written at once only while nothing runs");
  if (status.ok() && bytes > 0) backend_->copyIn(buffer->device, buffer->data + offset, from, bytes);
  return status;
}

Status Engine::read(int32_t handle, int64_t offset, std::byte* to, int64_t bytes) {
  std::shared_ptr<Buffer> buffer;
  Status status = findBuffer(handle, &buffer);
  if (status.ok()) status = checkRange(*buffer, offset, bytes);
  if (status.ok() && busy()) status = argument("a buffer is read at once only while nothing runs");
  if (status.ok() && bytes > 0) backend_->copyOut(buffer->device, to, buffer->data + offset, bytes);
  return status;
}

Status Engine::queueWrite(int32_t handle, int64_t offset, Bytes from, Completion done) {
  std::shared_ptr<Buffer> buffer;
  Status status = findBuffer(handle, &buffer);
  if (status.ok()) status = checkRange(*buffer, offset, from.size);
  if (!status.ok()) return status;
  auto job = std::make_unique<Job>();
  job->input = std::move(from);
  job->done = std::move(done);
  job->task = [this, offset, buffer, source = job.get()] {
    if (source->input.size == 0) return;
    backend_->copyIn(buffer->device, buffer->data + offset, source->input.data.get(), source->input.size);
  };
  enqueue(std::move(job));
  return Status();
}

Status Engine::queueRead(int32_t handle, int64_t offset, int64_t bytes, Completion done) {
  std::shared_ptr<Buffer> buffer;
  Status status = findBuffer(handle, &buffer);
  if (status.ok()) status = checkRange(*buffer, offset, bytes);
  if (!status.ok()) return status;
  auto job = std::make_unique<Job>();
  job->output = Bytes{std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(bytes)), bytes};
  job->done = std::move(done);
  job->task = [this, offset, buffer, target = job.get()] {
    if (target->output.size == 0) return;
    backend_->copyOut(buffer->device, target->output.data.get(), buffer->data + offset, target->output.size);
  };
  enqueue(std::move(job));
  return Status();
}

Status Engine::queueSnapshot(std::span<const CopyOut> copies, std::shared_ptr<HostMemory> memory, Completion done) {
  struct Part {
    std::shared_ptr<Buffer> buffer;
    CopyOut copy;
  };
  std::vector<std::vector<Part>> parts(devices_.size());
  for (const CopyOut& copy : copies) {
    Part part{nullptr, copy};
    Status status = findBuffer(copy.buffer, &part.buffer);
    if (status.ok()) status = checkRange(*part.buffer, 0, copy.bytes);
    if (!status.ok()) return status;
    if (copy.offset < 0 || copy.bytes > memory->bytes() || copy.offset > memory->bytes() - copy.bytes) {
      return argument("a copy beyond the host memory's end");
    }
    parts[static_cast<size_t>(part.buffer->device)].push_back(std::move(part));
  }
  auto job = std::make_unique<Job>();
  job->done = std::move(done);
  job->each = [this, parts = std::move(parts), memory = std::move(memory)](int device) {
    for (const Part& part : parts[static_cast<size_t>(device)]) {
      if (part.copy.bytes == 0 || part.buffer->data == nullptr) continue;
      backend_->copyOut(device, memory->data() + part.copy.offset, part.buffer->data, part.copy.bytes);
    }
  };
  enqueue(std::move(job));
  return Status();
}

Status Engine::queueRestore(std::vector<CopyIn> blocks, std::shared_ptr<HostMemory> memory, Completion done) {
  struct Image {
    std::shared_ptr<Buffer> buffer;
    std::vector<CopyIn> blocks;
    int64_t bytes = 0;
    uint64_t filled = 0;  // by blocks; those of a checkpoint do not overlap
  };
  std::vector<std::vector<Image>> images(devices_.size());
  for (CopyIn& block : blocks) {
    std::shared_ptr<Buffer> buffer;
    int64_t sourceEnd = 0, targetEnd = 0;
    Status status = findBuffer(block.buffer, &buffer);
    if (status.ok()) status = checkConversion(block.from, block.to);
    if (status.ok()) status = block.extent(&sourceEnd, &targetEnd);
    if (status.ok()) status = checkRange(*buffer, 0, targetEnd);
    if (status.ok() && sourceEnd > memory->bytes()) status = argument("a block beyond the host memory's end");
    if (!status.ok()) return status;
    // Blocks of one buffer follow each other.
    std::vector<Image>& own = images[static_cast<size_t>(buffer->device)];
    if (own.empty() || own.back().buffer != buffer) own.push_back(Image{std::move(buffer), {}, 0, 0});
    own.back().bytes = std::max(own.back().bytes, targetEnd);
    own.back().filled += block.bytes();
    own.back().blocks.push_back(std::move(block));
  }
  auto job = std::make_unique<Job>();
  job->done = std::move(done);
  job->each = [this, images = std::move(images), memory = std::move(memory)](int device) {
    std::vector<std::byte> whole;
    for (const Image& image : images[static_cast<size_t>(device)]) {
      std::byte* const data = image.buffer->data;
      if (image.bytes == 0 || data == nullptr) continue;
      if (backend_->onHost()) {
        for (const CopyIn& block : image.blocks) copyBlock(block, memory->data(), data);
        continue;
      }
      const CopyIn& first = image.blocks.front();
      const bool straight =
          image.blocks.size() == 1 && first.dims.empty() && first.from == first.to && first.target == 0;
      if (!straight) {
        whole.resize(static_cast<size_t>(image.bytes));
        // What no block covers keeps its value.
        if (image.filled < static_cast<uint64_t>(image.bytes))
          backend_->copyOut(device, whole.data(), data, image.bytes);
        for (const CopyIn& block : image.blocks) copyBlock(block, memory->data(), whole.data());
      }
      backend_->copyIn(device, data, straight ? memory->data() + first.source : whole.data(), image.bytes);
    }
  };
  enqueue(std::move(job));
  return Status();
}

}  // namespace meshwork
