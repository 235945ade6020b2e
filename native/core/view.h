// How an operand lies in memory: element type, dims and strides. Every kernel sees its operands as views.
#pragma once
#include "core/dtype.h"

namespace meshwork {

constexpr int kMaxRank = 8;

struct View {
  DType dtype = DType::f32;
  int32_t rank = 0;
  int64_t dims[kMaxRank] = {};
  int64_t strides[kMaxRank] = {};  // in elements; 0 repeats (broadcast), never negative

  int64_t count() const {
    int64_t n = 1;
    for (int d = 0; d < rank; ++d) n *= dims[d];
    return n;
  }
  // Row-major with no gaps. Dims of size 1 may have any stride; an empty view is contiguous.
  bool contiguous() const {
    int64_t expected = 1;
    for (int d = rank - 1; d >= 0; --d) {
      if (dims[d] == 0) return true;
      if (dims[d] != 1 && strides[d] != expected) return false;
      expected *= dims[d];
    }
    return true;
  }
};

}  // namespace meshwork
