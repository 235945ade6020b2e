// The elementwise kernel: a blocked interpreter. Operands' dims are collapsed, the elements cut into blocks of up to a
// thousand, and each instruction runs over a whole block, whose values stay in the cache. Contiguous inputs are read
// and contiguous outputs written in place. An output may be the same memory as an input of the same dtype and strides.
#include "backend/checks/elementwise.h"

#include <algorithm>

#include "backend/cpu/kernels/element_ops.h"
#include "backend/expression.h"
#include "runtime/pool.h"

namespace meshwork::MESHWORK_ISA {
namespace {

constexpr int64_t kBlockBytes = 4096;  // one value of one block
constexpr int64_t kTaskElements = 32768;
static_assert(kMaxExpressionValues * kBlockBytes <= static_cast<int64_t>(Pool::kWorkspaceBytes));

// Where a value's elements come from, block by block.
enum class Source : uint8_t {
  fixed,    // filled once per task: constants, scalars, what repeats for every row
  linear,   // in place: element i of the output is element i here
  row,      // in place, but found from the row's strides
  gather,   // copied, with conversion, to the value's buffer
  iota,     // computed into the value's buffer
  computed  // by an instruction
};

struct Leaf {
  const std::byte* data;
  DType dtype;
  Source source;
  int value;
  int32_t start;  // of an iota
  int64_t strides[kMaxRank];
};

struct Target {
  std::byte* data;
  DType dtype;
  bool linear;
  bool direct;  // its value is computed in place
  int value;
  int64_t strides[kMaxRank];
};

struct Step {
  Apply apply;
  int y, a, b, c;
};

// Too large to clear on every call: the arrays are filled as far as they are used.
struct Plan {
  int rank = 0;  // collapsed, at least 1
  int64_t dims[kMaxRank] = {};
  int64_t rows = 1;       // product of all dims but the last
  int64_t rowLength = 1;  // the last
  int64_t piece = 1;      // elements of a row in one block
  int64_t pieces = 1;     // blocks per row; 1 when a block holds whole rows
  int64_t rowsPerBlock = 1;
  int64_t blocks = 0;
  int values = 0, leaves = 0, steps = 0, targets = 0, constants = 0;
  Leaf leaf[kMaxExpressionValues];
  Step step[kMaxExpressionValues];
  Target target[kMaxExpressionOutputs];
  struct Constant {
    int value;
    double number;
  } constant[kMaxExpressionValues];
  ValueType type[kMaxExpressionValues];
  int slot[kMaxExpressionValues];      // buffer in the workspace, or -1
  int targetOf[kMaxExpressionValues];  // the output a value is computed into, or -1
};

// ---- planning ----

void copyStrides(int64_t* to, const int64_t* from) {
  for (int d = 0; d < kMaxRank; ++d) to[d] = from[d];
}

void readExpression(const Call& call, Plan& plan) {
  plan.values = call.inputs + instructionCount(call);
  for (int i = 0; i < call.inputs; ++i) {
    Leaf& leaf = plan.leaf[plan.leaves++];
    leaf = {call.in[i].data, call.in[i].view->dtype, Source::gather, i, 0, {}};
    copyStrides(leaf.strides, call.in[i].view->strides);
    plan.type[i] = valueTypeOf(leaf.dtype);
  }
  for (int k = 0; k < instructionCount(call); ++k) {
    const Instruction step = instructionAt(call, k);
    const int value = call.inputs + k;
    plan.type[value] = resultType(step);
    if (step.op == EOp::const_) {
      plan.constant[plan.constants++] = {value, call.floats[step.a]};
    } else if (step.op == EOp::iota_) {
      Leaf& leaf = plan.leaf[plan.leaves++];
      leaf = {nullptr, DType::i32, Source::iota, value, step.b < 0 ? 0 : call.table[step.b], {}};
      leaf.strides[step.a] = 1;
    } else {
      const int arity = kEOpArity[static_cast<int>(step.op)];
      plan.step[plan.steps++] = {findApply(step, plan.type[step.a]), value, step.a, arity > 1 ? step.b : step.a,
                                 arity > 2 ? step.c : step.a};
    }
  }
  for (int j = 0; j < call.outputs; ++j) {
    Target& target = plan.target[plan.targets++];
    target = {call.out[j].data, call.out[j].view->dtype, false, false, outputValue(call, j), {}};
    copyStrides(target.strides, call.out[j].view->strides);
  }
}

template <class F>
void forEachStrides(Plan& plan, const F& f) {
  for (int i = 0; i < plan.leaves; ++i) f(plan.leaf[i].strides);
  for (int j = 0; j < plan.targets; ++j) f(plan.target[j].strides);
}

// Drops dims of size 1, orders the others by the first output's strides (falling), and joins neighbours that lie in
// every operand as one dim would.
void collapse(const View& view, Plan& plan) {
  int order[kMaxRank], rank = 0;
  for (int d = 0; d < view.rank; ++d) {
    if (view.dims[d] == 1) continue;
    int at = rank++;
    for (; at > 0 && view.strides[order[at - 1]] < view.strides[d]; --at) order[at] = order[at - 1];
    order[at] = d;
  }
  for (int d = 0; d < rank; ++d) plan.dims[d] = view.dims[order[d]];
  forEachStrides(plan, [&](int64_t* strides) {
    int64_t old[kMaxRank];
    copyStrides(old, strides);
    for (int d = 0; d < kMaxRank; ++d) strides[d] = d < rank ? old[order[d]] : 0;
  });
  int last = 0;
  for (int d = 1; d < rank; ++d) {
    bool joins = true;
    forEachStrides(plan, [&](int64_t* strides) { joins &= strides[last] == strides[d] * plan.dims[d]; });
    const int to = joins ? last : ++last;
    plan.dims[to] = joins ? plan.dims[last] * plan.dims[d] : plan.dims[d];
    forEachStrides(plan, [&](int64_t* strides) { strides[to] = strides[d]; });
  }
  plan.rank = rank == 0 ? 1 : last + 1;
  if (rank == 0) plan.dims[0] = 1;
}

void cutBlocks(Plan& plan) {
  bool wide = false;
  for (int i = 0; i < plan.leaves; ++i) wide |= plan.type[plan.leaf[i].value] == ValueType::f64;
  for (int k = 0; k < plan.steps; ++k) wide |= plan.type[plan.step[k].y] == ValueType::f64;
  for (int k = 0; k < plan.constants; ++k) wide |= plan.type[plan.constant[k].value] == ValueType::f64;
  const int64_t capacity = kBlockBytes / (wide ? 8 : 4);
  plan.rowLength = plan.dims[plan.rank - 1];
  plan.rows = 1;
  for (int d = 0; d + 1 < plan.rank; ++d) plan.rows *= plan.dims[d];
  if (plan.rowLength * 2 > capacity) {
    plan.pieces = (plan.rowLength + capacity - 1) / capacity;
    plan.piece = ((plan.rowLength + plan.pieces - 1) / plan.pieces + 63) / 64 * 64;
    plan.pieces = (plan.rowLength + plan.piece - 1) / plan.piece;
    plan.blocks = plan.rows * plan.pieces;
  } else {
    plan.piece = plan.rowLength;
    plan.rowsPerBlock = capacity / plan.rowLength;
    plan.blocks = (plan.rows + plan.rowsPerBlock - 1) / plan.rowsPerBlock;
  }
}

bool isLinear(const Plan& plan, const int64_t* strides) {
  int64_t expected = 1;
  for (int d = plan.rank - 1; d >= 0; --d) {
    if (plan.dims[d] != 1 && strides[d] != expected) return false;
    expected *= plan.dims[d];
  }
  return true;
}

bool sameStorage(DType dtype, ValueType type) {
  return dtype == (type == ValueType::f32 ? DType::f32 : type == ValueType::f64 ? DType::f64 : DType::i32);
}

// An output's value is computed in place when nothing later reads an input, which the output may overwrite.
void chooseTargets(Plan& plan) {
  int lastReader = 0;
  for (int i = 0; i < plan.leaves; ++i) {
    if (plan.leaf[i].source != Source::linear) continue;
    const int v = plan.leaf[i].value;
    for (int k = 0; k < plan.steps; ++k) {
      if (plan.step[k].a == v || plan.step[k].b == v || plan.step[k].c == v) lastReader = std::max(lastReader, k);
    }
    for (int j = 0; j < plan.targets; ++j) {
      if (plan.target[j].value == v) lastReader = plan.steps;
    }
  }
  for (int v = 0; v < plan.values; ++v) plan.targetOf[v] = -1;
  for (int j = 0; j < plan.targets; ++j) {
    Target& target = plan.target[j];
    target.linear = isLinear(plan, target.strides);
    if (!target.linear || !sameStorage(target.dtype, plan.type[target.value]) || plan.targetOf[target.value] >= 0)
      continue;
    for (int k = lastReader; k < plan.steps; ++k) target.direct |= plan.step[k].y == target.value;
    if (target.direct) plan.targetOf[target.value] = j;
  }
}

void chooseSources(Plan& plan) {
  for (int i = 0; i < plan.leaves; ++i) {
    Leaf& leaf = plan.leaf[i];
    bool sameForRows = true;
    for (int d = 0; d + 1 < plan.rank; ++d) sameForRows &= leaf.strides[d] == 0;
    const bool scalar = sameForRows && leaf.strides[plan.rank - 1] == 0;
    const bool native = sameStorage(leaf.dtype, plan.type[leaf.value]);
    if (leaf.source == Source::iota) continue;
    if (native && isLinear(plan, leaf.strides)) {
      leaf.source = Source::linear;
    } else if (native && plan.rowsPerBlock == 1 && leaf.strides[plan.rank - 1] == 1) {
      leaf.source = Source::row;
    } else if (scalar || (sameForRows && plan.pieces == 1)) {
      leaf.source = Source::fixed;
    }
  }
  chooseTargets(plan);
}

// Gives every value that needs one a buffer, reusing those of results no longer read. Leaves are filled before a
// block's first instruction, and constants once, so theirs are not given away. A result never shares a buffer with its
// operands.
void assignBuffers(Plan& plan) {
  int lastUse[kMaxExpressionValues], freed[kMaxExpressionValues], freeCount = 0, count = 0;
  for (int v = 0; v < plan.values; ++v) plan.slot[v] = lastUse[v] = -1;
  for (int k = 0; k < plan.steps; ++k) {
    lastUse[plan.step[k].a] = lastUse[plan.step[k].b] = lastUse[plan.step[k].c] = k;
  }
  for (int j = 0; j < plan.targets; ++j) lastUse[plan.target[j].value] = plan.steps;
  for (int k = 0; k < plan.constants; ++k) lastUse[plan.constant[k].value] = plan.steps;
  for (int k = 0; k < plan.constants; ++k) plan.slot[plan.constant[k].value] = count++;
  for (int i = 0; i < plan.leaves; ++i) {
    const Leaf& leaf = plan.leaf[i];
    lastUse[leaf.value] = plan.steps;
    if (leaf.source != Source::linear && leaf.source != Source::row) plan.slot[leaf.value] = count++;
  }
  for (int k = 0; k < plan.steps; ++k) {
    const Step& step = plan.step[k];
    if (plan.targetOf[step.y] < 0) plan.slot[step.y] = freeCount > 0 ? freed[--freeCount] : count++;
    for (const int v : {step.a, step.b, step.c, step.y}) {
      if (lastUse[v] > k || (v == step.y && lastUse[v] >= 0) || plan.slot[v] < 0) continue;
      freed[freeCount++] = plan.slot[v];
      lastUse[v] = plan.steps;  // given back once
    }
  }
}

// ---- running ----

// The position of a block: the index in every dim but the last, and where in the row it starts.
struct Place {
  int64_t index[kMaxRank] = {};
  int64_t row = 0, rows = 1, column = 0, length = 1;  // length: elements of one row

