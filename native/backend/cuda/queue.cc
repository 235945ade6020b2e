// Streams, events and graphs of a rank. Everything here queues and returns; only open(), begin() and the destructor
// wait.
#include "backend/cuda/queue.h"

#include <cstring>

#include "backend/cuda/blocks.h"
#include "backend/cuda/exchanged_rows.h"

namespace meshwork::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;  // cuBLASLt wants 32 MiB on Hopper

struct Graph final : Recording {
  ~Graph() override {
    if (executable != nullptr) cudaGraphExecDestroy(executable);
  }
  cudaGraphExec_t executable = nullptr;
};

// Errors of one call; after any other the GPU's context is lost.
bool survives(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorMemoryAllocation:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorNotSupported:
    case cudaErrorInvalidResourceHandle:
      return true;
    default:
      return false;
  }
}

cudaEvent_t eventOf(Event event) { return static_cast<cudaEvent_t>(event); }

}  // namespace

std::string explain(const char* call, cudaError_t error) {
  return std::string(call) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")";
}

Queue::Queue(int rank, int ordinal) {
  device_.rank = rank;
  device_.ordinal = ordinal;
}

Status Queue::open(int rank, int ordinal, std::unique_ptr<Queue>* queue) {
  queue->reset(new Queue(rank, ordinal));
  return (*queue)->create();
}

Status Queue::create() {
  int major = 0, minor = 0;
  void* workspace = nullptr;
  const int gpu = device_.ordinal;
  const bool made =
      device_.check(cudaSetDevice(gpu), "cudaSetDevice") &&
      device_.check(cudaDeviceGetAttribute(&device_.multiprocessors, cudaDevAttrMultiProcessorCount, gpu),
                    "attribute") &&
      device_.check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, gpu), "attribute") &&
      device_.check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, gpu), "attribute") &&
      device_.check(cudaDeviceGetAttribute(&device_.sharedMemory, cudaDevAttrMaxSharedMemoryPerBlockOptin, gpu),
                    "attribute") &&
      device_.check(cudaStreamCreateWithFlags(&device_.compute, cudaStreamNonBlocking), "cudaStreamCreate") &&
      device_.check(cudaStreamCreateWithFlags(&device_.communication, cudaStreamNonBlocking), "cudaStreamCreate") &&
      device_.check(cudaMalloc(&workspace, kWorkspaceBytes), "cudaMalloc");
  device_.workspace = static_cast<std::byte*>(workspace);
  device_.workspaceBytes = kWorkspaceBytes;
  device_.computeCapability = 10 * major + minor;
  if (made) return Status();
  const Status status = Status(device_.error == cudaErrorMemoryAllocation ? Code::outOfMemory : Code::device,
                               "cannot use GPU " + std::to_string(gpu) + " for rank " + std::to_string(device_.rank) +
                                   ": " + explain(device_.failedCall, device_.error));
  cudaGetLastError();
  return status;
}

Queue::~Queue() {
  if (!usable_.load()) return;  // nothing can be given back to a device that does not answer
  cudaSetDevice(device_.ordinal);
  for (auto& state : device_.states) state.reset();
  for (const Events* events : {&plain_, &timed_}) {
    for (const cudaEvent_t event : events->all) cudaEventDestroy(event);
  }
  freeLeftOver();
  cudaFreeHost(staging_);
  cudaFree(device_.workspace);
  if (device_.compute != nullptr) cudaStreamDestroy(device_.compute);
  if (device_.communication != nullptr) cudaStreamDestroy(device_.communication);
}

bool Queue::reaches(const DeviceQueue& other) const {
  if (other.gpu() == gpu()) return true;
  int can = 0;
  return cudaDeviceCanAccessPeer(&can, gpu(), other.gpu()) == cudaSuccess && can != 0;
}

Status Queue::begin(int64_t feedBytes, int64_t fetchBytes) {
  if (!dead_.ok()) return Status(dead_.code(), "the engine is dead since an earlier failure: " + dead_.message());
  {
    const std::lock_guard lock(freeMutex_);
    running_ = true;
  }
  cudaGetLastError();
  device_.failedCall = nullptr;
  device_.error = cudaSuccess;
  device_.check(cudaSetDevice(device_.ordinal), "cudaSetDevice");
  freeLeftOver();
  plain_.used = timed_.used = 0;
  staged_ = 0;
  fetches_.clear();
  const Status reserved = reserve(feedBytes + fetchBytes);
  return reserved.ok() ? status() : reserved;
}

Status Queue::reserve(int64_t bytes) {
  if (bytes <= stagingBytes_) return Status();
  cudaFreeHost(staging_);
  staging_ = nullptr;
  stagingBytes_ = 0;
  void* memory = nullptr;
  const cudaError_t error = cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocDefault);
  if (!device_.check(error, "cudaHostAlloc")) {
    return Status(error == cudaErrorMemoryAllocation ? Code::outOfMemory : Code::device,
                  "cannot allocate " + std::to_string(bytes) +
                      " bytes of pinned host memory: " + explain("cudaHostAlloc", error));
  }
  staging_ = static_cast<std::byte*>(memory);
  stagingBytes_ = bytes;
  return Status();
}

