// The check of the reduce kernel: y has x's dims, or 1 where it reduces.
#include "backend/checks/reduce.h"

#include "backend/checks/check.h"

namespace meshwork {

Status checkReduce(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::reduce));
  const Operand &x = call.in[0], &y = call.out[0];
  const DType from = x.view->dtype, to = y.view->dtype;
  if (!isFloat(from) && from != DType::i32) {
    return unsupported(std::string("reduce: x is ") + dtypeName(from) + ", expected f32, f64, bf16, f16 or i32");
  }
  if (!(dtypeSize(from) == 2 && to == DType::f32)) MESHWORK_TRY(checkDType("reduce: y", y, from));
  MESHWORK_TRY(checkRank("reduce: y", y, x.view->rank));
  for (int d = 0; d < x.view->rank; ++d) {
    if (y.dim(d) != 1) MESHWORK_TRY(checkDim("reduce: y", y, d, x.dim(d), "x's dim, or 1"));
  }
  MESHWORK_TRY(checkNoRepeats("reduce: y", y));
  const int32_t kind = call.attrs[attr::reduce::kind];
  if (kind < 0 || kind > 2) return refuse("reduce: kind is " + std::to_string(kind) + ", expected 0, 1 or 2");
  return {};
}

}  // namespace meshwork
