// Small helpers for the check() functions of kernels, which all backends share: each returns a Status that says what
// disagrees.
#pragma once
#include <string>

#include "backend/kernel.h"

namespace meshwork {

inline Status refuse(std::string message) { return Status(Code::invalidProgram, std::move(message)); }
inline Status unsupported(std::string message) { return Status(Code::unsupported, std::move(message)); }

inline std::string dimsOf(const View& view) {
  std::string text = "[";
  for (int d = 0; d < view.rank; ++d) text += (d ? ", " : "") + std::to_string(view.dims[d]);
  return text + "]";
}

// Operand and attribute counts agree with what the op's entry in kOpInfo allows.
Status checkCounts(const Call& call, Op op);
// `name` has `rank` dims.
Status checkRank(const char* name, const Operand& operand, int rank);
// Dim `dim` of `name` is `size`, which is `what`.
Status checkDim(const char* name, const Operand& operand, int dim, int64_t size, const char* what);
// All dims of `name` are those of `other`.
Status checkSameDims(const char* name, const Operand& operand, const char* otherName, const Operand& other);
Status checkDType(const char* name, const Operand& operand, DType dtype);
// Unit stride in the last dim (or at most one element in it).
Status checkUnitStride(const char* name, const Operand& operand);
// No two elements share memory: by rising stride, each dim (of size > 1) steps over all the smaller ones.
Status checkNoRepeats(const char* name, const Operand& operand);
Status checkContiguous(const char* name, const Operand& operand);
// f32, f64, bf16 or f16.
Status checkFloatType(const char* name, const Operand& operand);
// Attributes [first, first + count) are indices into floats, attribute `index` one into table.
Status checkFloats(const Call& call, int first, int count);
Status checkTable(const Call& call, int index);
// The type in which statistics of an operand are kept: f64 for f64, else f32.
inline DType statisticsOf(const Operand& operand) {
  return operand.view->dtype == DType::f64 ? DType::f64 : DType::f32;
}

}  // namespace meshwork

// Returns from the enclosing function when `expression` is a Status that is not ok.
#define MESHWORK_TRY(expression)                                      \
  do {                                                                \
    if (Status status_ = (expression); !status_.ok()) return status_; \
  } while (0)
