// Device threads, the queue of runs, and the table of executables; buffers are in engine_buffers.cc.
#include "runtime/engine.h"

#include <algorithm>
#include <stdexcept>

#include "core/pin.h"
#include "runtime/engine_parts.h"
#include "runtime/machine.h"

namespace meshwork {
namespace {

constexpr int kMaxDevices = 1024;
constexpr int kMaxThreads = 1024;

CommunicatorOptions communicatorOptions(const EngineOptions& options, const Backend& backend, int threads) {
  CommunicatorOptions communicator;
  communicator.ranks = options.devices;
  communicator.moveData = backend.computes();
  communicator.spin = options.devices * threads <= machineCores();
  communicator.timeoutMs = options.timeoutMs;
  return communicator;
}

}  // namespace

struct Engine::Device {
  Device(int rank, Backend& backend, Communicator& communicator, int threads, bool spin, bool pin)
      : index(rank),
        core(pin ? rank * threads : -1),
        pool(threads, backend.computes() && backend.queue(rank) == nullptr ? Pool::kWorkspaceBytes : 0, spin, core),
        executor(makeExecutor(rank, backend, communicator, pool)) {}
  const int index;
  const int core;  // that its own thread stays on, or -1
  Pool pool;
  const std::unique_ptr<Executor> executor;
  std::shared_ptr<Buffer> arena, nextArena;  // nextArena replaces arena before the next run
  std::vector<ProfileEvent> profile;
  std::thread thread;
};

Status Engine::open(const EngineOptions& options, std::unique_ptr<Engine>* engine) {
  if (options.devices < 1 || options.devices > kMaxDevices) return argument("an engine has 1 to 1024 devices");
  if (options.threads < 0 || options.threads > kMaxThreads)
    return argument("a device has 1 to 1024 threads (0: default)");
  if (options.timeoutMs < 0) return argument("a timeout is not negative");
  std::shared_ptr<Backend> backend;
  Status opened = openBackend(options.backend, options.devices, &backend);
  if (!opened.ok()) return opened;
  int threads = options.threads > 0 ? options.threads : std::max(1, machineCores() / options.devices);
  if (!backend->computes() || backend->queue(0) != nullptr) threads = 1;
  try {
    std::unique_ptr<Communicator> communicator;
    opened = openCommunicator(communicatorOptions(options, *backend, threads), *backend, &communicator);
    if (!opened.ok()) return opened;
    engine->reset(new Engine(options, std::move(backend), std::move(communicator), threads));
    (*engine)->start();
  } catch (const std::exception& error) {  // no memory, or no more threads
    engine->reset();
    return Status(Code::outOfMemory, std::string("cannot start the devices: ") + error.what());
  }
  return Status();
}

Engine::Engine(const EngineOptions& options, std::shared_ptr<Backend> backend,
               std::unique_ptr<Communicator> communicator, int threads)
    : options_(options), backend_(std::move(backend)), communicator_(std::move(communicator)) {
  const bool spin = options.devices * threads <= machineCores();
  for (int d = 0; d < options.devices; ++d) {
    devices_.push_back(std::make_unique<Device>(d, *backend_, *communicator_, threads, spin, options.pin));
  }
  const auto n = static_cast<size_t>(options.devices);
  stats_.threads = threads;
  stats_.arenaBytes.resize(n);
  stats_.bufferBytes.resize(n);
  stats_.counters.resize(n);
}

void Engine::start() {
  for (auto& device : devices_) device->thread = std::thread([this, d = device.get()] { loop(*d); });
}

Engine::~Engine() {
  abort("the engine was closed");
  {
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [&] { return current_ == nullptr; });
  }
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (auto& device : devices_) {
    if (device->thread.joinable()) device->thread.join();
  }
}

