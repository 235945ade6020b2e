// The checks of the softmax kernels: rows of one dtype and the same dims, with unit stride.
#include "backend/checks/softmax.h"

#include "backend/checks/check.h"

namespace meshwork {
namespace {

Status checkRows(const char* name, const Operand& operand, const Operand& first) {
  MESHWORK_TRY(checkRank(name, operand, 2));
  MESHWORK_TRY(checkDType(name, operand, first.view->dtype));
  MESHWORK_TRY(checkSameDims(name, operand, "input 0", first));
  return checkUnitStride(name, operand);
}

Status checkAll(const Call& call, Op op) {
  MESHWORK_TRY(checkCounts(call, op));
  MESHWORK_TRY(checkFloatType("input 0", call.in[0]));
  for (int i = 0; i < call.inputs; ++i) MESHWORK_TRY(checkRows("input", call.in[i], call.in[0]));
  MESHWORK_TRY(checkRows("output", call.out[0], call.in[0]));
  return checkNoRepeats("output", call.out[0]);
}

}  // namespace

Status checkSoftmax(const Call& call) { return checkAll(call, Op::softmax); }
Status checkSoftmaxGrad(const Call& call) { return checkAll(call, Op::softmax_grad); }

}  // namespace meshwork
