// Generates the CUDA C++ of a fused elementwise kernel: a thread loads a pack of neighbours of every input, evaluates
// the expression for each, and stores the packs of the outputs.
#include "backend/cuda/elementwise/generate.h"

#include <bit>
#include <cstdio>
#include <cstring>

namespace meshwork::cuda {
namespace {

// functions.h, as text.
constexpr const char* kFunctions =
#include "functions_text.inc"
    ;

constexpr const char* kNames[] = {
    "const", "iota",      "cast",  "round_to",   "neg", "abs", "sign", "floor", "ceil",    "round", "exp",
    "log",   "sqrt",      "rsqrt", "reciprocal", "sin", "cos", "tanh", "erf",   "sigmoid", "gelu",  "gelu_grad",
    "silu",  "silu_grad", "not",   "is_finite",  "add", "sub", "mul",  "div",   "rem",     "max",   "min",
    "pow",   "eq",        "ne",    "lt",         "le",  "and", "or",   "select"};
static_assert(sizeof(kNames) / sizeof(kNames[0]) == kEOpCount);
static_assert(kNames[kEOpCount - 1][0] == 's' && static_cast<int>(EOp::select_) == kEOpCount - 1);

// How an operand is read or written.
enum class Access : char {
  linear = 'l',   // its elements are in the loops' order
  scalar = 's',   // one element
  pack = 'p',     // neighbours, found from the loops' indices
  same = 'e',     // one element for all neighbours
  apart = 'a',    // neighbours a stride apart
  counter = 'c',  // an index
};

Access accessOf(const ElementLayout& layout, int i) {
  const ElementOperand& operand = layout.operands[i];
  if (i >= layout.inputs + layout.outputs) return Access::counter;
  if (layout.linear(operand)) return Access::linear;
  if (i < layout.inputs && layout.scalar(operand)) return Access::scalar;
  const int64_t inner = operand.strides[layout.rank - 1];
  if (layout.width == 1 || inner == 1) return Access::pack;
  return inner == 0 ? Access::same : Access::apart;
}

bool isGeneral(Access access) { return access != Access::linear && access != Access::scalar; }

bool needsIndices(const ElementLayout& layout) {
  for (int i = 0; i < layout.total(); ++i) {
    if (isGeneral(accessOf(layout, i))) return true;
  }
  return false;
}

bool wideIndex(const ElementLayout& layout) { return layout.count / layout.width >= int64_t{1} << 31; }

const char* storageName(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "double";
    case DType::bf16:
      return "Bf16";
    case DType::f16:
      return "F16";
    case DType::i32:
      return "int";
    case DType::boolean:
      return "Bool";
    default:
      return "float";
  }
}

const char* typeName(ValueType type) {
  return type == ValueType::f32 ? "float" : type == ValueType::f64 ? "double" : "int";
}

template <class... A>
std::string format(const char* pattern, A... arguments) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, arguments...);
  return text;
}

int32_t saturate(double x) {
  if (!(x > -2147483648.0)) return x != x ? 0 : INT32_MIN;
  return x >= 2147483648.0 ? INT32_MAX : static_cast<int32_t>(x);
}

std::string literal(ValueType type, double number) {
  if (type == ValueType::i32) return format("wrap(0x%08xu)", static_cast<unsigned>(saturate(number)));
  if (type == ValueType::f32) {
    return format("__uint_as_float(0x%08xu)", std::bit_cast<uint32_t>(static_cast<float>(number)));
  }
  return format("__longlong_as_double(0x%016llxll)", static_cast<unsigned long long>(std::bit_cast<uint64_t>(number)));
}

// Writes the source, counting the parameter words it reads as fusedParameters() lays them out.
class Generator {
 public:
  Generator(const Call& call, const ElementLayout& layout) : call_(call), layout_(layout) {
    for (int i = 0; i < call.inputs; ++i) types_[i] = valueTypeOf(call.in[i].view->dtype);
  }

