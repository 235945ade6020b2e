// A nest of loops over the elements of several operands, with as few dims as possible. Shared by the kernels of all
// backends.
#pragma once
#include "core/inline.h"
#include "core/view.h"

namespace meshwork {

// Loops dims[0] (outermost) to dims[rank - 1]; operand k steps by strides[k][d].
template <int kOperands>
struct Nest {
  int rank = 0;
  int64_t dims[kMaxRank];
  int64_t strides[kOperands][kMaxRank];

  // Adds a loop, keeping the first operand's strides falling (the new one inside of equal ones). Size 1 is left out.
  MESHWORK_INLINE void add(int64_t size, const int64_t (&steps)[kOperands]) {
    if (size == 1) return;
    int at = rank++;
    for (; at > 0 && strides[0][at - 1] < steps[0]; --at) {
      dims[at] = dims[at - 1];
      for (int k = 0; k < kOperands; ++k) strides[k][at] = strides[k][at - 1];
    }
    dims[at] = size;
    for (int k = 0; k < kOperands; ++k) strides[k][at] = steps[k];
  }

  // Joins neighbouring loops that step through every operand as one loop would.
  MESHWORK_INLINE void join() {
    int last = 0;
    for (int d = 1; d < rank; ++d) {
      bool joins = true;
      for (int k = 0; k < kOperands; ++k) joins = joins && strides[k][last] == strides[k][d] * dims[d];
      const int to = joins ? last : ++last;
      dims[to] = joins ? dims[last] * dims[d] : dims[d];
      for (int k = 0; k < kOperands; ++k) strides[k][to] = strides[k][d];
    }
    rank = rank == 0 ? 0 : last + 1;
  }

  // The product of the first `loops` sizes.
  MESHWORK_INLINE int64_t count(int loops) const {
    int64_t n = 1;
    for (int d = 0; d < loops; ++d) n *= dims[d];
    return n;
  }

  // Where operand k is at iteration `index` (row-major) of the first `loops` loops.
  MESHWORK_INLINE int64_t offset(int k, int64_t index, int loops) const {
    int64_t at = 0;
    for (int d = loops - 1; d >= 0; --d) {
      at += (index % dims[d]) * strides[k][d];
      index /= dims[d];
    }
    return at;
  }
};

}  // namespace meshwork
