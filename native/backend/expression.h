// The expression words of the elementwise kernel: what its check and the backends read.
#pragma once
#include "backend/kernel.h"
#include "core/inline.h"

namespace meshwork {

constexpr int kMaxExpressionValues = 256;  // inputs and instructions together
constexpr int kMaxExpressionOutputs = 64;

// The type of a value; the numbers are those of the words.
enum class ValueType : int32_t { f32 = 0, f64 = 1, i32 = 2 };
constexpr MESHWORK_INLINE int64_t valueSize(ValueType type) { return type == ValueType::f64 ? 8 : 4; }
constexpr MESHWORK_INLINE ValueType valueTypeOf(DType dtype) {
  if (dtype == DType::f64) return ValueType::f64;
  return dtype == DType::i32 || dtype == DType::boolean ? ValueType::i32 : ValueType::f32;
}

struct Instruction {
  EOp op;
  ValueType type;
  int32_t a, b, c;
};

// Instruction k of the expression; its words exist.
MESHWORK_INLINE Instruction instructionAt(const Call& call, int k) {
  const int32_t* words = call.attrs + attr::elementwise::count_ + 5 * k;
  return {static_cast<EOp>(words[0]), static_cast<ValueType>(words[1]), words[2], words[3], words[4]};
}
MESHWORK_INLINE int instructionCount(const Call& call) { return call.attrs[attr::elementwise::count]; }
// The value number of output j.
MESHWORK_INLINE int outputValue(const Call& call, int j) {
  return call.attrs[attr::elementwise::count_ + 5 * instructionCount(call) + 1 + j];
}

constexpr MESHWORK_INLINE bool isTest(EOp op) {
  return op == EOp::not_ || op == EOp::is_finite_ || (op >= EOp::eq_ && op <= EOp::or_);
}
// The type of an instruction's result.
constexpr MESHWORK_INLINE ValueType resultType(const Instruction& step) {
  return isTest(step.op) ? ValueType::i32 : step.type;
}

}  // namespace meshwork
