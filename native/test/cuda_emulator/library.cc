// Makes the emulated backend a library that stands for meshwork_cuda.so; its entry is native/backend/cuda/backend.cc's.
#include "test/cuda_emulator/hooks.h"
#include "test/cuda_emulator/runtime.h"

static void enqueueWork(void* stream, void (*work)(void* context), void* context) {
  meshwork::emulator::enqueue(static_cast<cudaStream_t>(stream), [=] {
    work(context);
    return true;
  });
}

extern "C" __attribute__((visibility("default"))) const meshwork::emulator::Hooks* meshworkEmulatorHooks() {
  using namespace meshwork::emulator;
  static const Hooks hooks{limitMemory,   failNextLaunch,  hangNextLaunch, releaseHang,
                           graphLaunches, liveAllocations, resetDevices,   enqueueWork};
  return &hooks;
}
