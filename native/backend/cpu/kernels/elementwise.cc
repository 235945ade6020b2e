// The elementwise kernel. Operands' dims are collapsed and the elements cut into blocks; threaded code (element_code.h)
// computes a block group by group, in registers as far as it goes. Contiguous inputs are read and contiguous outputs
// written in place. An output may be the same memory as an input of the same dtype and strides.
#include "backend/checks/elementwise.h"

#include "backend/cpu/kernels/element_plan.h"

namespace meshwork::MESHWORK_ISA {
namespace {

// ---- planning ----

void readExpression(const Call& call, Plan& plan) {
  plan.values = call.inputs + instructionCount(call);
  for (int i = 0; i < call.inputs; ++i) {
    Leaf& leaf = plan.leaf[plan.leaves++];
    leaf = {call.in[i].data, call.in[i].view->dtype, Origin::gathered, i, 0, 0, -1, {}};
    copyStrides(leaf.strides, call.in[i].view->strides);
    plan.type[i] = valueTypeOf(leaf.dtype);
  }
  for (int k = 0; k < instructionCount(call); ++k) {
    const Instruction step = instructionAt(call, k);
    const int value = call.inputs + k;
    plan.type[value] = resultType(step);
    if (step.op == EOp::const_) {
      plan.leaf[plan.leaves++] = {nullptr, DType::f64, Origin::uniform, value, 0, call.floats[step.a], -1, {}};
    } else if (step.op == EOp::iota_) {
      Leaf& leaf = plan.leaf[plan.leaves++];
      leaf = {nullptr, DType::i32, Origin::iota, value, step.b < 0 ? 0 : call.table[step.b], 0, -1, {}};
      leaf.strides[step.a] = 1;
    } else {
      plan.step[plan.steps++] = {findForms(step, plan.type[step.a]),  value, step.a, step.b, step.c,
                                 kEOpArity[static_cast<int>(step.op)]};
    }
  }
  for (int j = 0; j < call.outputs; ++j) {
    Target& target = plan.target[plan.targets++];
    target = {call.out[j].data, call.out[j].view->dtype, false, false, outputValue(call, j), -1, {}};
    copyStrides(target.strides, call.out[j].view->strides);
  }
  for (int v = 0; v < plan.values; ++v) plan.wide |= plan.type[v] == ValueType::f64;
}

// Whether all operands can be walked from end to end, however long blocks are.
bool isPlain(const Plan& plan) {
  if (plan.layout.rank > 1) return false;
  for (int i = 0; i < plan.leaves; ++i) {
    const Leaf& leaf = plan.leaf[i];
    if (leaf.origin == Origin::iota || leaf.strides[0] > 1) return false;
  }
  for (int j = 0; j < plan.targets; ++j) {
    if (!plan.layout.isLinear(plan.target[j].strides)) return false;
  }
  return true;
}

Origin originOf(const Layout& layout, const Leaf& leaf) {
  if (leaf.origin != Origin::gathered) return leaf.origin;
  const int64_t last = layout.lastStride(leaf.strides);
  const bool repeats = layout.isSameForRows(leaf.strides);
  if (repeats && (last == 0 || layout.rowLength == 1)) return Origin::uniform;
  if (layout.isLinear(leaf.strides) || (last == 1 && layout.rowsPerBlock == 1)) return Origin::memory;
  if (last == 0 && layout.rowsPerBlock == 1) return Origin::perRow;
  return repeats && layout.pieces == 1 ? Origin::repeated : Origin::gathered;
}

void choosePlaces(Plan& plan) {
  for (int i = 0; i < plan.leaves; ++i) {
    Leaf& leaf = plan.leaf[i];
    leaf.origin = originOf(plan.layout, leaf);
    if (leaf.origin >= Origin::repeated) leaf.buffer = plan.buffers++;
  }
  const Layout& layout = plan.layout;
  for (int j = 0; j < plan.targets; ++j) {
    Target& target = plan.target[j];
    target.linear = layout.isLinear(target.strides);
    if (!target.linear) target.buffer = plan.buffers++;
    const ValueType type = plan.type[target.value];
    target.streams = target.linear && sameStorage(target.dtype, type) && plan.wide == (type == ValueType::f64) &&
                     layout.rows * layout.rowLength * valueSize(type) >= kStreamedBytes &&
                     layout.rowLength * valueSize(type) % kVectorBytes == 0 &&
                     reinterpret_cast<uintptr_t>(target.data) % kVectorBytes == 0;
  }
}

// ---- moving elements ----

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
void fillBlock(const Plan& plan, const Leaf& leaf, Place place, std::byte* to) {
  const Layout& layout = plan.layout;
  const ValueType type = plan.type[leaf.value];
  const int64_t stride = layout.lastStride(leaf.strides);
  const int64_t rowBytes = place.length * valueSize(type);
  for (int64_t r = 0; r < place.rows; ++r, to += rowBytes, place.nextRow(layout)) {
    const int64_t offset = place.offset(layout, leaf.strides);
    if (leaf.origin != Origin::iota) {
      loadElements(to, leaf.data, leaf.dtype, offset, stride, place.length);
      continue;
    }
    const int32_t first = static_cast<int32_t>(static_cast<uint32_t>(leaf.start) + static_cast<uint32_t>(offset));
    if (type == ValueType::f32) countRow(reinterpret_cast<float*>(to), first, stride, place.length);
    if (type == ValueType::f64) countRow(reinterpret_cast<double*>(to), first, stride, place.length);
    if (type == ValueType::i32) countRow(reinterpret_cast<int32_t*>(to), first, stride, place.length);
  }
}

// Towards zero, as Cast does it.
int32_t wholeOf(double x) {
  if (x != x) return 0;
  return x >= 2147483648.0 ? INT32_MAX : x <= -2147483648.0 ? INT32_MIN : static_cast<int32_t>(x);
}

// Fills a leaf's group with one number.
void fillGroup(const Plan& plan, const Leaf& leaf, int64_t offset, std::byte* to) {
  const ValueType type = plan.type[leaf.value];
  const int64_t n = kGroupBytes / valueSize(type);
  if (leaf.data) return loadElements(to, leaf.data, leaf.dtype, offset, 0, n);
  const float single = static_cast<float>(leaf.number);
  const int32_t whole = wholeOf(leaf.number);
  if (type == ValueType::f32) loadRow(reinterpret_cast<float*>(to), &single, 0, n);
  if (type == ValueType::f64) loadRow(reinterpret_cast<double*>(to), &leaf.number, 0, n);
  if (type == ValueType::i32) loadRow(reinterpret_cast<int32_t*>(to), &whole, 0, n);
}

// Scatters a block of results to a target that is not contiguous.
void storeBlock(const Plan& plan, const Target& target, Place place, const std::byte* from) {
  const Layout& layout = plan.layout;
  const ValueType type = plan.type[target.value];
  const int64_t stride = layout.lastStride(target.strides);
  for (int64_t r = 0; r < place.rows; ++r, from += place.length * valueSize(type), place.nextRow(layout)) {
    storeElements(target, type, place.offset(layout, target.strides), stride, from, place.length);
  }
}

// ---- running ----

// Runs blocks [begin, end) on one thread.
class Worker {
 public:
  Worker(const Plan& plan, std::byte* workspace) : plan_(plan), workspace_(workspace) {
    for (int s = 0; s < plan.sources(); ++s) source_[s] = {plan.group(workspace, s), 0};
  }