  int64_t offset(const Plan& plan, const int64_t* strides) const {
    int64_t at = column * strides[plan.rank - 1];
    for (int d = 0; d + 1 < plan.rank; ++d) at += index[d] * strides[d];
    return at;
  }
  void nextRow(const Plan& plan) {
    for (int d = plan.rank - 2; d >= 0; --d) {
      if (++index[d] < plan.dims[d]) return;
      index[d] = 0;
    }
  }
};

Place placeOf(const Plan& plan, int64_t block) {
  Place place;
  if (plan.pieces > 1) {
    place.row = block / plan.pieces;
    place.column = (block % plan.pieces) * plan.piece;
    place.length = std::min(plan.piece, plan.rowLength - place.column);
  } else {
    place.row = block * plan.rowsPerBlock;
    place.rows = std::min(plan.rowsPerBlock, plan.rows - place.row);
    place.length = plan.rowLength;
  }
  int64_t rest = place.row;
  for (int d = plan.rank - 2; d >= 0; --d) {
    place.index[d] = rest % plan.dims[d];
    rest /= plan.dims[d];
  }
  return place;
}

void loadElements(void* to, const std::byte* from, DType dtype, int64_t offset, int64_t stride, int64_t n) {
  switch (dtype) {
    case DType::f64:
      return loadRow(static_cast<double*>(to), reinterpret_cast<const double*>(from) + offset, stride, n);
    case DType::bf16:
      return loadRow(static_cast<float*>(to), reinterpret_cast<const bf16*>(from) + offset, stride, n);
    case DType::f16:
      return loadRow(static_cast<float*>(to), reinterpret_cast<const f16*>(from) + offset, stride, n);
    case DType::i32:
      return loadRow(static_cast<int32_t*>(to), reinterpret_cast<const int32_t*>(from) + offset, stride, n);
    case DType::boolean:
      return loadRow(static_cast<int32_t*>(to), reinterpret_cast<const uint8_t*>(from) + offset, stride, n);
    default:
      return loadRow(static_cast<float*>(to), reinterpret_cast<const float*>(from) + offset, stride, n);
  }
}

template <class T>
void storeElementsOf(std::byte* to, DType dtype, int64_t offset, int64_t stride, const T* from, int64_t n) {
  if (dtype == DType::boolean) return storeRow(reinterpret_cast<uint8_t*>(to) + offset, stride, from, n);
  if constexpr (__is_same(T, float)) {
    if (dtype == DType::bf16) return storeRow(reinterpret_cast<bf16*>(to) + offset, stride, from, n);
    if (dtype == DType::f16) return storeRow(reinterpret_cast<f16*>(to) + offset, stride, from, n);
  }
  storeRow(reinterpret_cast<T*>(to) + offset, stride, from, n);
}

void storeElements(const Target& target, ValueType type, int64_t offset, int64_t stride, const std::byte* from,
                   int64_t n) {
  switch (type) {
    case ValueType::f32:
      return storeElementsOf(target.data, target.dtype, offset, stride, reinterpret_cast<const float*>(from), n);
    case ValueType::f64:
      return storeElementsOf(target.data, target.dtype, offset, stride, reinterpret_cast<const double*>(from), n);
    case ValueType::i32:
      return storeElementsOf(target.data, target.dtype, offset, stride, reinterpret_cast<const int32_t*>(from), n);
  }
}

template <class T>
void countRow(T* to, int32_t first, int64_t stride, int64_t n) {
  const uint32_t step = static_cast<uint32_t>(stride);
  for (int64_t i = 0; i < n; ++i) {
    to[i] = static_cast<T>(static_cast<int32_t>(static_cast<uint32_t>(first) + static_cast<uint32_t>(i) * step));
  }
}

// Fills a leaf's buffer with the elements of a block.
void fillLeaf(const Plan& plan, const Leaf& leaf, Place place, std::byte* to) {
  const ValueType type = plan.type[leaf.value];
  const int64_t stride = leaf.strides[plan.rank - 1];
  const int64_t rowBytes = place.length * valueSize(type);
  for (int64_t r = 0; r < place.rows; ++r, to += rowBytes, place.nextRow(plan)) {
    const int64_t offset = place.offset(plan, leaf.strides);
    if (leaf.source != Source::iota) {
      loadElements(to, leaf.data, leaf.dtype, offset, stride, place.length);
      continue;
    }
    const int32_t first = static_cast<int32_t>(static_cast<uint32_t>(leaf.start) + static_cast<uint32_t>(offset));
    if (type == ValueType::f32) countRow(reinterpret_cast<float*>(to), first, stride, place.length);
    if (type == ValueType::f64) countRow(reinterpret_cast<double*>(to), first, stride, place.length);
    if (type == ValueType::i32) countRow(reinterpret_cast<int32_t*>(to), first, stride, place.length);
  }
}

void storeTarget(const Plan& plan, const Target& target, Place place, const std::byte* from) {
  const ValueType type = plan.type[target.value];
  if (target.linear) {
    const int64_t at = place.row * plan.rowLength + place.column;
    return storeElements(target, type, at, 1, from, place.rows * place.length);
  }
  const int64_t stride = target.strides[plan.rank - 1];
  for (int64_t r = 0; r < place.rows; ++r, from += place.length * valueSize(type), place.nextRow(plan)) {
    storeElements(target, type, place.offset(plan, target.strides), stride, from, place.length);
  }
}

void fillConstant(void* to, ValueType type, double number, int64_t n) {
  const float single = static_cast<float>(number);
  const int32_t whole = castTo<int32_t>(number);
  if (type == ValueType::f32) loadRow(static_cast<float*>(to), &single, 0, n);
  if (type == ValueType::f64) loadRow(static_cast<double*>(to), &number, 0, n);
  if (type == ValueType::i32) loadRow(static_cast<int32_t*>(to), &whole, 0, n);
}

// Runs blocks [begin, end) on one thread.
class Interpreter {
 public:
  Interpreter(const Plan& plan, std::byte* workspace) : plan_(plan) {
    for (int v = 0; v < plan.values; ++v) value_[v] = workspace + std::max(plan.slot[v], 0) * kBlockBytes;
  }

