// The data movement of collectives among ranks that share memory: each rank does its share.
#pragma once
#include <span>
#include <string>

#include "collective/collective.h"

namespace meshwork {

// Whether the calls of all ranks of a group (in group order) fit together, as far as rank `me` reads or writes.
// `ranks` are the group's ranks in the engine, for the message.
Status checkCalls(std::span<const Collective> calls, std::span<const int32_t> ranks, int me);

// Rank `me`'s share of the work. all_reduce: chunk `me` of every rank's y; the others: rank `me`'s own y.
void moveShare(std::span<const Collective> calls, int me, Pool& pool);

// Copies with the pool's threads.
void copyBytes(std::byte* to, const std::byte* from, int64_t bytes, Pool& pool);

// For messages: all_reduce "h.0.mlp" of f32[2, 3].
std::string describe(const Collective& call);

}  // namespace meshwork