  void run(int64_t begin, int64_t end) {
    const Place first = placeOf(plan_.layout, begin);
    for (int i = 0; i < plan_.leaves; ++i) {
      const Leaf& leaf = plan_.leaf[i];
      if (leaf.buffer >= 0) {
        source_[leaf.value] = {plan_.block(workspace_, leaf.buffer), groupBytes(valueSize(plan_.type[leaf.value]))};
      }
      if (leaf.origin == Origin::uniform) fillGroup(plan_, leaf, 0, source_[leaf.value].data);
      if (leaf.origin != Origin::repeated) continue;
      Place whole = first;  // as much as any block holds
      whole.rows = plan_.layout.rowsPerBlock;
      fillBlock(plan_, leaf, whole, source_[leaf.value].data);
    }
    for (int64_t block = begin; block < end; ++block) {
      runBlock(block == begin ? first : placeOf(plan_.layout, block));
    }
    endStreams();
  }

 private:
  int64_t groupBytes(int64_t size) const { return groupElements(plan_.wide) * size; }

  void runBlock(const Place& place) {
    for (int i = 0; i < plan_.leaves; ++i) placeLeaf(plan_.leaf[i], place);
    for (int j = 0; j < plan_.targets; ++j) placeTarget(j, place);
    const int64_t each = groupElements(plan_.wide), n = place.count();
    for (int64_t g = 0; g < n / each; ++g) runGroup(plan_.code, source_, g);
    if (n % each != 0) runRest(n / each, n % each);
    for (int j = 0; j < plan_.targets; ++j) {
      const Target& target = plan_.target[j];
      if (!target.linear) storeBlock(plan_, target, place, source_[plan_.out(j)].data);
    }
  }

