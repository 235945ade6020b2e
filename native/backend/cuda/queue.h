// A rank's queue on its GPU: streams, events, pinned staging, graphs.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/queue.h"

namespace meshwork::cuda {

// "cudaMalloc: out of memory (cudaErrorMemoryAllocation)".
std::string explain(const char* call, cudaError_t error);

class Queue final : public DeviceQueue {
 public:
  // Streams, workspace and what is known about the GPU.
  static Status open(int rank, int ordinal, std::unique_ptr<Queue>* queue);
  ~Queue() override;

  int gpu() const override { return device_.ordinal; }
  bool reaches(const DeviceQueue& other) const override;
  void* device() override { return &device_; }
  void* native(Stream stream) override { return streamOf(stream); }
  Status begin(int64_t feedBytes, int64_t fetchBytes) override;
  void end() override;
  void feed(std::byte* to, const std::byte* from, int64_t bytes) override;
  void fetch(std::byte* to, const std::byte* from, int64_t bytes) override;
  Event record(Stream stream, bool timed) override;
  void wait(Stream stream, Event event) override;
  bool reached(Event event) override;
  double seconds(Event from, Event to) override;
  void move(Stream stream, std::byte* to, const std::byte* from, int64_t bytes) override;
  void copy(Stream stream, std::span<const BlockCopy> blocks) override;
  void reduce(Stream stream, const BlockReduce& blocks) override;
  void planRows(Stream stream, const RowExchange& exchange) override;
  void packRows(Stream stream, const RowExchange& exchange, const Rows& own, std::span<std::byte* const> slots,
                int64_t room) override;
  void takeRows(Stream stream, const RowExchange& exchange, std::span<const RowSource> sources,
                const Rows& to) override;
  void beginRecording() override;
  std::unique_ptr<Recording> endRecording() override;
  void replay(Recording& recording) override;
  Status status() const override;
  void abandon(const Status& status) override;

  // For the owner of the device's memory, from any thread: cudaFree waits for the device, which must not happen while
  // ranks wait for each other. Memory is freed at once when no run is on, else when the next one begins.
  void free(std::byte* data);
  bool usable() const { return usable_.load(); }

 private:
  struct Events {
    std::vector<cudaEvent_t> all;
    size_t used = 0;
  };
  struct Fetch {
    std::byte* to;
    const std::byte* from;
    int64_t bytes;
  };

  Queue(int rank, int ordinal);
  Status create();
  Status reserve(int64_t bytes);
  void freeLeftOver();
  cudaStream_t streamOf(Stream stream) const {
    return stream == Stream::compute ? device_.compute : device_.communication;
  }

  Device device_;
  Status dead_;
  std::atomic<bool> usable_{true};
  Events plain_, timed_;
  std::byte* staging_ = nullptr;  // pinned
  int64_t stagingBytes_ = 0, staged_ = 0;
  std::vector<Fetch> fetches_;
  std::mutex freeMutex_;
  bool running_ = false;              // guarded by freeMutex_
  std::vector<std::byte*> leftOver_;  // guarded by freeMutex_
};

}  // namespace meshwork::cuda
