// The check of the elementwise kernel: operands of the same dims, and an expression whose words all mean something.
#include "backend/checks/elementwise.h"

#include "backend/checks/check.h"
#include "backend/expression.h"

namespace meshwork {
namespace {

bool canStore(ValueType type, DType dtype) {
  if (dtype == DType::boolean) return true;
  if (type == ValueType::f32) return isFloat(dtype) && dtype != DType::f64;
  return dtype == (type == ValueType::f64 ? DType::f64 : DType::i32);
}

// Operations that exist for float types only.
bool isFloatOnly(EOp op) {
  return (op >= EOp::exp_ && op <= EOp::silu_grad_) || op == EOp::pow_ || op == EOp::round_to_;
}

Status checkOperands(const Call& call) {
  if (call.outputs < 1 || call.outputs > kMaxExpressionOutputs) {
    return refuse("elementwise has " + std::to_string(call.outputs) + " outputs, expected 1 to " +
                  std::to_string(kMaxExpressionOutputs));
  }
  for (int i = 0; i < call.inputs + call.outputs; ++i) {
    const bool isInput = i < call.inputs;
    const Operand& operand = isInput ? call.in[i] : call.out[i - call.inputs];
    const std::string name =
        isInput ? "elementwise: x" + std::to_string(i) : "elementwise: y" + std::to_string(i - call.inputs);
    MESHWORK_TRY(checkSameDims(name.c_str(), operand, "y0", call.out[0]));
    if (!isInput) MESHWORK_TRY(checkNoRepeats(name.c_str(), operand));
  }
  return {};
}

// The types of the values so far; each instruction is checked against them and adds its own.
class Checker {
 public:
  explicit Checker(const Call& call) : call_(call) {
    for (; count_ < call.inputs; ++count_) types_[count_] = valueTypeOf(call.in[count_].view->dtype);
  }

  Status add(int k) {
    const int32_t* words = call_.attrs + attr::elementwise::count_ + 5 * k;
    name_ = "elementwise: instruction " + std::to_string(k);
    if (words[0] < 0 || words[0] >= kEOpCount)
      return refuse(name_ + " has unknown operation " + std::to_string(words[0]));
    if (words[1] < 0 || words[1] > 2) return refuse(name_ + " has unknown type " + std::to_string(words[1]));
    const Instruction step = instructionAt(call_, k);
    MESHWORK_TRY(checkInstruction(step));
    types_[count_++] = resultType(step);
    return {};
  }

  Status output(int j) const {
    const int32_t value = outputValue(call_, j);
    const std::string name = "elementwise: y" + std::to_string(j);
    if (value < 0 || value >= count_)
      return refuse(name + " is value " + std::to_string(value) + ", which does not exist");
    const DType dtype = call_.out[j].view->dtype;
    if (!canStore(types_[value], dtype))
      return refuse(name + " is " + dtypeName(dtype) + ", its value has another type");
    return {};
  }

 private:
  Status checkInstruction(const Instruction& step) const {
    if (step.op == EOp::const_) {
      if (step.a >= 0 && step.a < call_.floatCount) return {};
      return refuse(name_ + " takes float " + std::to_string(step.a) + " of " + std::to_string(call_.floatCount));
    }
    if (step.op == EOp::iota_) {
      if (step.a < 0 || step.a >= call_.out[0].view->rank)
        return refuse(name_ + " counts along dim " + std::to_string(step.a));
      if (step.b >= -1 && step.b < call_.tableCount) return {};
      return refuse(name_ + " takes table word " + std::to_string(step.b) + " of " + std::to_string(call_.tableCount));
    }
    const int arity = kEOpArity[static_cast<int>(step.op)];
    const int32_t values[3] = {step.a, step.b, step.c};
    for (int i = 0; i < arity; ++i) {
      if (values[i] < 0 || values[i] >= count_) {
        return refuse(name_ + " reads value " + std::to_string(values[i]) + ", which does not exist yet");
      }
    }
    if (step.op == EOp::cast_) return {};
    for (int i = 0; i < arity; ++i) {
      const ValueType expected = step.op == EOp::select_ && i == 0 ? ValueType::i32 : step.type;
      if (types_[values[i]] != expected)
        return refuse(name_ + " reads value " + std::to_string(values[i]) + " of another type");
    }
    if (step.type == ValueType::i32 && isFloatOnly(step.op)) return unsupported(name_ + " is not defined for i32");
    if (step.op == EOp::round_to_) return checkRoundTo(step);
    return {};
  }

  Status checkRoundTo(const Instruction& step) const {
    const auto to = static_cast<DType>(step.b);
    const bool known = to == DType::f32 || to == DType::bf16 || to == DType::f16;
    if (known && step.type == ValueType::f32) return {};
    return unsupported(name_ + " rounds to dtype " + std::to_string(step.b) + "; from f32 to bf16 and f16 there is");
  }

  const Call& call_;
  ValueType types_[kMaxExpressionValues];
  int count_ = 0;
  std::string name_;
};

}  // namespace

Status checkElementwise(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::elementwise));
  MESHWORK_TRY(checkOperands(call));
  const int32_t count = instructionCount(call);
  if (count < 0 || count > kMaxExpressionValues || call.inputs > kMaxExpressionValues - count) {
    return refuse("elementwise has " + std::to_string(call.inputs) + " inputs and " + std::to_string(count) +
                  " instructions, expected at most " + std::to_string(kMaxExpressionValues) + " together");
  }
  const int words = attr::elementwise::count_ + 5 * count + 1 + call.outputs;
  if (call.attrCount != words || call.attrs[words - call.outputs - 1] != call.outputs) {
    return refuse("elementwise: the expression's words do not agree with its counts");
  }
  Checker checker(call);
  for (int k = 0; k < count; ++k) MESHWORK_TRY(checker.add(k));
  for (int j = 0; j < call.outputs; ++j) MESHWORK_TRY(checker.output(j));
  return {};
}

}  // namespace meshwork
