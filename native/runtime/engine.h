// An engine: the devices of one mesh in this process, their memory and programs, and the queue of runs.
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "backend/backend.h"
#include "collective/collective.h"
#include "collective/open.h"
#include "io/host_memory.h"
#include "runtime/executor.h"
#include "runtime/handles.h"
#include "runtime/program.h"
#include "runtime/transfer.h"

namespace meshwork {

struct EngineOptions {
  std::string backend = "cpu";
  int devices = 1;
  int threads = 0;          // of each device; 0: the machine's cores shared out, at least one
  bool pin = false;         // every thread stays on a core of its own, as far as there are cores
  bool unbuffered = false;  // a transfer ends when its sends were received (tests)
  int64_t timeoutMs = 60000;
};

struct EngineStats {
  int threads = 1;
  int64_t runs = 0;
  double lastSeconds = 0;  // of the last run, from its dispatch to its last device
  std::vector<int64_t> arenaBytes;
  std::vector<int64_t> bufferBytes;
  std::vector<Counters> counters;     // of each device
  std::vector<ProfileEvent> profile;  // of the last run, when profiling
};

// The bytes a run or a read gives back.
struct Bytes {
  std::unique_ptr<std::byte[]> data;
  int64_t size = 0;
};

// All functions are the owner's thread's, which may be any one thread; completions come on the engine's threads.
class Engine {
 public:
  using Completion = std::function<void(const Status&, Bytes)>;

  static Status open(const EngineOptions& options, std::unique_ptr<Engine>* engine);
  // Aborts what runs, completes everything with `aborted`, and joins all threads.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  int devices() const { return static_cast<int>(devices_.size()); }
  const char* backend() const { return backend_->name(); }

  // Zeroed memory of a device.
  Status allocate(int device, int64_t bytes, int32_t* buffer);
  // The handle is gone at once; the memory goes when no run uses it any more.
  Status freeBuffer(int32_t buffer);
  Status bufferSize(int32_t buffer, int64_t* bytes) const;
  // Host memory of all buffers that have a handle; 0 where the backend holds none.
  int64_t heldBytes() const;
  // Copies at once; refused while a run is on or queued.
  Status write(int32_t buffer, int64_t offset, const std::byte* from, int64_t bytes);
  Status read(int32_t buffer, int64_t offset, std::byte* to, int64_t bytes);
  // Copies in turn with the runs.
  Status queueWrite(int32_t buffer, int64_t offset, Bytes from, Completion done);
  Status queueRead(int32_t buffer, int64_t offset, int64_t bytes, Completion done);
  // Many copies in turn with the runs, between buffers and host memory, by each buffer's own device at the same time.
  Status queueSnapshot(std::span<const CopyOut> copies, std::shared_ptr<HostMemory> memory, Completion done);
  Status queueRestore(std::vector<CopyIn> blocks, std::shared_ptr<HostMemory> memory, Completion done);

  // One program and one list of bound buffers per device. Grows the arenas, so that no run allocates.
  Status load(std::span<const std::span<const int32_t>> programs, std::span<const std::span<const int32_t>> buffers,
              int64_t inputBytes, int64_t outputBytes, int32_t* executable);
  // Binds other buffers from the next run on.
  Status bind(int32_t executable, std::span<const std::span<const int32_t>> buffers);
  Status freeExecutable(int32_t executable);

  // Queues a run. `done` comes exactly once if and only if the result is ok. `ticket` names it for cancel(); 0: no
  // name.
  Status run(int32_t executable, Bytes input, int32_t ticket, Completion done);
  // Gives up a run that is on or queued, unless it has begun to write bound buffers: it completes with `aborted` and
  // has changed nothing; those queued behind it go on. False when it is too late.
  bool cancel(int32_t ticket, const std::string& reason);
  // Stops the run that is on, and those queued behind it.
  void abort(const std::string& reason);
  bool busy() const;

  void setProfiling(bool on) { profiling_.store(on); }
  // Not exact while a run is on: gives the state after the last finished one.
  EngineStats stats() const;

 private:
  struct Device;
  struct Buffer;
  struct Executable;
  struct Job;

  Engine(const EngineOptions& options, std::shared_ptr<Backend> backend, std::unique_ptr<Communicator> communicator,
         int threads);
  void start();
  void loop(Device& device);
  Status execute(Device& device, Job& job);
  void enqueue(std::unique_ptr<Job> job);
  void dispatch();
  void finish();
  void updateStats(const Job& job);
  Status findBuffer(int32_t handle, std::shared_ptr<Buffer>* buffer) const;
  Status checkRange(const Buffer& buffer, int64_t offset, int64_t bytes) const;
  Status checkBinding(const Executable& executable, std::span<const std::span<const int32_t>> buffers) const;
  void findScratch(Executable& executable) const;
  Status growArenas(const Executable& executable);
  void adoptArenas();

  const EngineOptions options_;
  const std::shared_ptr<Backend> backend_;
  std::unique_ptr<Communicator> communicator_;
  std::vector<std::unique_ptr<Device>> devices_;
  Handles<Buffer> buffers_;
  Handles<Executable> executables_;
  std::atomic<bool> profiling_{false};

  mutable std::mutex mutex_;  // guards all below
  std::deque<std::unique_ptr<Job>> queue_;
  std::unique_ptr<Job> current_;
  EngineStats stats_;
  std::condition_variable idle_;  // current_ became null

  std::atomic<uint32_t> epoch_{0};  // grows with every job; the devices wait on it
  std::atomic<int> remaining_{0};   // devices that have not finished the current job
  std::atomic<bool> stop_{false};
};

}  // namespace meshwork
