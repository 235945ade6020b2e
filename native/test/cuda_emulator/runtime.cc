// The stand-in's streams, events, memory and graphs.
#include "test/cuda_emulator/runtime.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Work = std::function<bool()>;

// One recording of an event.
struct Point {
  std::mutex mutex;
  std::condition_variable reached;
  bool done = false;
  Clock::time_point when;

  void reach() {
    {
      const std::lock_guard lock(mutex);
      done = true;
      when = Clock::now();
    }
    reached.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex);
    reached.wait(lock, [this] { return done; });
  }
  bool isDone() {
    const std::lock_guard lock(mutex);
    return done;
  }
};

// All devices share one fate: after an error that a device does not survive every call fails.
struct World {
  std::mutex mutex;
  std::map<void*, size_t> memory, pinned;
  size_t held = 0, limit = 0;
  std::string failure;
  std::atomic<bool> failed{false};
  std::atomic<bool> failNext{false}, hangNext{false}, hanging{false};
  std::atomic<uint64_t> graphs{0};
};
World& world() {
  static World instance;
  return instance;
}

thread_local int currentDevice = 0;
thread_local cudaError_t lastError = cudaSuccess;
thread_local cudaStream_t capturing = nullptr;

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) lastError = error;
  return error;
}
// What every call begins with.
cudaError_t alive() { return world().failed.load() ? remember(cudaErrorLaunchFailure) : cudaSuccess; }

void die(const std::string& why) {
  const std::lock_guard lock(world().mutex);
  if (world().failed.load()) return;
  world().failure = why;
  world().failed.store(true);
}

bool faulty() {
  if (world().failNext.exchange(false)) {
    die("an illegal memory access was encountered (asked for by a test)");
    return true;
  }
  if (world().hangNext.exchange(false)) {
    world().hanging.store(true);
    while (world().hanging.load()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

}  // namespace

struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<Work>> work;
};

struct CUevent_st {
  std::mutex mutex;
  std::shared_ptr<Point> point;  // of the last recording

  std::shared_ptr<Point> current() {
    const std::lock_guard lock(mutex);
    return point;
  }
};

struct CUstream_st {
  explicit CUstream_st(int on) : device(on), thread([this] { loop(); }) {}
  ~CUstream_st() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    wake.notify_all();
    thread.join();
  }

  void push(Work work) {
    {
      const std::lock_guard lock(mutex);
      queue.push_back(std::move(work));
    }
    wake.notify_all();
  }

  void loop() {
    for (;;) {
      Work work;
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [this] { return stopping || !queue.empty(); });
        if (queue.empty()) return;
        work = std::move(queue.front());
        queue.pop_front();
      }
      if (!work()) {
        const std::string error = ::meshwork::emulator::takeError();
        die(error.empty() ? "a kernel failed" : error);
      }
    }
  }

  const int device;
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<Work> queue;
  bool stopping = false;
  std::unique_ptr<CUgraph_st> capture;  // of the thread that captures
  std::thread thread;
};

namespace meshwork::emulator {

cudaError_t enqueue(cudaStream_t stream, std::function<bool()> work) {
  if (const cudaError_t error = alive(); error != cudaSuccess) return error;
  if (stream == nullptr) return work() ? cudaSuccess : remember(cudaErrorLaunchFailure);
  if (stream->device != currentDevice) return remember(cudaErrorInvalidResourceHandle);
  const auto kernel = [work = std::move(work)] { return faulty() || world().failed.load() || work(); };
  if (stream->capture != nullptr) {
    stream->capture->work.emplace_back(kernel);
  } else {
    stream->push(kernel);
  }
  return cudaSuccess;
}

void limitMemory(size_t bytes) { world().limit = bytes; }
void failNextLaunch() { world().failNext.store(true); }
void hangNextLaunch() { world().hangNext.store(true); }
void releaseHang() {
  world().hangNext.store(false);
  world().hanging.store(false);
}
uint64_t graphLaunches() { return world().graphs.load(); }
size_t liveAllocations() {
  const std::lock_guard lock(world().mutex);
  return world().memory.size() + world().pinned.size();
}
void resetDevices() {
  World& all = world();
  const std::lock_guard lock(all.mutex);
  all.failure.clear();
  if (!all.failed.exchange(false)) return;
  for (auto* kind : {&all.memory, &all.pinned}) {  // a device that is reset has lost what nobody could give back
    for (const auto& [memory, bytes] : *kind) std::free(memory);
    kind->clear();
  }
  all.held = 0;
}

}  // namespace meshwork::emulator

