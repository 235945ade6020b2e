// What kernel tests run: the CPU's kernels of every instruction set or, in the build for the emulator, the CUDA
// kernels, which count as one portable instruction set.
#pragma once
#include "backend/cpu/isa.h"
#include "backend/kernel.h"
#include "test/harness.h"

#if defined(MESHWORK_CUDA_EMULATOR)

#include <algorithm>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/registry.h"

namespace meshwork::test {

constexpr int kFuzzCases = 600;  // an emulated kernel takes long

inline bool targetHas(Isa isa) { return isa == Isa::portable; }
inline Isa targetIsa() { return Isa::portable; }
inline const Kernel* kernelOf(Op op, Isa isa) { return targetHas(isa) ? cuda::findKernel(op) : nullptr; }

// Runs a call on an emulated device. `threads` stands for all that must not show in the result: the number of
// multiprocessors and the order in which blocks and threads run. What the emulator finds fails the test.
inline void runKernel(const Kernel& kernel, Call call, int threads) {
  static std::vector<std::byte> workspace(size_t{32} << 20, std::byte{0xff});
  std::fill_n(workspace.begin(), size_t{1} << 16, std::byte{0xff});
  cuda::Device device;
  device.multiprocessors = 1 + threads;
  device.computeCapability = 90;
  device.sharedMemory = static_cast<int>(emulator::kLimits.sharedPerBlock);
  device.workspace = workspace.data();
  device.workspaceBytes = static_cast<int64_t>(workspace.size());
  call.device = &device;
  emulator::setSeed(static_cast<uint64_t>(threads));
  kernel.run(call);
  const std::string error = emulator::takeError();
  if (!error.empty()) fail(__FILE__, __LINE__, std::string(kOpInfo[static_cast<int>(kernel.op)].name) + ": " + error);
  CHECK(!device.failed() || !error.empty());
}

}  // namespace meshwork::test

#else

#include <map>

#include "runtime/pool.h"
#include "test/emulated_amx.h"

namespace meshwork::test {

constexpr int kFuzzCases = 3000;

inline bool targetHas(Isa isa) { return isaTestable(isa); }
inline Isa targetIsa() { return activeIsa(); }
inline const Kernel* kernelOf(Op op, Isa isa) { return testableKernel(op, isa); }

inline void runKernel(const Kernel& kernel, Call call, int threads) {
  static std::map<int, Pool> pools;
  call.pool = &pools.try_emplace(threads, threads).first->second;
  kernel.run(call);
}

}  // namespace meshwork::test

#endif
