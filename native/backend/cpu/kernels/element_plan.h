// The plan of one elementwise call: where every value comes from and lies, and the code that computes a group of it.
#pragma once
#include "backend/cpu/kernels/element_layout.h"
#include "backend/cpu/kernels/element_ops.h"
#include "runtime/pool.h"

namespace meshwork::MESHWORK_ISA {

constexpr int64_t kBlockBytes = 3072;                        // one value of one block; 48 lines, to spread over sets
constexpr int64_t kBlockStride = kBlockBytes + kGroupBytes;  // code may read a group too far
constexpr int64_t kTaskElements = 32768;

// Where the numbers of a value come from.
enum class Origin : uint8_t {
  memory,    // in place: the elements of a block follow one another
  uniform,   // one number everywhere: a group of it, filled once per task
  perRow,    // one number for each row where a block is of one row: a group, filled for every block
  repeated,  // the same for every row: filled once per task to a buffer of a block
  gathered,  // copied to a buffer of a block, with conversion
  iota,      // counted into a buffer of a block
  computed   // by an instruction
};

struct Leaf {
  const std::byte* data;
  DType dtype;
  Origin origin;
  int value;
  int32_t start;  // of an iota
  double number;  // of a constant, whose data is null
  int buffer;     // of a block, or -1
  int64_t strides[kMaxRank];
};

struct Target {
  std::byte* data;
  DType dtype;
  bool linear;   // written in place; otherwise by way of a buffer of a block
  bool streams;  // past the caches
  int value;
  int buffer;  // of a block, or -1
  int64_t strides[kMaxRank];
};

struct Step {
  Forms forms;
  int y, a, b, c;
  int arity;
};

// Sources of the code: value v as kernels compute it is source v, a leaf's memory source raw(v), target j's out(j).
constexpr int kMaxSources = 2 * kMaxExpressionValues + kMaxExpressionOutputs;
// A leaf is widened at most once; a step takes at most a load, itself, and a store; a target a load and two stores.
constexpr int kMaxCode = 4 * kMaxExpressionValues + 3 * kMaxExpressionOutputs + 1;
static_assert(kMaxExpressionValues * kBlockStride + kMaxExpressionOutputs * kBlockStride + kMaxSources * kGroupBytes <=
              static_cast<int64_t>(Pool::kWorkspaceBytes));

// Too large to clear on every call: the arrays are filled as far as they are used.
struct Plan {
  Layout layout;
  bool wide = false;  // float64 occurs
  int values = 0, leaves = 0, steps = 0, targets = 0, codes = 0, buffers = 0;
  Leaf leaf[kMaxExpressionValues];
  Step step[kMaxExpressionValues];
  Target target[kMaxExpressionOutputs];
  Code code[kMaxCode];
  ValueType type[kMaxExpressionValues];

  int raw(int value) const { return values + value; }
  int out(int target) const { return 2 * values + target; }
  int sources() const { return 2 * values + targets; }
  // The workspace: a group for every source, then blocks.
  std::byte* group(std::byte* workspace, int source) const { return workspace + source * kGroupBytes; }
  std::byte* block(std::byte* workspace, int buffer) const {
    return workspace + sources() * kGroupBytes + buffer * kBlockStride;
  }
};

inline bool sameStorage(DType dtype, ValueType type) {
  return dtype == (type == ValueType::f32 ? DType::f32 : type == ValueType::f64 ? DType::f64 : DType::i32);
}

// Writes a plan's code: in the order of the steps, each result staying in hand if the next step wants it.
class Coder {
 public:
  explicit Coder(Plan& plan) : plan_(plan) {
    for (int v = 0; v < plan.values; ++v) {
      leafOf_[v] = madeBy_[v] = -1;
      readers_[v] = 0;
      widened_[v] = kept_[v] = false;
    }
    for (int i = 0; i < plan.leaves; ++i) leafOf_[plan.leaf[i].value] = i;
    findReaders();
  }

  void write() {
    for (int k = 0; k < plan_.steps; ++k) writeStep(k);
    writeRest();
    add(endCode, 0, 0);
  }

 private:
  void add(Run run, int x, int y) { plan_.code[plan_.codes++] = {run, x, y}; }

  // Whether a leaf's memory can be read as an operand: whole groups of what is computed with.
  bool isDirect(const Leaf& leaf) const {
    const ValueType type = plan_.type[leaf.value];
    return sameStorage(leaf.dtype, type) && plan_.wide == (type == ValueType::f64);
  }
  const Leaf* inMemory(int value) const {
    const int i = leafOf_[value];
    return i >= 0 && plan_.leaf[i].origin == Origin::memory ? &plan_.leaf[i] : nullptr;
  }

