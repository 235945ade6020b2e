// The check of matmul: counts against flags, dims, dtypes, strides.
#include "backend/checks/matmul.h"

#include "backend/checks/check.h"

namespace meshwork {
namespace {

Status checkFlags(const Call& call) {
  const int32_t flags = call.attrs[attr::matmul::flags];
  if ((flags & ~matmul_flag::all) != 0) return refuse("matmul: unknown bits in flags " + std::to_string(flags));
  if ((flags & matmul_flag::gelu) && (flags & matmul_flag::silu))
    return refuse("matmul: flags ask for gelu and silu both");
  const int expected = 2 + ((flags & matmul_flag::bias) != 0) + ((flags & matmul_flag::residual) != 0);
  if (call.inputs == expected) return {};
  return refuse("matmul: flags " + std::to_string(flags) + " mean " + std::to_string(expected) + " inputs, found " +
                std::to_string(call.inputs));
}

// Whether consecutive elements of dim d are neighbours (or there is at most one).
bool unitStride(const View& view, int d) { return view.dims[d] <= 1 || view.strides[d] == 1; }

Status checkSide(const char* name, const Operand& side) {
  if (unitStride(*side.view, 1) || unitStride(*side.view, 2)) return {};
  return refuse(std::string("matmul: ") + name + " has strides " + std::to_string(side.stride(1)) + " and " +
                std::to_string(side.stride(2)) + " in its last two dims, one must be 1");
}

Status checkDTypes(const Operand& a, const Operand& b, const Operand& d) {
  const DType type = a.view->dtype;
  if (!isFloat(type)) {
    return unsupported(std::string("matmul: a is ") + dtypeName(type) + ", expected f32, f64, bf16 or f16");
  }
  MESHWORK_TRY(checkDType("matmul: b", b, type));
  if (dtypeSize(type) == 2 && d.view->dtype == DType::f32) return {};
  return checkDType("matmul: d", d, type);
}

// Bias and residual: of a's dtype, or for 16-bit floats also f32.
Status checkAddend(const char* name, const Operand& addend, DType type) {
  if (dtypeSize(type) == 2 && addend.view->dtype == DType::f32) return {};
  return checkDType(name, addend, type);
}

}  // namespace

Status checkMatmul(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::matmul));
  MESHWORK_TRY(checkFlags(call));
  const Operand &a = call.in[0], &b = call.in[1], &d = call.out[0];
  MESHWORK_TRY(checkRank("matmul: a", a, 3));
  MESHWORK_TRY(checkRank("matmul: b", b, 3));
  MESHWORK_TRY(checkRank("matmul: d", d, 3));
  MESHWORK_TRY(checkDTypes(a, b, d));
  MESHWORK_TRY(checkDim("matmul: b", b, 0, a.dim(0), "a's batch"));
  MESHWORK_TRY(checkDim("matmul: b", b, 1, a.dim(2), "a's k"));
  MESHWORK_TRY(checkDim("matmul: d", d, 0, a.dim(0), "a's batch"));
  MESHWORK_TRY(checkDim("matmul: d", d, 1, a.dim(1), "a's m"));
  MESHWORK_TRY(checkDim("matmul: d", d, 2, b.dim(2), "b's n"));
  MESHWORK_TRY(checkSide("a", a));
  MESHWORK_TRY(checkSide("b", b));
  MESHWORK_TRY(checkUnitStride("matmul: d", d));
  for (int dim = 0; dim < 2; ++dim) {
    if (d.dim(dim) > 1 && d.stride(dim) == 0) return refuse("matmul: d repeats in dim " + std::to_string(dim));
  }
  const int32_t flags = call.attrs[attr::matmul::flags];
  if (flags & matmul_flag::bias) {
    const Operand& bias = call.in[2];
    MESHWORK_TRY(checkRank("matmul: bias", bias, 1));
    MESHWORK_TRY(checkDim("matmul: bias", bias, 0, d.dim(2), "d's n"));
    MESHWORK_TRY(checkAddend("matmul: bias", bias, a.view->dtype));
  }
  if (flags & matmul_flag::residual) {
    const Operand& residual = call.in[call.inputs - 1];
    MESHWORK_TRY(checkSameDims("matmul: residual", residual, "d", d));
    MESHWORK_TRY(checkAddend("matmul: residual", residual, a.view->dtype));
    MESHWORK_TRY(checkUnitStride("matmul: residual", residual));
  }
  return {};
}

}  // namespace meshwork
