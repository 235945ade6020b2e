// The checks of the embedding kernels: rows with unit stride, ids for each of them. What ids hold is run's concern.
#include "backend/checks/embedding.h"

#include "backend/checks/check.h"

namespace meshwork {
namespace {

Status checkRows(const char* name, const Operand& operand) {
  MESHWORK_TRY(checkRank(name, operand, 2));
  return checkUnitStride(name, operand);
}

Status checkIds(const Call& call, const Operand& rows, const char* what) {
  MESHWORK_TRY(checkRank("ids", call.in[1], 1));
  MESHWORK_TRY(checkDType("ids", call.in[1], DType::i32));
  MESHWORK_TRY(checkDim("ids", call.in[1], 0, rows.dim(0), what));
  return checkTable(call, 0);
}

}  // namespace

Status checkEmbedding(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::embedding));
  const Operand &table = call.in[0], &y = call.out[0];
  MESHWORK_TRY(checkFloatType("embedding: table", table));
  MESHWORK_TRY(checkDType("embedding: y", y, table.view->dtype));
  MESHWORK_TRY(checkRows("embedding: table", table));
  MESHWORK_TRY(checkRows("embedding: y", y));
  MESHWORK_TRY(checkDim("embedding: y", y, 1, table.dim(1), "the table's width"));
  MESHWORK_TRY(checkNoRepeats("embedding: y", y));
  return checkIds(call, y, "y's rows");
}

Status checkEmbeddingGrad(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::embedding_grad));
  const Operand &dy = call.in[0], &table = call.out[0];
  MESHWORK_TRY(checkFloatType("embedding_grad: dy", dy));
  MESHWORK_TRY(checkDType("embedding_grad: dtable", table, statisticsOf(dy)));
  MESHWORK_TRY(checkRows("embedding_grad: dy", dy));
  MESHWORK_TRY(checkRows("embedding_grad: dtable", table));
  MESHWORK_TRY(checkDim("embedding_grad: dy", dy, 1, table.dim(1), "the table's width"));
  MESHWORK_TRY(checkNoRepeats("embedding_grad: dtable", table));
  return checkIds(call, dy, "dy's rows");
}

}  // namespace meshwork