Status Engine::checkBinding(const Executable& executable, std::span<const std::span<const int32_t>> buffers) const {
  if (buffers.size() != devices_.size()) return argument("one list of buffers per device");
  for (size_t d = 0; d < buffers.size(); ++d) {
    const Program& program = *executable.programs[d];
    const std::string on = " of device " + std::to_string(d);
    if (buffers[d].size() != program.bufferBytes.size()) {
      return argument(std::to_string(buffers[d].size()) + " buffers for the " +
                      std::to_string(program.bufferBytes.size()) + " that the program" + on + " binds");
    }
    for (size_t i = 0; i < buffers[d].size(); ++i) {
      std::shared_ptr<Buffer> buffer;
      Status status = findBuffer(buffers[d][i], &buffer);
      if (!status.ok()) return status;
      const std::string which = "buffer " + std::to_string(buffers[d][i]);
      if (buffer->device != static_cast<int>(d)) {
        return argument(which + " is on device " + std::to_string(buffer->device) + ", bound by the program" + on);
      }
      if (buffer->bytes < program.bufferBytes[i]) {
        return argument(which + " has " + std::to_string(buffer->bytes) + " bytes, the program" + on + " needs " +
                        std::to_string(program.bufferBytes[i]));
      }
    }
  }
  return Status();
}

Status Engine::load(std::span<const std::span<const int32_t>> programs,
                    std::span<const std::span<const int32_t>> buffers, int64_t inputBytes, int64_t outputBytes,
                    int32_t* handle) {
  if (programs.size() != devices_.size()) return argument("one program per device");
  if (inputBytes < 0 || outputBytes < 0) return argument("staging sizes are not negative");
  auto executable = std::make_shared<Executable>();
  executable->inputBytes = inputBytes;
  executable->outputBytes = outputBytes;
  for (size_t d = 0; d < programs.size(); ++d) {
    const ProgramLimits limits{static_cast<int>(d), devices(), inputBytes, outputBytes};
    Status status = decodeProgram(programs[d], limits, *backend_, &executable->programs.emplace_back());
    if (!status.ok()) return Status(status.code(), "device " + std::to_string(d) + ": " + status.message());
  }
  findScratch(*executable);
  Status status = checkBinding(*executable, buffers);
  if (status.ok()) status = growArenas(*executable);
  if (!status.ok()) return status;
  for (const auto& list : buffers) executable->bound.emplace_back(list.begin(), list.end());
  for (const auto& program : executable->programs) {
    std::vector<CommunicatorGroup*>& groups = executable->groups.emplace_back();
    for (const Group& group : program->groups) groups.push_back(communicator_->group(group.ranks));
  }
  executable->knownGroups = communicator_->groups();
  executable->states.resize(programs.size());
  *handle = executables_.add(std::move(executable));
  return Status();
}

Status Engine::bind(int32_t handle, std::span<const std::span<const int32_t>> buffers) {
  const std::shared_ptr<Executable> executable = executables_.find(handle);
  if (executable == nullptr) return stale("executable", handle);
  Status status = checkBinding(*executable, buffers);
  if (!status.ok()) return status;
  for (size_t d = 0; d < buffers.size(); ++d) executable->bound[d].assign(buffers[d].begin(), buffers[d].end());
  return Status();
}

Status Engine::freeExecutable(int32_t handle) {
  return executables_.remove(handle) ? Status() : stale("executable", handle);
}

// What collectives need besides the programs' own memory lies behind it in the arenas.
void Engine::findScratch(Executable& executable) const {
  for (const auto& program : executable.programs) {
    int64_t scratch = 0;
    for (const Action& action : program->actions) {
      if (action.kind != ActionKind::run) continue;
      const Segment& segment = program->segments[static_cast<size_t>(action.index)];
      for (int next = segment.begin; next < segment.end; ++next) {
        const Instruction& instruction = program->instructions[static_cast<size_t>(next)];
        if (instruction.kernel != nullptr) continue;
        int64_t bytes = 0;
        for (int i = 0; i < instruction.outputs; ++i) {
          bytes += communicator_->scratchBytes(collectiveAt(*program, instruction, i, action.table));
        }
        scratch = std::max(scratch, bytes);
      }
    }
    executable.arenaBytes.push_back(scratch == 0 ? program->arenaBytes : program->scratchBegin() + scratch);
  }
}

