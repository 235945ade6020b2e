// Collapsing the loops of an elementwise call.
#include "backend/cuda/elementwise/layout.h"

#include <algorithm>

namespace meshwork::cuda {
namespace {

void readOperands(const Call& call, ElementLayout& layout) {
  layout.inputs = call.inputs;
  layout.outputs = call.outputs;
  for (int i = 0; i < call.inputs + call.outputs; ++i) {
    const bool isInput = i < call.inputs;
    const Operand& from = isInput ? call.in[i] : call.out[i - call.inputs];
    ElementOperand& to = layout.operands[i];
    to.data = from.data;
    to.dtype = from.view->dtype;
    to.start = 0;
    to.value = isInput ? i : outputValue(call, i - call.inputs);
    std::copy_n(from.view->strides, kMaxRank, to.strides);
  }
  layout.counters = 0;
  for (int k = 0; k < instructionCount(call); ++k) {
    const Instruction step = instructionAt(call, k);
    if (step.op != EOp::iota_) continue;
    ElementOperand& to = layout.operands[layout.total()];
    ++layout.counters;
    to = {nullptr, DType::i32, step.b < 0 || call.table == nullptr ? 0 : call.table[step.b], call.inputs + k, {}};
    to.strides[step.a] = 1;
  }
}

// Drops dims of size 1, orders the others by the first output's strides (falling), and joins neighbours that lie in
// every operand as one dim would.
void collapse(const View& view, ElementLayout& layout) {
  int order[kMaxRank], rank = 0;
  for (int d = 0; d < view.rank; ++d) {
    if (view.dims[d] == 1) continue;
    int at = rank++;
    for (; at > 0 && view.strides[order[at - 1]] < view.strides[d]; --at) order[at] = order[at - 1];
    order[at] = d;
  }
  for (int d = 0; d < rank; ++d) layout.dims[d] = view.dims[order[d]];
  for (int i = 0; i < layout.total(); ++i) {
    int64_t* strides = layout.operands[i].strides;
    int64_t old[kMaxRank];
    std::copy_n(strides, kMaxRank, old);
    for (int d = 0; d < kMaxRank; ++d) strides[d] = d < rank ? old[order[d]] : 0;
  }
  int last = 0;
  for (int d = 1; d < rank; ++d) {
    bool joins = true;
    for (int i = 0; i < layout.total() && joins; ++i) {
      const int64_t* strides = layout.operands[i].strides;
      joins = strides[last] == strides[d] * layout.dims[d];
    }
    const int to = joins ? last : ++last;
    layout.dims[to] = joins ? layout.dims[last] * layout.dims[d] : layout.dims[d];
    for (int i = 0; i < layout.total(); ++i) layout.operands[i].strides[to] = layout.operands[i].strides[d];
  }
  layout.rank = rank == 0 ? 1 : last + 1;
  if (rank == 0) layout.dims[0] = 1;
}

// Whether packs of `width` neighbours are aligned wherever they begin.
bool aligned(const ElementLayout& layout, const ElementOperand& operand, int width) {
  const int64_t size = dtypeSize(operand.dtype), bytes = std::min<int64_t>(16, size * width);
  if (reinterpret_cast<uintptr_t>(operand.data) % static_cast<uintptr_t>(bytes) != 0) return false;
  for (int d = 0; d + 1 < layout.rank; ++d) {
    if (operand.strides[d] * size % bytes != 0) return false;
  }
  return true;
}

// 16 bytes of the narrowest operand, if the last dim, all outputs and all inputs with neighbours agree.
int widthOf(const ElementLayout& layout, int values) {
  const int last = layout.rank - 1;
  int64_t smallest = 8;
  for (int i = 0; i < layout.inputs + layout.outputs; ++i) {
    const ElementOperand& operand = layout.operands[i];
    if (operand.strides[last] == 1) smallest = std::min(smallest, dtypeSize(operand.dtype));
  }
  // Values are registers: few of them where an expression is long.
  const int64_t most = values <= 32 ? 8 : values <= 96 ? 4 : 2;
  const auto width = static_cast<int>(std::min(most, 16 / std::max<int64_t>(smallest, 2)));
  if (layout.dims[last] % width != 0) return 1;
  for (int i = 0; i < layout.inputs + layout.outputs; ++i) {
    const ElementOperand& operand = layout.operands[i];
    if (i >= layout.inputs && operand.strides[last] != 1) return 1;
    if (operand.strides[last] == 1 && !aligned(layout, operand, width)) return 1;
  }
  return width;
}

}  // namespace

bool ElementLayout::linear(const ElementOperand& operand) const {
  int64_t expected = 1;
  for (int d = rank - 1; d >= 0; --d) {
    if (dims[d] != 1 && operand.strides[d] != expected) return false;
    expected *= dims[d];
  }
  return true;
}

bool ElementLayout::scalar(const ElementOperand& operand) const {
  return std::all_of(operand.strides, operand.strides + rank, [](int64_t stride) { return stride == 0; });
}

void layOut(const Call& call, ElementLayout& layout) {
  readOperands(call, layout);
  collapse(*call.out[0].view, layout);
  layout.count = call.out[0].view->count();
  layout.width = widthOf(layout, call.inputs + instructionCount(call));
}

}  // namespace meshwork::cuda
