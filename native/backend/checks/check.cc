// The shared parts of the CPU kernels' checks.
#include "backend/checks/check.h"

#include <cstring>

namespace meshwork {
namespace {

std::string range(int low, int high) {
  if (high < 0) return "at least " + std::to_string(low);
  return low == high ? std::to_string(low) : std::to_string(low) + " to " + std::to_string(high);
}

}  // namespace

Status checkCounts(const Call& call, Op op) {
  const OpInfo& info = kOpInfo[static_cast<int>(op)];
  const std::string name = info.name;
  auto outside = [](int n, int low, int high) { return n < low || (high >= 0 && n > high); };
  if (outside(call.inputs, info.minInputs, info.maxInputs)) {
    return refuse(name + " has " + std::to_string(call.inputs) + " inputs, expected " +
                  range(info.minInputs, info.maxInputs));
  }
  if (outside(call.outputs, info.minOutputs, info.maxOutputs)) {
    return refuse(name + " has " + std::to_string(call.outputs) + " outputs, expected " +
                  range(info.minOutputs, info.maxOutputs));
  }
  const int length = static_cast<int>(std::strlen(info.attrs));
  const bool open = length > 0 && info.attrs[length - 1] == '*';
  const int low = open ? length - 2 : length;
  if (outside(call.attrCount, low, open ? -1 : low)) {
    return refuse(name + " has " + std::to_string(call.attrCount) + " attribute words, expected " +
                  range(low, open ? -1 : low));
  }
  return {};
}

Status checkRank(const char* name, const Operand& operand, int rank) {
  if (operand.view->rank == rank) return {};
  return refuse(std::string(name) + " has rank " + std::to_string(operand.view->rank) + ", expected " +
                std::to_string(rank));
}

Status checkDim(const char* name, const Operand& operand, int dim, int64_t size, const char* what) {
  if (operand.dim(dim) == size) return {};
  return refuse(std::string(name) + dimsOf(*operand.view) + " has " + std::to_string(operand.dim(dim)) + " in dim " +
                std::to_string(dim) + ", expected " + std::to_string(size) + " (" + what + ")");
}

Status checkSameDims(const char* name, const Operand& operand, const char* otherName, const Operand& other) {
  const View& a = *operand.view;
  const View& b = *other.view;
  bool same = a.rank == b.rank;
  for (int d = 0; same && d < a.rank; ++d) same = a.dims[d] == b.dims[d];
  if (same) return {};
  return refuse(std::string(name) + dimsOf(a) + " and " + otherName + dimsOf(b) + " must have the same dims");
}

Status checkDType(const char* name, const Operand& operand, DType dtype) {
  if (operand.view->dtype == dtype) return {};
  return unsupported(std::string(name) + " is " + dtypeName(operand.view->dtype) + ", expected " + dtypeName(dtype));
}

Status checkUnitStride(const char* name, const Operand& operand) {
  const View& view = *operand.view;
  if (view.rank == 0 || view.dims[view.rank - 1] <= 1 || view.strides[view.rank - 1] == 1) return {};
  return refuse(std::string(name) + " has stride " + std::to_string(view.strides[view.rank - 1]) +
                " in its last dim, expected 1");
}

Status checkNoRepeats(const char* name, const Operand& operand) {
  const View& view = *operand.view;
  int order[kMaxRank], rank = 0;
  for (int d = 0; d < view.rank; ++d) {
    if (view.dims[d] == 0) return {};
    if (view.dims[d] == 1) continue;
    int at = rank++;
    for (; at > 0 && view.strides[order[at - 1]] > view.strides[d]; --at) order[at] = order[at - 1];
    order[at] = d;
  }
  int64_t reach = 0;  // of the smaller dims, from their first element to their last
  for (int i = 0; i < rank; ++i) {
    const int d = order[i];
    if (view.strides[d] <= reach) return refuse(std::string(name) + " has elements that share memory");
    reach += view.strides[d] * (view.dims[d] - 1);
  }
  return {};
}

Status checkContiguous(const char* name, const Operand& operand) {
  if (operand.view->contiguous()) return {};
  return refuse(std::string(name) + dimsOf(*operand.view) + " is not contiguous");
}

Status checkFloatType(const char* name, const Operand& operand) {
  const DType dtype = operand.view->dtype;
  if (isFloat(dtype)) return {};
  return unsupported(std::string(name) + " is " + dtypeName(dtype) + ", expected f32, f64, bf16 or f16");
}

Status checkFloats(const Call& call, int first, int count) {
  for (int i = first; i < first + count; ++i) {
    if (call.attrs[i] < 0 || call.attrs[i] >= call.floatCount) {
      return refuse("attribute " + std::to_string(i) + " is float " + std::to_string(call.attrs[i]) + " of " +
                    std::to_string(call.floatCount));
    }
  }
  return {};
}

Status checkTable(const Call& call, int index) {
  if (call.attrs[index] >= 0 && call.attrs[index] < call.tableCount) return {};
  return refuse("attribute " + std::to_string(index) + " is table word " + std::to_string(call.attrs[index]) + " of " +
                std::to_string(call.tableCount));
}

}  // namespace meshwork
