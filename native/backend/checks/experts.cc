// The checks of routing, grouped products, gates and sums of rows of experts.
#include "backend/checks/experts.h"

#include "backend/checks/check.h"

namespace meshwork {
namespace {

constexpr int32_t kMostExperts = 1 << 16;  // expert_capacity counts in a thread's scratch
constexpr int64_t kMostRows = INT32_MAX;   // row numbers are i32

Status checkIds(const char* name, const Operand& ids, int rank) {
  MESHWORK_TRY(checkDType(name, ids, DType::i32));
  MESHWORK_TRY(checkRank(name, ids, rank));
  MESHWORK_TRY(checkContiguous(name, ids));
  if (ids.view->count() > kMostRows) return refuse(std::string(name) + " has too many elements");
  return {};
}

// Rows [r, n] of floats with unit stride in n.
Status checkRows(const char* name, const Operand& rows) {
  MESHWORK_TRY(checkFloatType(name, rows));
  MESHWORK_TRY(checkRank(name, rows, 2));
  return checkUnitStride(name, rows);
}

Status checkResultRows(const char* name, const Operand& rows, const Operand& like) {
  MESHWORK_TRY(checkDType(name, rows, like.view->dtype));
  MESHWORK_TRY(checkRows(name, rows));
  return checkNoRepeats(name, rows);
}

}  // namespace

Status checkTopk(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::topk));
  const Operand &x = call.in[0], &values = call.out[0], &indices = call.out[1];
  MESHWORK_TRY(checkRows("topk: x", x));
  MESHWORK_TRY(checkResultRows("topk: values", values, x));
  MESHWORK_TRY(checkDType("topk: indices", indices, DType::i32));
  MESHWORK_TRY(checkSameDims("topk: indices", indices, "values", values));
  MESHWORK_TRY(checkUnitStride("topk: indices", indices));
  MESHWORK_TRY(checkNoRepeats("topk: indices", indices));
  MESHWORK_TRY(checkDim("topk: values", values, 0, x.dim(0), "x's rows"));
  if (values.dim(1) > x.dim(1) || x.dim(1) > kMostRows) return refuse("topk: more are asked for than a row has");
  return {};
}

Status checkExpertCapacity(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::expert_capacity));
  MESHWORK_TRY(checkIds("expert_capacity: ids", call.in[0], 3));
  MESHWORK_TRY(checkIds("expert_capacity: kept", call.out[0], 3));
  MESHWORK_TRY(checkSameDims("expert_capacity: kept", call.out[0], "ids", call.in[0]));
  const int32_t experts = call.attrs[attr::expert_capacity::experts];
  if (experts < 0 || experts > kMostExperts) return refuse("expert_capacity: " + std::to_string(experts) + " experts");
  if (call.attrs[attr::expert_capacity::capacity] < 0) return refuse("expert_capacity: the capacity is negative");
  return {};
}

Status checkExpertSort(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::expert_sort));
  MESHWORK_TRY(checkIds("expert_sort: ids", call.in[0], 1));
  MESHWORK_TRY(checkIds("expert_sort: order", call.out[0], 1));
  MESHWORK_TRY(checkIds("expert_sort: place", call.out[1], 1));
  MESHWORK_TRY(checkIds("expert_sort: counts", call.out[2], 1));
  MESHWORK_TRY(checkSameDims("expert_sort: order", call.out[0], "ids", call.in[0]));
  return checkSameDims("expert_sort: place", call.out[1], "ids", call.in[0]);
}

Status checkPermuteRows(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::permute_rows));
  const Operand &x = call.in[0], &index = call.in[1], &y = call.out[0];
  MESHWORK_TRY(checkFloatType("permute_rows: x", x));
  MESHWORK_TRY(checkRank("permute_rows: x", x, 3));
  MESHWORK_TRY(checkUnitStride("permute_rows: x", x));
  MESHWORK_TRY(checkIds("permute_rows: index", index, 1));
  MESHWORK_TRY(checkResultRows("permute_rows: y", y, x));
  MESHWORK_TRY(checkDim("permute_rows: y", y, 0, index.dim(0), "as many as index"));
  return checkDim("permute_rows: y", y, 1, x.dim(2), "x's width");
}

Status checkGroupedMatmul(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::grouped_matmul));
  const Operand &x = call.in[0], &counts = call.in[1], &w = call.in[2], &y = call.out[0];
  MESHWORK_TRY(checkRows("grouped_matmul: x", x));
  MESHWORK_TRY(checkIds("grouped_matmul: counts", counts, 1));
  MESHWORK_TRY(checkDType("grouped_matmul: w", w, x.view->dtype));
  MESHWORK_TRY(checkRank("grouped_matmul: w", w, 3));
  if (w.dim(1) > 1 && w.dim(2) > 1 && w.stride(1) != 1 && w.stride(2) != 1) {
    return refuse("grouped_matmul: one of the last two dims of w must have stride 1");
  }
  MESHWORK_TRY(checkResultRows("grouped_matmul: y", y, x));
  MESHWORK_TRY(checkDim("grouped_matmul: y", y, 0, x.dim(0), "x's rows"));
  MESHWORK_TRY(checkDim("grouped_matmul: w", w, 1, x.dim(1), "x's width"));
  MESHWORK_TRY(checkDim("grouped_matmul: y", y, 1, w.dim(2), "w's last dim"));
  return checkTable(call, attr::grouped_matmul::start);
}

