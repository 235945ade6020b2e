// Copies between devices' buffers and a memory of host memory: whole buffers out, blocks of tensors in.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/dtype.h"
#include "core/status.h"

namespace meshwork {

// The first `bytes` of a buffer, to byte `offset` of the memory.
struct CopyOut {
  int32_t buffer = 0;
  int64_t bytes = 0;
  int64_t offset = 0;
};

// A rectangle of elements from the memory to a buffer: for each index of the outer dims a run of elements in a row.
struct CopyIn {
  struct Dim {
    int64_t count, sourceStride, targetStride;  // strides in elements
  };
  int32_t buffer = 0;
  DType from = DType::f32, to = DType::f32;
  int64_t source = 0;  // byte in the memory
  int64_t target = 0;  // element in the buffer
  int64_t run = 0;     // elements
  std::vector<Dim> dims;

  // Byte in the memory, and in the buffer, behind the last one that is touched; fails for negative or huge numbers.
  Status extent(int64_t* sourceEnd, int64_t* targetEnd) const;
  // That it fills in the buffer.
  uint64_t bytes() const;
};

// Fails for dtypes that do not convert: all floats do to each other, others only to themselves.
Status checkConversion(DType from, DType to);

// Fills a buffer's image from the memory; the block was checked by extent().
void copyBlock(const CopyIn& block, const std::byte* memory, std::byte* image);

}  // namespace meshwork
