// Sums that are cut into parts: a block sums each part into the device's workspace, and the parts are added in order.
// The number of parts depends on the dims alone, never on the GPU, so that results do not either.
#pragma once
#include <algorithm>
#include <cstdint>

#include "backend/cuda/kernels/dialect.h"

namespace meshwork::cuda {

// What kernels may use of Device::workspace.
constexpr int64_t kWorkspaceBytes = int64_t{16} << 20;

// Where part `part` of `parts` begins.
__host__ __device__ __forceinline__ int64_t partBegin(int64_t count, int64_t part, int64_t parts) {
  return count / parts * part + min(part, count % parts);
}

// How many parts `count` things are cut into: at least `each` things a part, at most `most` parts, and what their sums
// of `bytes` each leave room for.
inline int partsOf(int64_t count, int64_t each, int64_t most, int64_t bytes) {
  const int64_t room = bytes > 0 ? kWorkspaceBytes / bytes : most;
  return static_cast<int>(std::max<int64_t>(1, std::min({count / each, most, room})));
}

}  // namespace meshwork::cuda
