// What the engine's tables and its queue hold.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/engine.h"

namespace meshwork {

inline Status argument(std::string message) { return Status(Code::invalidArgument, std::move(message)); }
inline Status stale(const char* what, int32_t handle) {
  return argument(std::string(what) + " " + std::to_string(handle) + " does not exist (any more)");
}

struct Engine::Buffer {
  Buffer(std::shared_ptr<Backend> owner, int on, int64_t size) : backend(std::move(owner)), device(on), bytes(size) {}
  ~Buffer() { backend->free(device, data, bytes); }
  const std::shared_ptr<Backend> backend;
  const int device;
  const int64_t bytes;
  std::byte* data = nullptr;
};

struct Engine::Executable {
  std::vector<std::unique_ptr<Program>> programs;       // one per device
  std::vector<std::vector<CommunicatorGroup*>> groups;  // of each device's program
  std::vector<std::vector<int32_t>> bound;              // buffer handles of each device
  std::vector<std::unique_ptr<ProgramState>> states;    // of each device's executor
  std::vector<int64_t> arenaBytes;                      // of each device, communicator's scratch included
  int knownGroups = 0;
  int64_t inputBytes = 0;
  int64_t outputBytes = 0;
};

struct Engine::Job {
  std::shared_ptr<Executable> executable;  // null: `task` is the job, done by device 0, or `each`, done by every device
  std::function<void()> task;
  std::function<void(int device)> each;
  Bytes input, output;
  std::vector<std::shared_ptr<Buffer>> held;
  std::vector<std::vector<std::byte*>> buffers;  // of each device
  Completion done;
  std::chrono::steady_clock::time_point begin;
  bool profiling = false;
  int32_t ticket = 0;
  std::atomic<Fate> fate{Fate::open};
};

}  // namespace meshwork
