// The checks of the copy kernels: dims that fit, one dtype, and no element of y twice.
#include "backend/checks/copy.h"

#include "backend/checks/check.h"

namespace meshwork {

Status checkCopy(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::copy));
  const Operand &x = call.in[0], &y = call.out[0];
  MESHWORK_TRY(checkSameDims("copy: x", x, "y", y));
  MESHWORK_TRY(checkDType("copy: y", y, x.view->dtype));
  return checkNoRepeats("copy: y", y);
}

Status checkShardSlice(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::shard_slice));
  const Operand &x = call.in[0], &y = call.out[0];
  const int32_t dim = call.attrs[attr::shard_slice::dim];
  MESHWORK_TRY(checkRank("shard_slice: x", x, y.view->rank));
  if (dim < 0 || dim >= y.view->rank) {
    return refuse("shard_slice: dim " + std::to_string(dim) + " is outside " + dimsOf(*y.view));
  }
  for (int d = 0; d < y.view->rank; ++d) {
    if (d != dim) MESHWORK_TRY(checkDim("shard_slice: x", x, d, y.dim(d), "the size in y"));
  }
  if (y.dim(dim) > x.dim(dim)) {
    return refuse("shard_slice: y " + dimsOf(*y.view) + " is larger than x " + dimsOf(*x.view));
  }
  MESHWORK_TRY(checkDType("shard_slice: y", y, x.view->dtype));
  MESHWORK_TRY(checkTable(call, attr::shard_slice::start));
  return checkNoRepeats("shard_slice: y", y);
}

}  // namespace meshwork
