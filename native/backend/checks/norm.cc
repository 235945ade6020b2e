// The checks of the norm kernels: rows with unit stride, contiguous weights, one statistic per row.
#include "backend/checks/norm.h"

#include "backend/checks/check.h"
#include "runtime/pool.h"

namespace meshwork {
namespace {

static_assert(kMaxNormWidth * 2 * sizeof(double) <= Pool::kWorkspaceBytes);

Status checkRows(const char* name, const Operand& operand, const Operand& x) {
  MESHWORK_TRY(checkRank(name, operand, 2));
  MESHWORK_TRY(checkDType(name, operand, x.view->dtype));
  MESHWORK_TRY(checkSameDims(name, operand, "x", x));
  return checkUnitStride(name, operand);
}

Status checkX(const Operand& x) {
  MESHWORK_TRY(checkFloatType("x", x));
  return checkRows("x", x, x);
}

Status checkRowsOut(const char* name, const Operand& operand, const Operand& x) {
  MESHWORK_TRY(checkRows(name, operand, x));
  return checkNoRepeats(name, operand);
}

Status checkPerColumn(const char* name, const Operand& operand, const Operand& x, DType dtype) {
  MESHWORK_TRY(checkRank(name, operand, 1));
  MESHWORK_TRY(checkDType(name, operand, dtype));
  MESHWORK_TRY(checkDim(name, operand, 0, x.dim(1), "x's width"));
  return checkUnitStride(name, operand);
}

// Weights have the statistics' dtype or x's.
Status checkWeight(const char* name, const Operand& operand, const Operand& x) {
  const DType dtype = operand.view->dtype == x.view->dtype ? x.view->dtype : statisticsOf(x);
  return checkPerColumn(name, operand, x, dtype);
}

Status checkPerRow(const char* name, const Operand& operand, const Operand& x) {
  MESHWORK_TRY(checkRank(name, operand, 1));
  MESHWORK_TRY(checkDType(name, operand, statisticsOf(x)));
  return checkDim(name, operand, 0, x.dim(0), "x's rows");
}

Status checkPerRowOut(const char* name, const Operand& operand, const Operand& x) {
  MESHWORK_TRY(checkPerRow(name, operand, x));
  return checkNoRepeats(name, operand);
}

Status checkGradient(const Call& call, Op op) {
  MESHWORK_TRY(checkCounts(call, op));
  const Operand &dy = call.in[0], &x = call.in[1];
  MESHWORK_TRY(checkX(x));
  MESHWORK_TRY(checkRows("dy", dy, x));
  MESHWORK_TRY(checkWeight("w", call.in[2], x));
  for (int i = 3; i < call.inputs; ++i) MESHWORK_TRY(checkPerRow(i + 1 < call.inputs ? "mean" : "rstd", call.in[i], x));
  MESHWORK_TRY(checkRowsOut("dx", call.out[0], x));
  for (int i = 1; i < call.outputs; ++i) {
    MESHWORK_TRY(checkPerColumn(i == 1 ? "dw" : "db", call.out[i], x, statisticsOf(x)));
  }
  if (x.dim(1) > kMaxNormWidth) return unsupported("a row of x is longer than " + std::to_string(kMaxNormWidth));
  return {};
}

}  // namespace

Status checkLayerNorm(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::layer_norm));
  const Operand &x = call.in[0], &w = call.in[1], &b = call.in[2];
  MESHWORK_TRY(checkX(x));
  MESHWORK_TRY(checkWeight("w", w, x));
  MESHWORK_TRY(checkPerColumn("b", b, x, w.view->dtype));
  MESHWORK_TRY(checkRowsOut("y", call.out[0], x));
  MESHWORK_TRY(checkPerRowOut("mean", call.out[1], x));
  MESHWORK_TRY(checkPerRowOut("rstd", call.out[2], x));
  return checkFloats(call, attr::layer_norm::eps, 1);
}

Status checkLayerNormGrad(const Call& call) { return checkGradient(call, Op::layer_norm_grad); }

Status checkRmsNorm(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::rms_norm));
  const Operand& x = call.in[0];
  MESHWORK_TRY(checkX(x));
  MESHWORK_TRY(checkWeight("w", call.in[1], x));
  MESHWORK_TRY(checkRowsOut("y", call.out[0], x));
  MESHWORK_TRY(checkPerRowOut("rstd", call.out[1], x));
  return checkFloats(call, attr::rms_norm::eps, 1);
}

Status checkRmsNormGrad(const Call& call) { return checkGradient(call, Op::rms_norm_grad); }

}  // namespace meshwork