  std::string source() {
    indices();
    for (int i = 0; i < layout_.inputs; ++i) input(i);
    for (int i = layout_.inputs; i < layout_.inputs + layout_.outputs; ++i) output(i);
    for (int i = layout_.inputs + layout_.outputs; i < layout_.total(); ++i) counter(i);
    instructions();
    std::string text = kFunctions;
    text += "\nusing namespace meshwork_fused;\n";
    text += format("struct Parameters {\n  long long w[%d];\n};\n", static_cast<int>(fusedParameters(layout_).size()));
    text += format("MESHWORK_FUSED void __launch_bounds__(%d) %s(const __grid_constant__ Parameters p) {\n",
                   kFusedThreads, kFusedName);
    const char* index = wideIndex(layout_) ? "unsigned long long" : "unsigned";
    text += format("  using Index = %s;\n  const Index packs = static_cast<Index>(p.w[0]);\n", index);
    text += format(
        "  for (Index pack = static_cast<Index>(blockIdx.x) * %du + threadIdx.x; pack < packs; "
        "pack += static_cast<Index>(gridDim.x) * %du) {\n",
        kFusedThreads, kFusedThreads);
    text += before_;
    text += format("#pragma unroll\n    for (int k = 0; k < %d; ++k) {\n", layout_.width);
    text += body_ + "    }\n" + after_ + "  }\n}\n";
    return text;
  }

 private:
  int wordOf(int operand) const {
    int word = 1 + (needsIndices(layout_) ? layout_.rank : 0);
    for (int i = 0; i < operand; ++i) word += 1 + (isGeneral(accessOf(layout_, i)) ? layout_.rank : 0);
    return word;
  }

  // The index in every loop of this thread's pack.
  void indices() {
    if (!needsIndices(layout_)) return;
    before_ += "    Index rest = pack;\n";
    for (int d = layout_.rank - 1; d > 0; --d) {
      before_ += format("    const Index n%d = static_cast<Index>(p.w[%d]), q%d = rest / n%d;\n", d, 1 + d, d, d);
      const std::string times = d == layout_.rank - 1 ? format(" * %d", layout_.width) : "";
      before_ += format("    const long long i%d = static_cast<long long>(rest - q%d * n%d)%s;\n    rest = q%d;\n", d,
                        d, d, times.c_str(), d);
    }
    before_ += format("    const long long i0 = static_cast<long long>(rest)%s;\n",
                      layout_.rank == 1 ? format(" * %d", layout_.width).c_str() : "");
  }

  // Where operand i's pack begins, in elements.
  std::string offset(int i) const {
    if (accessOf(layout_, i) == Access::linear) return format("static_cast<long long>(pack) * %d", layout_.width);
    if (accessOf(layout_, i) == Access::scalar) return "0";
    std::string sum;
    for (int d = 0; d < layout_.rank; ++d) sum += format("%si%d * p.w[%d]", d ? " + " : "", d, wordOf(i) + 1 + d);
    return sum;
  }

  void input(int i) {
    const ElementOperand& operand = layout_.operands[i];
    const char* storage = storageName(operand.dtype);
    before_ += format("    %s x%d[%d];\n", typeName(types_[i]), i, layout_.width);
    const Access access = accessOf(layout_, i);
    const char* how = access == Access::scalar || access == Access::same ? "Same"
                      : access == Access::apart                          ? "Apart"
                                                                         : "Pack";
    before_ += format("    load%s<%d>(x%d, reinterpret_cast<const %s*>(p.w[%d]) + ", how, layout_.width, i, storage,
                      wordOf(i));
    before_ += offset(i);
    if (access == Access::apart) before_ += format(", p.w[%d]", wordOf(i) + layout_.rank);
    before_ += ");\n";
    body_ += format("      const %s v%d = x%d[k];\n", typeName(types_[i]), i, i);
  }

  void output(int i) {
    const ElementOperand& operand = layout_.operands[i];
    const char* storage = storageName(operand.dtype);
    const int j = i - layout_.inputs;
    after_ += format("    storePack<%d>(reinterpret_cast<%s*>(p.w[%d]) + ", layout_.width, storage, wordOf(i));
    after_ += offset(i) + format(", y%d);\n", j);
  }