// The larger arenas take the places of the old ones when no run is on: before the next one.
Status Engine::growArenas(const Executable& executable) {
  std::vector<std::shared_ptr<Buffer>> grown(devices_.size());
  const std::lock_guard lock(mutex_);
  for (size_t d = 0; d < devices_.size(); ++d) {
    const int64_t need = executable.arenaBytes[d];
    if (stats_.arenaBytes[d] >= need) continue;
    grown[d] = std::make_shared<Buffer>(backend_, static_cast<int>(d), need);
    Status status = backend_->allocate(static_cast<int>(d), need, &grown[d]->data);
    if (!status.ok()) return status;
  }
  for (size_t d = 0; d < devices_.size(); ++d) {
    if (grown[d] == nullptr) continue;
    stats_.arenaBytes[d] = grown[d]->bytes;
    devices_[d]->nextArena = std::move(grown[d]);
  }
  return Status();
}

void Engine::adoptArenas() {
  for (auto& device : devices_) {
    if (device->nextArena != nullptr) device->arena = std::move(device->nextArena);
  }
}

Status Engine::run(int32_t handle, Bytes input, int32_t ticket, Completion done) {
  const std::shared_ptr<Executable> executable = executables_.find(handle);
  if (executable == nullptr) return stale("executable", handle);
  if (input.size != executable->inputBytes) {
    return argument(std::to_string(input.size) + " bytes of input, the executable takes " +
                    std::to_string(executable->inputBytes));
  }
  auto job = std::make_unique<Job>();
  job->buffers.resize(devices_.size());
  for (size_t d = 0; d < devices_.size(); ++d) {
    const std::vector<int64_t>& needs = executable->programs[d]->bufferBytes;
    for (size_t i = 0; i < needs.size(); ++i) {
      const int32_t bound = executable->bound[d][i];
      std::shared_ptr<Buffer> buffer;
      Status status = findBuffer(bound, &buffer);
      if (!status.ok()) return status;
      if (buffer->device != static_cast<int>(d) || buffer->bytes < needs[i]) return stale("buffer", bound);
      job->buffers[d].push_back(buffer->data);
      job->held.push_back(std::move(buffer));
    }
  }
  const auto size = static_cast<size_t>(executable->outputBytes);
  job->executable = executable;
  job->input = std::move(input);
  job->output = Bytes{std::make_unique<std::byte[]>(size), executable->outputBytes};
  job->done = std::move(done);
  job->profiling = profiling_.load();
  job->ticket = ticket;
  enqueue(std::move(job));
  return Status();
}

void Engine::abort(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (current_ != nullptr) communicator_->fail(Status(Code::aborted, reason));
}

bool Engine::cancel(int32_t ticket, const std::string& reason) {
  const Status aborted(Code::aborted, reason);
  std::unique_ptr<Job> waiting;
  {
    const std::lock_guard lock(mutex_);
    if (current_ == nullptr || ticket == 0) return false;
    if (current_->ticket == ticket) {
      Fate found = Fate::open;
      if (!current_->fate.compare_exchange_strong(found, Fate::cancelled)) return false;
      communicator_->fail(aborted);
      return true;
    }
    const auto at = std::find_if(queue_.begin(), queue_.end(), [&](const auto& job) { return job->ticket == ticket; });
    if (at == queue_.end()) return false;
    waiting = std::move(*at);
    queue_.erase(at);
  }
  waiting->done(aborted, Bytes{});
  return true;
}