void Queue::end() {
  if (status().ok()) {
    for (const Fetch& fetch : fetches_) std::memcpy(fetch.to, fetch.from, static_cast<size_t>(fetch.bytes));
  } else if (dead_.ok() && !survives(device_.error)) {
    abandon(status());
  } else if (dead_.ok()) {  // what was queued before the failed call must not meet the next run
    cudaStreamSynchronize(device_.compute);
    cudaStreamSynchronize(device_.communication);
  }
  const std::lock_guard lock(freeMutex_);
  running_ = false;
}

void Queue::feed(std::byte* to, const std::byte* from, int64_t bytes) {
  std::byte* staged = staging_ + staged_;
  staged_ += bytes;
  std::memcpy(staged, from, static_cast<size_t>(bytes));
  device_.check(cudaMemcpyAsync(to, staged, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, device_.compute),
                "cudaMemcpyAsync");
}

void Queue::fetch(std::byte* to, const std::byte* from, int64_t bytes) {
  std::byte* staged = staging_ + staged_;
  staged_ += bytes;
  device_.check(cudaMemcpyAsync(staged, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, device_.compute),
                "cudaMemcpyAsync");
  fetches_.push_back({to, staged, bytes});
}

Event Queue::record(Stream stream, bool timed) {
  Events& events = timed ? timed_ : plain_;
  if (events.used == events.all.size()) {
    cudaEvent_t made = nullptr;
    const unsigned flags = timed ? cudaEventDefault : cudaEventDisableTiming;
    if (!device_.check(cudaEventCreateWithFlags(&made, flags), "cudaEventCreate")) return nullptr;
    events.all.push_back(made);
  }
  const cudaEvent_t event = events.all[events.used++];
  device_.check(cudaEventRecord(event, streamOf(stream)), "cudaEventRecord");
  return event;
}

void Queue::wait(Stream stream, Event event) {
  if (event == nullptr) return;
  device_.check(cudaStreamWaitEvent(streamOf(stream), eventOf(event), 0), "cudaStreamWaitEvent");
}

bool Queue::reached(Event event) {
  if (event == nullptr || device_.failed()) return true;
  const cudaError_t result = cudaEventQuery(eventOf(event));
  if (result == cudaErrorNotReady) return false;
  device_.check(result, "the device");
  return true;
}

double Queue::seconds(Event from, Event to) {
  float milliseconds = 0;
  if (from == nullptr || to == nullptr) return 0;
  device_.check(cudaEventElapsedTime(&milliseconds, eventOf(from), eventOf(to)), "cudaEventElapsedTime");
  return static_cast<double>(milliseconds) / 1000;
}

// By the copy engines, so that kernels keep the multiprocessors; where GPUs do not reach each other, through the host.
void Queue::move(Stream stream, std::byte* to, const std::byte* from, int64_t bytes) {
  if (bytes == 0) return;
  device_.check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, streamOf(stream)),
                "cudaMemcpyAsync");
}
void Queue::copy(Stream stream, std::span<const BlockCopy> blocks) { copyBlocks(device_, streamOf(stream), blocks); }
void Queue::reduce(Stream stream, const BlockReduce& blocks) { reduceBlocks(device_, streamOf(stream), blocks); }
void Queue::planRows(Stream stream, const RowExchange& exchange) {
  cuda::planRows(device_, streamOf(stream), exchange);
}
void Queue::packRows(Stream stream, const RowExchange& exchange, const Rows& own, std::span<std::byte* const> slots,
                     int64_t room) {
  cuda::packRows(device_, streamOf(stream), exchange, own, slots, room);
}
void Queue::takeRows(Stream stream, const RowExchange& exchange, std::span<const RowSource> sources, const Rows& to) {
  cuda::takeRows(device_, streamOf(stream), exchange, sources, to);
}

void Queue::beginRecording() {
  // Thread-local: other ranks' threads go on allocating and queueing meanwhile.
  device_.check(cudaStreamBeginCapture(device_.compute, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
}

std::unique_ptr<Recording> Queue::endRecording() {
  cudaGraph_t graph = nullptr;
  if (!device_.check(cudaStreamEndCapture(device_.compute, &graph), "cudaStreamEndCapture")) return nullptr;
  auto recording = std::make_unique<Graph>();
  const bool made = device_.check(cudaGraphInstantiate(&recording->executable, graph, 0), "cudaGraphInstantiate");
  cudaGraphDestroy(graph);
  return made ? std::move(recording) : nullptr;
}

void Queue::replay(Recording& recording) {
  device_.check(cudaGraphLaunch(static_cast<Graph&>(recording).executable, device_.compute), "cudaGraphLaunch");
}

Status Queue::status() const {
  if (!dead_.ok()) return dead_;
  if (!device_.failed()) return Status();
  const std::string text = "GPU " + std::to_string(device_.ordinal) + ": " + explain(device_.failedCall, device_.error);
  return Status(Code::device, text);
}

void Queue::abandon(const Status& status) {
  if (dead_.ok()) dead_ = status;
  usable_.store(false);
}

void Queue::free(std::byte* data) {
  if (data == nullptr || !usable_.load()) return;
  {
    const std::lock_guard lock(freeMutex_);
    if (running_) return leftOver_.push_back(data);
  }
  cudaSetDevice(device_.ordinal);
  cudaFree(data);
}

void Queue::freeLeftOver() {
  std::vector<std::byte*> left;
  {
    const std::lock_guard lock(freeMutex_);
    left.swap(leftOver_);
  }
  for (std::byte* data : left) cudaFree(data);
}

}  // namespace meshwork::cuda
