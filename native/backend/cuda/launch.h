// Starts kernels. Kernel files use launch() and never <<<>>>, so that the same sources compile as plain C++ for the
// emulator of native/test/cuda_emulator, whose <cuda_runtime.h> comes first there.
#pragma once
#include <utility>

#include "backend/cuda/device.h"

namespace meshwork::cuda {

constexpr size_t kSharedWithoutAsking = size_t{48} << 10;

// Queues a grid on `stream`; `kernel` is a __global__ function. Never waits. A failure is recorded in the device.
// A block may use up to device.sharedMemory bytes of dynamic shared memory. Launches nothing for an empty grid.
template <class... Parameters, class... Arguments>
void launchOn(Device& device, cudaStream_t stream, dim3 grid, dim3 block, size_t sharedBytes,
              void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (sharedBytes > kSharedWithoutAsking) {
    const auto bytes = static_cast<int>(sharedBytes);
    const auto* function = reinterpret_cast<const void*>(kernel);
    if (!device.check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                      "cudaFuncSetAttribute")) {
      return;
    }
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = sharedBytes;
  config.stream = stream;
  device.check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...),
               "cudaLaunchKernelEx");
}

// Queues a grid on the compute stream: what kernels do.
template <class... Parameters, class... Arguments>
void launch(Device& device, dim3 grid, dim3 block, size_t sharedBytes, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  launchOn(device, device.compute, grid, block, sharedBytes, kernel, std::forward<Arguments>(arguments)...);
}

// Blocks for `count` things, `each` a block, at most what keeps every multiprocessor busy `waves` times: kernels loop
// with a stride of the grid, so that a fixed share of the work is a block's whatever the count.
inline unsigned blocksFor(const Device& device, int64_t count, int64_t each, int waves = 16) {
  const int64_t wanted = (count + each - 1) / each;
  const int64_t most = int64_t{device.multiprocessors} * waves;
  return static_cast<unsigned>(wanted < most ? wanted : most);
}

}  // namespace meshwork::cuda