  void run(int64_t begin, int64_t end) {
    const Place first = placeOf(plan_, begin);
    for (int k = 0; k < plan_.constants; ++k) {
      const Plan::Constant& constant = plan_.constant[k];
      fillConstant(value_[constant.value], plan_.type[constant.value], constant.number,
                   plan_.rowsPerBlock * plan_.piece);
    }
    for (int i = 0; i < plan_.leaves; ++i) {
      const Leaf& leaf = plan_.leaf[i];
      if (leaf.source != Source::fixed) continue;
      Place whole = first;  // as much as any block holds
      whole.column = 0;
      whole.length = std::min(plan_.piece, plan_.rowLength);
      whole.rows = plan_.rowsPerBlock;
      fillLeaf(plan_, leaf, whole, value_[leaf.value]);
    }
    for (int64_t block = begin; block < end; ++block) runBlock(block == begin ? first : placeOf(plan_, block));
  }

 private:
  void runBlock(const Place& place) {
    const int64_t linear = place.row * plan_.rowLength + place.column;
    const int64_t n = place.rows * place.length;
    for (int i = 0; i < plan_.leaves; ++i) {
      const Leaf& leaf = plan_.leaf[i];
      const int64_t size = valueSize(plan_.type[leaf.value]);
      if (leaf.source == Source::linear) {
        value_[leaf.value] = const_cast<std::byte*>(leaf.data) + linear * size;
      } else if (leaf.source == Source::row) {
        value_[leaf.value] = const_cast<std::byte*>(leaf.data) + place.offset(plan_, leaf.strides) * size;
      } else if (leaf.source != Source::fixed) {
        fillLeaf(plan_, leaf, place, value_[leaf.value]);
      }
    }
    for (int k = 0; k < plan_.steps; ++k) {
      const Step& step = plan_.step[k];
      const int target = plan_.targetOf[step.y];
      if (target >= 0) value_[step.y] = plan_.target[target].data + linear * valueSize(plan_.type[step.y]);
      step.apply(value_[step.y], value_[step.a], value_[step.b], value_[step.c], n);
    }
    for (int j = 0; j < plan_.targets; ++j) {
      if (!plan_.target[j].direct) storeTarget(plan_, plan_.target[j], place, value_[plan_.target[j].value]);
    }
  }

  const Plan& plan_;
  std::byte* value_[kMaxExpressionValues];  // where each value of the block is
};

void runElementwise(const Call& call) {
  if (call.out[0].view->count() == 0) return;
  Plan plan;
  readExpression(call, plan);
  collapse(*call.out[0].view, plan);
  cutBlocks(plan);
  chooseSources(plan);
  assignBuffers(plan);
  const int64_t perBlock = plan.rowsPerBlock * plan.piece;
  const int64_t perTask = std::max<int64_t>(1, kTaskElements / perBlock);
  call.pool->run((plan.blocks + perTask - 1) / perTask, [&](int64_t task, int thread) {
    Interpreter interpreter(plan, call.pool->workspace(thread));
    interpreter.run(task * perTask, std::min(plan.blocks, (task + 1) * perTask));
  });
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(elementwise, {Op::elementwise, checkElementwise, runElementwise})
