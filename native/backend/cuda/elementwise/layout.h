// Where the operands of an elementwise call lie: the loops over its elements with as few dims as possible, and how many
// neighbours can be read and written at a time. Shared by the interpreting and the generated kernels.
#pragma once
#include "backend/expression.h"

namespace meshwork::cuda {

// Inputs, then outputs, then the index counters (iota) of the expression, in order.
constexpr int kMaxElementOperands = kMaxExpressionValues + kMaxExpressionOutputs;

struct ElementOperand {
  std::byte* data;  // null for a counter, and when a program is loaded
  DType dtype;
  int32_t start;  // of a counter
  int value;      // its number in the expression; of an output, the one stored
  int64_t strides[kMaxRank];
};

struct ElementLayout {
  int rank = 1;  // of the collapsed loops
  int64_t dims[kMaxRank];
  int64_t count = 1;
  int inputs = 0, outputs = 0, counters = 0;
  int width = 1;  // neighbours in the last dim that a thread takes; divides it
  ElementOperand operands[kMaxElementOperands];

  int total() const { return inputs + outputs + counters; }
  const ElementOperand& output(int j) const { return operands[inputs + j]; }
  // Whether element i of the loops is element i in memory.
  bool linear(const ElementOperand& operand) const;
  // Whether all elements are the same one.
  bool scalar(const ElementOperand& operand) const;
};

// For a call that has passed its check; `table` may be absent when a program is loaded. Fills `layout`, which is too
// large to be copied about. Where data are absent they count as aligned.
void layOut(const Call& call, ElementLayout& layout);

}  // namespace meshwork::cuda
