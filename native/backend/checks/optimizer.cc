// The checks of the optimizer kernels: contiguous state of one dtype, scalars, and float indices that exist.
#include "backend/checks/optimizer.h"

#include "backend/checks/check.h"

namespace meshwork {
namespace {

// One element, of `dtype`.
Status checkScalar(const std::string& name, const Operand& operand, DType dtype) {
  MESHWORK_TRY(checkDType(name.c_str(), operand, dtype));
  if (operand.view->count() == 1) return {};
  return refuse(name + dimsOf(*operand.view) + " is not one number");
}

// `tensors` inputs and `updated` outputs like the first input, then scalars of its dtype, then the gate.
Status checkUpdate(const Call& call, Op op, int tensors, int updated) {
  MESHWORK_TRY(checkCounts(call, op));
  const std::string name = kOpInfo[static_cast<int>(op)].name;
  const DType dtype = call.in[0].view->dtype;
  if (dtype != DType::f32 && dtype != DType::f64) {
    return unsupported(name + ": p is " + dtypeName(dtype) + ", expected f32 or f64");
  }
  for (int i = 0; i < tensors + updated; ++i) {
    const bool isInput = i < tensors;
    const Operand& operand = isInput ? call.in[i] : call.out[i - tensors];
    const std::string label = name + (isInput ? ": input " : ": output ") + std::to_string(isInput ? i : i - tensors);
    MESHWORK_TRY(checkDType(label.c_str(), operand, dtype));
    MESHWORK_TRY(checkSameDims(label.c_str(), operand, "p", call.in[0]));
    MESHWORK_TRY(checkContiguous(label.c_str(), operand));
  }
  for (int i = tensors; i < call.inputs; ++i) {
    MESHWORK_TRY(
        checkScalar(name + ": input " + std::to_string(i), call.in[i], i + 1 < call.inputs ? dtype : DType::i32));
  }
  return {};
}

}  // namespace

Status checkAdamw(const Call& call) {
  MESHWORK_TRY(checkUpdate(call, Op::adamw, 4, 3));
  return checkFloats(call, 0, 4);
}

Status checkSgd(const Call& call) {
  MESHWORK_TRY(checkUpdate(call, Op::sgd, 3, 2));
  MESHWORK_TRY(checkFloats(call, 0, 2));
  const int32_t nesterov = call.attrs[attr::sgd::nesterov];
  if (nesterov != 0 && nesterov != 1)
    return refuse("sgd: nesterov is " + std::to_string(nesterov) + ", expected 0 or 1");
  return {};
}

Status checkSquareSum(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::square_sum));
  const Operand &x = call.in[0], &y = call.out[0];
  MESHWORK_TRY(checkFloatType("square_sum: x", x));
  MESHWORK_TRY(checkContiguous("square_sum: x", x));
  return checkScalar("square_sum: y", y, statisticsOf(x));
}

}  // namespace meshwork