  void counter(int i) {
    const ElementOperand& operand = layout_.operands[i];
    before_ += format("    const long long c%d = p.w[%d] + ", operand.value, wordOf(i)) + offset(i) + ";\n";
    counterStride_[operand.value] = wordOf(i) + layout_.rank;
  }

  void instructions() {
    for (int k = 0; k < instructionCount(call_); ++k) {
      const Instruction step = instructionAt(call_, k);
      const int value = call_.inputs + k;
      types_[value] = resultType(step);
      body_ += format("      const %s v%d = ", typeName(types_[value]), value) + expression(step, value) + ";\n";
    }
    for (int j = 0; j < layout_.outputs; ++j) {
      const int value = layout_.output(j).value;
      before_ += format("    %s y%d[%d];\n", typeName(types_[value]), j, layout_.width);
      body_ += format("      y%d[k] = v%d;\n", j, value);
    }
  }

  std::string expression(const Instruction& step, int value) const {
    const char* type = typeName(step.type);
    switch (step.op) {
      case EOp::const_:
        return literal(step.type, call_.floats[step.a]);
      case EOp::iota_:
        return format("static_cast<%s>(wrap(static_cast<unsigned>(c%d + k * p.w[%d])))", type, value,
                      counterStride_[value]);
      case EOp::cast_:
        return format("cast<%s>(v%d)", type, step.a);
      case EOp::round_to_:
        return format(step.b == static_cast<int32_t>(DType::bf16)  ? "roundToBf16(v%d)"
                      : step.b == static_cast<int32_t>(DType::f16) ? "roundToF16(v%d)"
                                                                   : "v%d",
                      step.a);
      default:
        break;
    }
    const char* name = kNames[static_cast<int>(step.op)];
    switch (kEOpArity[static_cast<int>(step.op)]) {
      case 1:
        return format("op_%s(v%d)", name, step.a);
      case 2:
        return format("op_%s(v%d, v%d)", name, step.a, step.b);
      default:
        return format("op_%s(v%d, v%d, v%d)", name, step.a, step.b, step.c);
    }
  }

  const Call& call_;
  const ElementLayout& layout_;
  ValueType types_[kMaxExpressionValues];
  int counterStride_[kMaxExpressionValues] = {};
  std::string before_, body_, after_;
};

void append(std::string& key, const void* data, size_t bytes) { key.append(static_cast<const char*>(data), bytes); }

}  // namespace

std::string fusedKey(const Call& call, const ElementLayout& layout) {
  std::string key;
  const int32_t head[] = {call.inputs, call.outputs, needsIndices(layout) ? layout.rank : 0, layout.width,
                          wideIndex(layout)};
  append(key, head, sizeof head);
  append(key, call.attrs, static_cast<size_t>(call.attrCount) * sizeof(int32_t));
  for (int i = 0; i < layout.total(); ++i) {
    key += static_cast<char>(layout.operands[i].dtype);
    key += static_cast<char>(accessOf(layout, i));
  }
  for (int k = 0; k < instructionCount(call); ++k) {
    const Instruction step = instructionAt(call, k);
    if (step.op == EOp::const_) append(key, &call.floats[step.a], sizeof(double));
  }
  return key;
}

std::string fusedSource(const Call& call, const ElementLayout& layout) { return Generator(call, layout).source(); }

std::vector<int64_t> fusedParameters(const ElementLayout& layout) {
  std::vector<int64_t> words = {layout.count / layout.width};
  if (needsIndices(layout)) {
    for (int d = 0; d < layout.rank; ++d) {
      words.push_back(d == layout.rank - 1 ? layout.dims[d] / layout.width : layout.dims[d]);
    }
  }
  for (int i = 0; i < layout.total(); ++i) {
    const ElementOperand& operand = layout.operands[i];
    const Access access = accessOf(layout, i);
    words.push_back(access == Access::counter ? operand.start : reinterpret_cast<int64_t>(operand.data));
    if (isGeneral(access)) words.insert(words.end(), operand.strides, operand.strides + layout.rank);
  }
  return words;
}

}  // namespace meshwork::cuda
