// Sums (and maxima, minima) of several ranks' elements, in the order of ranks, and copies of large blocks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "collective/collective.h"
#include "core/dtype.h"

namespace meshwork {

// Ranks' arrays from a place on, in bytes.
struct Sources {
  std::span<const std::byte* const> data;
  int64_t offset;
};
struct Targets {
  std::span<std::byte* const> data;
  int64_t offset;
};

// Reduces `count` elements of all sources and writes them to every target; a target may be a source. bf16 sums are made
// in f32. `stream`: past the caches, for results that are too large to be found there.
using Combine = void (*)(const Sources& from, const Targets& to, int64_t count, bool stream);

// For f32, f64, bf16 and i32.
Combine combineOf(DType dtype, Reduction reduction);

// As memcpy, past the caches.
void streamBytes(std::byte* to, const std::byte* from, int64_t bytes);

}  // namespace meshwork
