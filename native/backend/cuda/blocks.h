// Copies and rank-ordered reductions of blocks: the kernels of in-process collectives.
#pragma once
#include <span>

#include "backend/cuda/device.h"
#include "backend/queue.h"

namespace meshwork::cuda {

constexpr int kMaxReduceRanks = 64;

// Queued on `stream`; what they do is said in backend/queue.h. At most kMaxReduceRanks sources and outputs.
void copyBlocks(Device& device, cudaStream_t stream, std::span<const BlockCopy> blocks);
void reduceBlocks(Device& device, cudaStream_t stream, const BlockReduce& reduce);

}  // namespace meshwork::cuda
