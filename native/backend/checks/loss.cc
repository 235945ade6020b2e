// The checks of the cross-entropy kernels: rows of logits, and one number per row in all else. Targets are run's
// concern.
#include "backend/checks/loss.h"

#include "backend/checks/check.h"

namespace meshwork {
namespace {

// logits[r, v] and targets[r].
Status checkRows(const Call& call, Op op) {
  MESHWORK_TRY(checkCounts(call, op));
  const Operand &logits = call.in[0], &targets = call.in[1];
  MESHWORK_TRY(checkFloatType("logits", logits));
  MESHWORK_TRY(checkRank("logits", logits, 2));
  MESHWORK_TRY(checkUnitStride("logits", logits));
  MESHWORK_TRY(checkRank("targets", targets, 1));
  MESHWORK_TRY(checkDType("targets", targets, DType::i32));
  return checkDim("targets", targets, 0, logits.dim(0), "the logits' rows");
}

Status checkPerRow(const char* name, const Operand& operand, const Operand& logits) {
  MESHWORK_TRY(checkRank(name, operand, 1));
  MESHWORK_TRY(checkDType(name, operand, statisticsOf(logits)));
  return checkDim(name, operand, 0, logits.dim(0), "the logits' rows");
}

Status checkResult(const char* name, const Operand& operand, const Operand& logits) {
  MESHWORK_TRY(checkPerRow(name, operand, logits));
  return checkNoRepeats(name, operand);
}

}  // namespace

Status checkCrossEntropy(const Call& call) {
  MESHWORK_TRY(checkRows(call, Op::cross_entropy));
  MESHWORK_TRY(checkResult("nll", call.out[0], call.in[0]));
  return checkResult("lse", call.out[1], call.in[0]);
}

Status checkCrossEntropyPartial(const Call& call) {
  MESHWORK_TRY(checkRows(call, Op::cross_entropy_partial));
  MESHWORK_TRY(checkPerRow("max", call.in[2], call.in[0]));
  MESHWORK_TRY(checkResult("sumexp", call.out[0], call.in[0]));
  MESHWORK_TRY(checkResult("target_logit", call.out[1], call.in[0]));
  return checkTable(call, attr::cross_entropy_partial::start);
}

Status checkCrossEntropyGrad(const Call& call) {
  MESHWORK_TRY(checkRows(call, Op::cross_entropy_grad));
  MESHWORK_TRY(checkPerRow("lse", call.in[2], call.in[0]));
  MESHWORK_TRY(checkPerRow("dnll", call.in[3], call.in[0]));
  const Operand& out = call.out[0];
  MESHWORK_TRY(checkDType("dlogits", out, call.in[0].view->dtype));
  MESHWORK_TRY(checkSameDims("dlogits", out, "logits", call.in[0]));
  MESHWORK_TRY(checkUnitStride("dlogits", out));
  MESHWORK_TRY(checkNoRepeats("dlogits", out));
  return checkTable(call, attr::cross_entropy_grad::start);
}

}  // namespace meshwork
