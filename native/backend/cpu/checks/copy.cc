// The check of the copy kernel: same dims and dtype, and no element of y twice.
#include "backend/cpu/checks/copy.h"

#include "backend/cpu/checks/check.h"

namespace meshwork {

Status checkCopy(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::copy));
  const Operand &x = call.in[0], &y = call.out[0];
  MESHWORK_TRY(checkSameDims("copy: x", x, "y", y));
  MESHWORK_TRY(checkDType("copy: y", y, x.view->dtype));
  return checkNoRepeats("copy: y", y);
}

}  // namespace meshwork