Status checkGroupedMatmulGrad(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::grouped_matmul_grad));
  const Operand &a = call.in[0], &b = call.in[1], &counts = call.in[2], &d = call.out[0];
  MESHWORK_TRY(checkRows("grouped_matmul_grad: a", a));
  MESHWORK_TRY(checkRows("grouped_matmul_grad: b", b));
  MESHWORK_TRY(checkDType("grouped_matmul_grad: b", b, a.view->dtype));
  MESHWORK_TRY(checkDim("grouped_matmul_grad: b", b, 0, a.dim(0), "a's rows"));
  MESHWORK_TRY(checkIds("grouped_matmul_grad: counts", counts, 1));
  MESHWORK_TRY(checkDType("grouped_matmul_grad: d", d, a.view->dtype));
  MESHWORK_TRY(checkRank("grouped_matmul_grad: d", d, 3));
  MESHWORK_TRY(checkUnitStride("grouped_matmul_grad: d", d));
  MESHWORK_TRY(checkNoRepeats("grouped_matmul_grad: d", d));
  MESHWORK_TRY(checkDim("grouped_matmul_grad: d", d, 1, a.dim(1), "a's width"));
  MESHWORK_TRY(checkDim("grouped_matmul_grad: d", d, 2, b.dim(1), "b's width"));
  return checkTable(call, attr::grouped_matmul_grad::start);
}

namespace {

Status checkGate(const Call& call, Op op, int rows) {
  MESHWORK_TRY(checkCounts(call, op));
  const Operand& a = call.in[0];
  MESHWORK_TRY(checkRows("expert_gate: a", a));
  MESHWORK_TRY(checkIds("expert_gate: counts", call.in[2], 1));
  for (int i = 1; i < call.inputs; ++i) {
    if (i == 2) continue;
    MESHWORK_TRY(checkDType("expert_gate: an operand", call.in[i], a.view->dtype));
    MESHWORK_TRY(checkRows("expert_gate: an operand", call.in[i]));
    MESHWORK_TRY(checkSameDims("expert_gate: an operand", call.in[i], "a", a));
  }
  for (int i = 0; i < rows; ++i) {
    MESHWORK_TRY(checkResultRows("expert_gate: a result", call.out[i], a));
    MESHWORK_TRY(checkSameDims("expert_gate: a result", call.out[i], "a", a));
  }
  if (call.attrs[0] < 0 || call.attrs[0] > 3) {
    return refuse("expert_gate: activation " + std::to_string(call.attrs[0]) + " is not known");
  }
  return {};
}

// Choices [r, k, n] of floats with unit stride in n.
Status checkChoices(const char* name, const Operand& x) {
  MESHWORK_TRY(checkFloatType(name, x));
  MESHWORK_TRY(checkRank(name, x, 3));
  return checkUnitStride(name, x);
}

Status checkWeights(const char* name, const Operand& weights, const Operand& x) {
  MESHWORK_TRY(checkDType(name, weights, x.view->dtype));
  MESHWORK_TRY(checkRank(name, weights, 2));
  MESHWORK_TRY(checkContiguous(name, weights));
  MESHWORK_TRY(checkDim(name, weights, 0, x.dim(0), "x's rows"));
  return checkDim(name, weights, 1, x.dim(1), "x's choices");
}

Status checkSums(const char* name, const Operand& rows, const Operand& x) {
  MESHWORK_TRY(checkDType(name, rows, x.view->dtype));
  MESHWORK_TRY(checkRows(name, rows));
  MESHWORK_TRY(checkDim(name, rows, 0, x.dim(0), "x's rows"));
  return checkDim(name, rows, 1, x.dim(2), "x's width");
}

}  // namespace

Status checkExpertGate(const Call& call) { return checkGate(call, Op::expert_gate, 1); }
Status checkExpertGateGrad(const Call& call) { return checkGate(call, Op::expert_gate_grad, 2); }

Status checkExpertCombine(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::expert_combine));
  MESHWORK_TRY(checkChoices("expert_combine: x", call.in[0]));
  MESHWORK_TRY(checkWeights("expert_combine: weights", call.in[1], call.in[0]));
  MESHWORK_TRY(checkSums("expert_combine: y", call.out[0], call.in[0]));
  return checkNoRepeats("expert_combine: y", call.out[0]);
}

Status checkExpertCombineGrad(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::expert_combine_grad));
  MESHWORK_TRY(checkChoices("expert_combine_grad: x", call.in[0]));
  MESHWORK_TRY(checkSums("expert_combine_grad: dy", call.in[1], call.in[0]));
  return checkWeights("expert_combine_grad: dweights", call.out[0], call.in[0]);
}

}  // namespace meshwork