namespace {

// Queues what is no kernel: it may not be done on the null stream's terms while its own thread captures.
cudaError_t queueOn(cudaStream_t stream, Work work) {
  if (const cudaError_t error = alive(); error != cudaSuccess) return error;
  if (stream == nullptr) return work() ? cudaSuccess : remember(cudaErrorInvalidValue);
  if (stream->capture != nullptr) {
    stream->capture->work.push_back(std::move(work));
  } else {
    stream->push(std::move(work));
  }
  return cudaSuccess;
}

int deviceCount() {
  const char* value = std::getenv("MESHWORK_EMULATED_GPUS");
  return value == nullptr ? 1 : std::atoi(value);
}

cudaError_t allocate(std::map<void*, size_t> World::*kind, void** memory, size_t bytes) {
  if (const cudaError_t error = alive(); error != cudaSuccess) return error;
  if (capturing != nullptr) return remember(cudaErrorStreamCaptureUnsupported);
  World& all = world();
  const std::lock_guard lock(all.mutex);
  *memory = nullptr;
  if (all.limit > 0 && all.held + bytes > all.limit) return remember(cudaErrorMemoryAllocation);
  void* made = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (made == nullptr) return remember(cudaErrorMemoryAllocation);
  if (bytes <= size_t{1} << 20) std::memset(made, 0xff, bytes);
  all.held += bytes;
  (all.*kind)[made] = bytes;
  *memory = made;
  return cudaSuccess;
}

cudaError_t release(std::map<void*, size_t> World::*kind, void* memory) {
  if (memory == nullptr) return cudaSuccess;
  if (capturing != nullptr) return remember(cudaErrorStreamCaptureUnsupported);
  World& all = world();
  const std::lock_guard lock(all.mutex);
  const auto found = (all.*kind).find(memory);
  if (found == (all.*kind).end()) return remember(cudaErrorInvalidValue);
  all.held -= found->second;
  (all.*kind).erase(found);
  std::free(memory);
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaGetDeviceCount(int* count) {
  *count = deviceCount();
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= deviceCount()) return remember(cudaErrorInvalidDevice);
  currentDevice = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= deviceCount()) return remember(cudaErrorInvalidDevice);
  const auto& limits = ::meshwork::emulator::kLimits;
  *value = attribute == cudaDevAttrMultiProcessorCount            ? static_cast<int>(limits.multiprocessors)
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? static_cast<int>(limits.sharedPerBlock)
           : attribute == cudaDevAttrComputeCapabilityMajor       ? 8
                                                                  : 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* left, size_t* all) {
  const std::lock_guard lock(world().mutex);
  *all = world().limit;
  *left = world().limit > world().held ? world().limit - world().held : 0;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return std::exchange(lastError, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  thread_local std::string text;
  const std::lock_guard lock(world().mutex);
  text = error == cudaErrorLaunchFailure ? world().failure : error == cudaErrorMemoryAllocation ? "out of memory" : "";
  if (text.empty()) text = "emulated CUDA error " + std::to_string(error);
  return text.c_str();
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation"
         : error == cudaErrorLaunchFailure  ? "cudaErrorLaunchFailure"
                                            : "cudaError";
}

cudaError_t cudaMalloc(void** memory, size_t bytes) { return allocate(&World::memory, memory, bytes); }
cudaError_t cudaFree(void* memory) { return release(&World::memory, memory); }
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) { return allocate(&World::pinned, memory, bytes); }
cudaError_t cudaFreeHost(void* memory) { return release(&World::pinned, memory); }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return queueOn(stream, [=] {
    if (!world().failed.load() && bytes > 0) std::memmove(to, from, bytes);
    return true;
  });
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return queueOn(stream, [=] {
    if (bytes > 0) std::memset(to, value, bytes);
    return true;
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st(currentDevice);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (capturing != nullptr) return remember(cudaErrorStreamCaptureUnsupported);
  const auto point = std::make_shared<Point>();
  stream->push([point] {
    point->reach();
    return true;
  });
  point->wait();
  return alive();
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::shared_ptr<Point> point = event->current();
  if (point == nullptr) return cudaSuccess;  // never recorded: nothing to wait for
  return queueOn(stream, [point] {
    point->wait();
    return true;
  });
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (const cudaError_t error = alive(); error != cudaSuccess) return error;
  stream->capture = std::make_unique<CUgraph_st>();
  capturing = stream;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const bool active = stream != nullptr && stream->capture != nullptr;
  *status = active ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  capturing = nullptr;
  *graph = stream->capture.release();
  return *graph == nullptr ? remember(cudaErrorInvalidValue) : alive();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (stream->device != currentDevice) return remember(cudaErrorInvalidResourceHandle);
  const auto point = std::make_shared<Point>();
  {
    const std::lock_guard lock(event->mutex);
    event->point = point;
  }
  stream->push([point] {
    point->reach();
    return true;
  });
  return alive();
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (const cudaError_t error = alive(); error != cudaSuccess) return error;
  const std::shared_ptr<Point> point = event->current();
  return point == nullptr || point->isDone() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  const auto first = from->current(), second = to->current();
  if (first == nullptr || second == nullptr || !first->isDone() || !second->isDone()) return cudaErrorNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(second->when - first->when).count();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{std::make_shared<const std::vector<Work>>(graph->work)};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (stream->device != currentDevice) return remember(cudaErrorInvalidResourceHandle);
  world().graphs.fetch_add(1);
  return queueOn(stream, [work = executable->work] {
    for (const Work& each : *work) {
      if (!each()) return false;
    }
    return true;
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
