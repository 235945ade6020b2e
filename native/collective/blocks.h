// Collectives as copies and reductions of blocks, for devices with queues.
#pragma once
#include <span>
#include <vector>

#include "backend/queue.h"
#include "collective/collective.h"

namespace meshwork {

// The product of dims [begin, end).
int64_t dimProduct(const View& view, int begin, int end);

// Queues on the communication stream all that the calls of a group (in group order, one that fit together) move.
void queueCollective(DeviceQueue& queue, std::span<const Collective> calls);

// Rank `me`'s part in an exchange with experts, with memory for its plan.
RowExchange rowExchange(const Collective& call, int me, std::byte* plan);

// The part [begin, begin + size) of `dim` of a contiguous tensor, between its place in the tensor and a buffer that
// holds the part alone.
BlockCopy packPart(const View& tensor, const std::byte* data, int dim, int64_t begin, int64_t size, std::byte* part);
BlockCopy unpackPart(const View& tensor, std::byte* data, int dim, int64_t begin, int64_t size, const std::byte* part);

}  // namespace meshwork