bool Engine::busy() const {
  const std::lock_guard lock(mutex_);
  return current_ != nullptr;
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void Engine::enqueue(std::unique_ptr<Job> job) {
  const std::lock_guard lock(mutex_);
  if (current_ != nullptr) {
    queue_.push_back(std::move(job));
  } else {
    current_ = std::move(job);
    dispatch();
  }
}

// Wakes the devices for current_. All of them are idle; mutex_ is held.
void Engine::dispatch() {
  adoptArenas();
  current_->begin = std::chrono::steady_clock::now();
  remaining_.store(devices(), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
}

void Engine::loop(Device& device) {
  if (device.core >= 0) pinThread(device.core);
  for (uint32_t seen = 0;; ++seen) {
    while (epoch_.load(std::memory_order_acquire) == seen) epoch_.wait(seen, std::memory_order_acquire);
    if (stop_.load()) return;
    Status status;
    try {
      status = execute(device, *current_);
    } catch (const std::runtime_error& error) {
      status = Status(Code::device, "device " + std::to_string(device.index) + ": " + error.what());
    } catch (const std::exception& error) {
      status = Status(Code::outOfMemory, std::string("device ") + std::to_string(device.index) + ": " + error.what());
    }
    if (!status.ok()) communicator_->fail(status);
    if (remaining_.fetch_sub(1, std::memory_order_acq_rel) == 1) finish();
  }
}

Status Engine::execute(Device& device, Job& job) {
  device.profile.clear();
  if (job.executable == nullptr) {
    if (job.each) {
      job.each(device.index);
    } else if (device.index == 0) {
      job.task();
    }
    return Status();
  }
  const auto d = static_cast<size_t>(device.index);
  DeviceRun run;
  run.program = job.executable->programs[d].get();
  run.groups = job.executable->groups[d];
  run.knownGroups = job.executable->knownGroups;
  run.state = &job.executable->states[d];
  run.arena = device.arena == nullptr ? nullptr : device.arena->data;
  run.buffers = job.buffers[d];
  run.input = job.input.data.get();
  run.output = job.output.data.get();
  run.fate = &job.fate;
  run.unbuffered = options_.unbuffered;
  run.timeoutMs = options_.timeoutMs;
  run.begin = job.begin;
  run.profile = job.profiling ? &device.profile : nullptr;
  return device.executor->run(run);
}

// On the thread of the last device: takes the run's result, starts the next run, then completes. A failed run takes
// those queued behind it along, one that was cancelled does not.
void Engine::finish() {
  std::vector<std::unique_ptr<Job>> over;
  Status status;
  {
    const std::lock_guard lock(mutex_);
    status = communicator_->failure();
    const Status left = communicator_->reset();
    if (status.ok()) status = left;
    updateStats(*current_);
    const bool alone = status.ok() || current_->fate.load() == Fate::cancelled;
    over.push_back(std::move(current_));
    if (!alone) {
      std::move(queue_.begin(), queue_.end(), std::back_inserter(over));
      queue_.clear();
    }
    if (!queue_.empty()) {
      current_ = std::move(queue_.front());
      queue_.pop_front();
      dispatch();
    } else {
      idle_.notify_all();
    }
  }
  for (const auto& job : over) {
    job->done(status, status.ok() ? std::move(job->output) : Bytes{});
    if (!status.ok() && job == over.front())
      status = Status(Code::aborted, "the run before it failed: " + status.message());
  }
}

// All devices are idle; mutex_ is held.
void Engine::updateStats(const Job& job) {
  if (job.executable == nullptr) return;
  ++stats_.runs;
  stats_.lastSeconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - job.begin).count();
  stats_.profile.clear();
  for (auto& device : devices_) {
    stats_.counters[static_cast<size_t>(device->index)] = device->executor->counters();
    if (!job.profiling) continue;
    std::move(device->profile.begin(), device->profile.end(), std::back_inserter(stats_.profile));
  }
}

}  // namespace meshwork
