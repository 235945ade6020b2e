// Rows that go to their experts' ranks and back: the kernels of expert_exchange.
#pragma once
#include <span>

#include "backend/cuda/device.h"
#include "backend/queue.h"

namespace meshwork::cuda {

// Queued on `stream`; what they do is said in backend/queue.h. At most kMaxReduceRanks ranks.
void planRows(Device& device, cudaStream_t stream, const RowExchange& exchange);
void packRows(Device& device, cudaStream_t stream, const RowExchange& exchange, const Rows& own,
              std::span<std::byte* const> slots, int64_t room);
void takeRows(Device& device, cudaStream_t stream, const RowExchange& exchange, std::span<const RowSource> sources,
              const Rows& to);

}  // namespace meshwork::cuda