  bool isUniform(int value) const {
    const int i = leafOf_[value];
    return i >= 0 && (plan_.leaf[i].origin == Origin::uniform || plan_.leaf[i].origin == Origin::perRow);
  }

  // Which operand step k finds in hand, when it follows the step that made it: 0, 1, or -1.
  int inHandOf(int k) const {
    if (k == 0) return -1;
    const int made = plan_.step[k - 1].y;
    const Step& step = plan_.step[k];
    if (step.a == made) return 0;
    return step.arity == 2 && step.b == made ? 1 : -1;
  }

  void findReaders() {
    for (int k = 0; k < plan_.steps; ++k) {
      const Step& step = plan_.step[k];
      const int operands[3] = {step.a, step.b, step.c}, found = inHandOf(k);
      madeBy_[step.y] = k;
      for (int i = 0; i < step.arity; ++i) {
        ++readers_[operands[i]];
        if (i != found) kept_[operands[i]] = true;
        if (inMemory(operands[i])) lastReader_ = k;
      }
    }
    for (int j = 0; j < plan_.targets; ++j) {
      const int value = plan_.target[j].value;
      ++readers_[value];
      if (!leavesAtOnce(value)) kept_[value] = true;
    }
  }

  // A target may be the memory of an input: it is written when no input is read any more.
  bool leavesAtOnce(int value) const { return leafOf_[value] < 0 && madeBy_[value] >= lastReader_; }

  // The source of a value's numbers in memory.
  int memoryOf(int value) {
    const Leaf* leaf = inMemory(value);
    if (!leaf || widened_[value]) return value;
    if (isDirect(*leaf)) return plan_.raw(value);
    widen(value, *leaf);
    return value;
  }
  void widen(int value, const Leaf& leaf) {
    if (!widened_[value]) add(findMove<Widen>(leaf.dtype, plan_.wide), plan_.raw(value), value);
    widened_[value] = true;
  }

  void load(int value) {
    const Leaf* leaf = inMemory(value);
    if (leaf && !widened_[value] && (isDirect(*leaf) || readers_[value] == 1)) {
      add(findMove<Load>(leaf->dtype, plan_.wide), plan_.raw(value), 0);
    } else {
      add(kLoadGroup, memoryOf(value), 0);
    }
  }
  void writeStep(int k) {
    const Step& step = plan_.step[k];
    int found = inHandOf(k);

    if (found < 0) {
      load(step.a);
      found = 0;
    }
    if (step.arity == 3) {
      const int x = memoryOf(step.b), y = memoryOf(step.c);
      add(step.forms.own, x, y);
    } else if (step.arity == 2) {
      const int other = found == 1 ? step.a : step.b;
      add(step.forms.binary(found == 1, isUniform(other)), memoryOf(other), 0);
    } else {
      add(step.forms.own, 0, 0);
    }
    if (kept_[step.y]) add(kStoreGroup, step.y, 0);
    for (int j = 0; j < plan_.targets; ++j) {
      if (plan_.target[j].value == step.y && leavesAtOnce(plan_.target[j].value)) store(j);
    }
  }

  // The targets that had to wait. Inputs that leave as they came are all read before the first target is written.
  void writeRest() {
    for (int j = 0; j < plan_.targets && plan_.targets > 1; ++j) {
      const Leaf* leaf = inMemory(plan_.target[j].value);
      if (leaf) widen(leaf->value, *leaf);
    }
    for (int j = 0; j < plan_.targets; ++j) {
      if (leavesAtOnce(plan_.target[j].value)) continue;
      load(plan_.target[j].value);
      store(j);
    }
  }

  void store(int j) {
    const Target& target = plan_.target[j];
    const ValueType type = plan_.type[target.value];
    const DType own = type == ValueType::f32 ? DType::f32 : type == ValueType::f64 ? DType::f64 : DType::i32;
    add(target.streams ? runCode<StreamStore> : findStore(type, target.linear ? target.dtype : own, plan_.wide),
        plan_.out(j), 0);
  }

  Plan& plan_;
  int lastReader_ = 0;                  // the last step that reads an input in place
  int leafOf_[kMaxExpressionValues];    // the leaf a value is, or -1
  int madeBy_[kMaxExpressionValues];    // the step that computes it, or -1
  int readers_[kMaxExpressionValues];   // operands and targets that are this value
  bool widened_[kMaxExpressionValues];  // a leaf that lies in its group already
  bool kept_[kMaxExpressionValues];     // results that lie in their group: not only the next step reads them
};

}  // namespace meshwork::MESHWORK_ISA
