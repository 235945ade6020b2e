// The check of rope: dims of x, y, positions and inverse frequencies agree.
#include "backend/checks/rope.h"

#include "backend/checks/check.h"

namespace meshwork {

Status checkRope(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::rope));
  const Operand &x = call.in[0], &positions = call.in[1], &frequencies = call.in[2], &y = call.out[0];
  const DType type = x.view->dtype;
  if (!isFloat(type)) {
    return unsupported(std::string("rope: x is ") + dtypeName(type) + ", expected f32, f64, bf16 or f16");
  }
  MESHWORK_TRY(checkRank("rope: x", x, 4));
  MESHWORK_TRY(checkSameDims("rope: y", y, "x", x));
  MESHWORK_TRY(checkDType("rope: y", y, type));
  MESHWORK_TRY(checkUnitStride("rope: x", x));
  MESHWORK_TRY(checkUnitStride("rope: y", y));
  if (x.dim(3) % 2 != 0)
    return refuse("rope: x" + dimsOf(*x.view) + " has an odd number of features to rotate in pairs");
  MESHWORK_TRY(checkRank("rope: positions", positions, 2));
  MESHWORK_TRY(checkDType("rope: positions", positions, DType::i32));
  MESHWORK_TRY(checkDim("rope: positions", positions, 0, x.dim(0), "x's batch"));
  MESHWORK_TRY(checkDim("rope: positions", positions, 1, x.dim(1), "x's length"));
  MESHWORK_TRY(checkRank("rope: inv_freq", frequencies, 1));
  MESHWORK_TRY(checkDim("rope: inv_freq", frequencies, 0, x.dim(3) / 2, "half of x's features"));
  const DType frequencyType = frequencies.view->dtype;
  if (frequencyType != DType::f32 && frequencyType != DType::f64) {
    return unsupported(std::string("rope: inv_freq is ") + dtypeName(frequencyType) + ", expected f32 or f64");
  }
  const int32_t inverse = call.attrs[attr::rope::inverse];
  if (inverse != 0 && inverse != 1) return refuse("rope: inverse is " + std::to_string(inverse) + ", expected 0 or 1");
  return {};
}

}  // namespace meshwork