  void placeLeaf(const Leaf& leaf, const Place& place) {
    std::byte* own = source_[leaf.value].data;
    if (leaf.origin == Origin::memory) {
      const int64_t size = dtypeSize(leaf.dtype), at = place.offset(plan_.layout, leaf.strides);
      source_[plan_.raw(leaf.value)] = {const_cast<std::byte*>(leaf.data) + at * size, groupBytes(size)};
    } else if (leaf.origin == Origin::perRow) {
      fillGroup(plan_, leaf, place.offset(plan_.layout, leaf.strides), own);
    } else if (leaf.origin == Origin::gathered || leaf.origin == Origin::iota) {
      fillBlock(plan_, leaf, place, own);
    }
  }

  void placeTarget(int j, const Place& place) {
    const Target& target = plan_.target[j];
    if (target.linear) {
      const int64_t size = dtypeSize(target.dtype);
      source_[plan_.out(j)] = {target.data + place.linear(plan_.layout) * size, groupBytes(size)};
    } else {
      source_[plan_.out(j)] = {plan_.block(workspace_, target.buffer), groupBytes(valueSize(plan_.type[target.value]))};
    }
  }

  // The last group, of fewer elements: what is read and written in place is so by way of a whole group.
  void runRest(int64_t group, int64_t count) {
    for (int i = 0; i < plan_.leaves; ++i) {
      const Leaf& leaf = plan_.leaf[i];
      if (leaf.origin != Origin::memory) continue;
      Source& source = source_[plan_.raw(leaf.value)];
      std::byte* own = plan_.group(workspace_, plan_.raw(leaf.value));
      std::memcpy(own, source.data + group * source.step, static_cast<size_t>(count * dtypeSize(leaf.dtype)));
      source = {own, 0};
    }
    std::byte* to[kMaxExpressionOutputs];
    for (int j = 0; j < plan_.targets; ++j) {
      if (!plan_.target[j].linear) continue;
      Source& source = source_[plan_.out(j)];
      to[j] = source.data + group * source.step;
      source = {plan_.group(workspace_, plan_.out(j)), 0};
    }
    runGroup(plan_.code, source_, group);
    for (int j = 0; j < plan_.targets; ++j) {
      const Target& target = plan_.target[j];
      if (!target.linear) continue;
      std::memcpy(to[j], source_[plan_.out(j)].data, static_cast<size_t>(count * dtypeSize(target.dtype)));
    }
  }

  const Plan& plan_;
  std::byte* workspace_;
  Source source_[kMaxSources];
};

void runElementwise(const Call& call) {
  if (call.out[0].view->count() == 0) return;
  Plan plan;
  readExpression(call, plan);
  plan.layout.collapse(*call.out[0].view, [&](const auto& f) {
    for (int i = 0; i < plan.leaves; ++i) f(plan.leaf[i].strides);
    for (int j = 0; j < plan.targets; ++j) f(plan.target[j].strides);
  });
  plan.layout.cutBlocks(isPlain(plan) ? kTaskElements : kBlockBytes / (plan.wide ? 8 : 4));
  choosePlaces(plan);
  Coder(plan).write();
  const int64_t perTask = std::max<int64_t>(1, kTaskElements / plan.layout.perBlock());
  call.pool->run((plan.layout.blocks + perTask - 1) / perTask, [&](int64_t task, int thread) {
    Worker worker(plan, call.pool->workspace(thread));
    worker.run(task * perTask, std::min(plan.layout.blocks, (task + 1) * perTask));
  });
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(elementwise, {Op::elementwise, checkElementwise, runElementwise})
