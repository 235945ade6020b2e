// What tests may ask of meshwork_cuda_emulated.so, which they open with dlopen as the addon does.
#pragma once
#include <cstddef>
#include <cstdint>

namespace meshwork::emulator {

struct Hooks {
  void (*limitMemory)(size_t bytes);
  void (*failNextLaunch)();
  void (*hangNextLaunch)();
  void (*releaseHang)();
  uint64_t (*graphLaunches)();
  size_t (*liveAllocations)();
  void (*resetDevices)();
  // Queues work(context) on an emulated stream: for libraries that take streams, such as the stand-in for NCCL.
  void (*enqueue)(void* stream, void (*work)(void* context), void* context);
};

constexpr const char* kHooksName = "meshworkEmulatorHooks";
using HooksFunction = const Hooks* (*)();

}  // namespace meshwork::emulator
