// Elementwise expressions: a kernel of their own where they can be compiled (elementwise/fused.h), else one that
// interprets them. An output may be the same memory as an input of the same dtype and strides: a thread reads all of an
// element, or of a pack of neighbours, before it writes any.
#include <algorithm>

#include "backend/checks/elementwise.h"
#include "backend/cuda/elementwise/fused.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/dialect.h"
#include "backend/cuda/launch.h"
#include "backend/expression.h"

// clang-format off: it includes nothing, so it comes after what declares CUDA's words
#include "backend/cuda/elementwise/functions.h"
// clang-format on

namespace meshwork::cuda {
namespace {

constexpr int kThreads = 128;

// ---- an expression as the interpreter's parameter ----

struct Step {
  uint8_t op, type, a, b, c;  // type: of the operands; of a cast: of the result, and b is a's own
};

// Two sizes: a launch with few parameters starts sooner.
template <int kOperands, int kSteps>
struct Plan {
  int rank, inputs, outputs, counters, steps;
  int64_t count;
  int64_t dims[kMaxRank];
  std::byte* data[kOperands];
  int64_t strides[kOperands][kMaxRank];
  int32_t starts[kOperands];
  uint8_t dtypes[kOperands];
  uint8_t values[kOperands];  // a counter's number, an output's
  uint8_t types[kOperands];   // that value's type
  Step step[kSteps];
  double constants[kSteps];
};
using SmallPlan = Plan<24, 64>;
using LargePlan = Plan<kMaxElementOperands, kMaxExpressionValues>;
static_assert(sizeof(SmallPlan) <= 4096 && sizeof(LargePlan) <= 32764);

union Value {
  float f;
  double d;
  int32_t i;
};

// ---- the interpreter ----

__device__ __forceinline__ Value valueOf(float x) {
  Value v;
  v.f = x;
  return v;
}
__device__ __forceinline__ Value valueOf(double x) {
  Value v;
  v.d = x;
  return v;
}
__device__ __forceinline__ Value valueOf(int32_t x) {
  Value v;
  v.i = x;
  return v;
}
template <class T>
__device__ __forceinline__ T get(const Value& v) {
  if constexpr (std::is_same_v<T, float>) return v.f;
  if constexpr (std::is_same_v<T, double>) return v.d;
  if constexpr (std::is_same_v<T, int32_t>) return v.i;
}

// What every type has.
template <class T>
__device__ __forceinline__ Value evaluateCommon(EOp op, T a, T b) {
  namespace f = meshwork_fused;
  switch (op) {
    case EOp::neg_:
      return valueOf(f::op_neg(a));
    case EOp::abs_:
      return valueOf(f::op_abs(a));
    case EOp::sign_:
      return valueOf(f::op_sign(a));
    case EOp::floor_:
      return valueOf(f::op_floor(a));
    case EOp::ceil_:
      return valueOf(f::op_ceil(a));
    case EOp::round_:
      return valueOf(f::op_round(a));
    case EOp::not_:
      return valueOf(f::op_not(a));
    case EOp::is_finite_:
      return valueOf(f::op_is_finite(a));
    case EOp::add_:
      return valueOf(f::op_add(a, b));
    case EOp::sub_:
      return valueOf(f::op_sub(a, b));
    case EOp::mul_:
      return valueOf(f::op_mul(a, b));
    case EOp::div_:
      return valueOf(f::op_div(a, b));
    case EOp::rem_:
      return valueOf(f::op_rem(a, b));
    case EOp::max_:
      return valueOf(f::op_max(a, b));
    case EOp::min_:
      return valueOf(f::op_min(a, b));
    case EOp::eq_:
      return valueOf(f::op_eq(a, b));
    case EOp::ne_:
      return valueOf(f::op_ne(a, b));
    case EOp::lt_:
      return valueOf(f::op_lt(a, b));
    case EOp::le_:
      return valueOf(f::op_le(a, b));
    case EOp::and_:
      return valueOf(f::op_and(a, b));
    default:
      return valueOf(f::op_or(a, b));
  }
}

template <class T>
__device__ Value evaluateFloat(EOp op, T a, T b) {
  namespace f = meshwork_fused;
  switch (op) {
    case EOp::exp_:
      return valueOf(f::op_exp(a));
    case EOp::log_:
      return valueOf(f::op_log(a));
    case EOp::sqrt_:
      return valueOf(f::op_sqrt(a));
    case EOp::rsqrt_:
      return valueOf(f::op_rsqrt(a));
    case EOp::reciprocal_:
      return valueOf(f::op_reciprocal(a));
    case EOp::sin_:
      return valueOf(f::op_sin(a));
    case EOp::cos_:
      return valueOf(f::op_cos(a));
    case EOp::tanh_:
      return valueOf(f::op_tanh(a));
    case EOp::erf_:
      return valueOf(f::op_erf(a));
    case EOp::sigmoid_:
      return valueOf(f::op_sigmoid(a));
    case EOp::gelu_:
      return valueOf(f::op_gelu(a));
    case EOp::gelu_grad_:
      return valueOf(f::op_gelu_grad(a, b));
    case EOp::silu_:
      return valueOf(f::op_silu(a));
    case EOp::silu_grad_:
      return valueOf(f::op_silu_grad(a, b));
    case EOp::pow_:
      return valueOf(f::op_pow(a, b));
    default:
      return evaluateCommon(op, a, b);
  }
}

template <class R>
__device__ __forceinline__ Value castValue(ValueType from, const Value& v) {
  switch (from) {
    case ValueType::f32:
      return valueOf(meshwork_fused::cast<R>(v.f));
    case ValueType::f64:
      return valueOf(meshwork_fused::cast<R>(v.d));
    default:
      return valueOf(meshwork_fused::cast<R>(v.i));
  }
}

__device__ __forceinline__ Value castTo(ValueType to, ValueType from, const Value& v) {
  switch (to) {
    case ValueType::f32:
      return castValue<float>(from, v);
    case ValueType::f64:
      return castValue<double>(from, v);
    default:
      return castValue<int32_t>(from, v);
  }
}

__device__ __forceinline__ Value evaluate(const Step& step, const Value* values) {
  const auto op = static_cast<EOp>(step.op);
  const auto type = static_cast<ValueType>(step.type);
  const Value a = values[step.a];
  if (op == EOp::cast_) return castTo(type, static_cast<ValueType>(step.b), a);
  if (op == EOp::round_to_) {
    const auto to = static_cast<DType>(step.b);
    if (to == DType::bf16) return valueOf(meshwork_fused::roundToBf16(a.f));
    return to == DType::f16 ? valueOf(meshwork_fused::roundToF16(a.f)) : a;
  }
  if (op == EOp::select_) return a.i != 0 ? values[step.b] : values[step.c];
  const Value b = values[step.b];
  switch (type) {
    case ValueType::f32:
      return evaluateFloat(op, a.f, b.f);
    case ValueType::f64:
      return evaluateFloat(op, a.d, b.d);
    default:
      return evaluateCommon(op, a.i, b.i);
  }
}

__device__ __forceinline__ Value readElement(const std::byte* data, DType dtype, int64_t at) {
  namespace f = meshwork_fused;
  switch (dtype) {
    case DType::f64:
      return valueOf(reinterpret_cast<const double*>(data)[at]);
    case DType::bf16:
      return valueOf(f::widen(reinterpret_cast<const f::Bf16*>(data)[at]));
    case DType::f16:
      return valueOf(f::widen(reinterpret_cast<const f::F16*>(data)[at]));
    case DType::i32:
      return valueOf(reinterpret_cast<const int32_t*>(data)[at]);
    case DType::boolean:
      return valueOf(f::widen(reinterpret_cast<const f::Bool*>(data)[at]));
    default:
      return valueOf(reinterpret_cast<const float*>(data)[at]);
  }
}

// The value's type is the dtype's, but for bool, which takes any.
__device__ __forceinline__ void writeElement(std::byte* data, DType dtype, int64_t at, const Value& v, ValueType type) {
  namespace f = meshwork_fused;
  switch (dtype) {
    case DType::f64:
      reinterpret_cast<double*>(data)[at] = v.d;
      break;
    case DType::bf16:
      f::narrow(reinterpret_cast<f::Bf16*>(data)[at], v.f);
      break;
    case DType::f16:
      f::narrow(reinterpret_cast<f::F16*>(data)[at], v.f);
      break;
    case DType::i32:
      reinterpret_cast<int32_t*>(data)[at] = v.i;
      break;
    case DType::boolean: {
      auto& to = reinterpret_cast<f::Bool*>(data)[at];
      if (type == ValueType::f64) return f::narrow(to, v.d);
      if (type == ValueType::f32) return f::narrow(to, v.f);
      f::narrow(to, v.i);
      break;
    }
    default:
      reinterpret_cast<float*>(data)[at] = v.f;
  }
}

template <class P>
__device__ __forceinline__ int64_t offsetOf(const P& p, int operand, const int64_t* index) {
  int64_t at = 0;
  for (int d = 0; d < p.rank; ++d) at += index[d] * p.strides[operand][d];
  return at;
}

template <int kOperands, int kSteps>
__global__ void __launch_bounds__(kThreads) interpret(const __grid_constant__ Plan<kOperands, kSteps> p) {
  Value values[kSteps + kOperands < kMaxExpressionValues ? kSteps + kOperands : kMaxExpressionValues];
  const int64_t grid = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < p.count; i += grid) {
    int64_t index[kMaxRank], rest = i;
    for (int d = p.rank - 1; d >= 0; --d) {
      const int64_t outer = rest / p.dims[d];
      index[d] = rest - outer * p.dims[d];
      rest = outer;
    }
    for (int k = 0; k < p.inputs; ++k) {
      values[k] = readElement(p.data[k], static_cast<DType>(p.dtypes[k]), offsetOf(p, k, index));
    }
    for (int k = p.inputs + p.outputs; k < p.inputs + p.outputs + p.counters; ++k) {
      const auto at = static_cast<uint32_t>(offsetOf(p, k, index)) + static_cast<uint32_t>(p.starts[k]);
      values[p.values[k]] =
          castTo(static_cast<ValueType>(p.types[k]), ValueType::i32, valueOf(static_cast<int32_t>(at)));
    }
    for (int k = 0; k < p.steps; ++k) {
      const Step step = p.step[k];
      const auto op = static_cast<EOp>(step.op);
      if (op == EOp::iota_) continue;
      values[p.inputs + k] = op == EOp::const_
                                 ? castTo(static_cast<ValueType>(step.type), ValueType::f64, valueOf(p.constants[k]))
                                 : evaluate(step, values);
    }
    for (int k = p.inputs; k < p.inputs + p.outputs; ++k) {
      writeElement(p.data[k], static_cast<DType>(p.dtypes[k]), offsetOf(p, k, index), values[p.values[k]],
                   static_cast<ValueType>(p.types[k]));
    }
  }
}

// ---- on the host ----

template <class P>
void interpretCall(Device& device, const Call& call, const ElementLayout& layout) {
  P p;
  ValueType types[kMaxExpressionValues];
  p.rank = layout.rank;
  p.inputs = layout.inputs;
  p.outputs = layout.outputs;
  p.counters = layout.counters;
  p.steps = instructionCount(call);
  p.count = layout.count;
  std::copy_n(layout.dims, kMaxRank, p.dims);
  for (int i = 0; i < p.inputs; ++i) types[i] = valueTypeOf(call.in[i].view->dtype);
  for (int k = 0; k < p.steps; ++k) {
    const Instruction step = instructionAt(call, k);
    types[p.inputs + k] = resultType(step);
    const int arity = kEOpArity[static_cast<int>(step.op)];
    const auto word = [&](int32_t value, int position) { return static_cast<uint8_t>(position < arity ? value : 0); };
    Step& to = p.step[k];
    to = {static_cast<uint8_t>(step.op), static_cast<uint8_t>(step.type), word(step.a, 0), word(step.b, 1),
          word(step.c, 2)};
    if (step.op == EOp::cast_) to.b = static_cast<uint8_t>(types[step.a]);
    if (step.op == EOp::round_to_) to.b = static_cast<uint8_t>(step.b);
    if (step.op == EOp::const_) p.constants[k] = call.floats[step.a];
  }
  for (int i = 0; i < layout.total(); ++i) {
    const ElementOperand& operand = layout.operands[i];
    p.data[i] = operand.data;
    p.starts[i] = operand.start;
    p.values[i] = static_cast<uint8_t>(operand.value);
    p.dtypes[i] = static_cast<uint8_t>(operand.dtype);
    p.types[i] = static_cast<uint8_t>(types[operand.value]);
    std::copy_n(operand.strides, kMaxRank, p.strides[i]);
  }
  launch(device, blocksFor(device, p.count, kThreads, 32), kThreads, 0,
         interpret<sizeof(p.dtypes), sizeof(p.step) / sizeof(Step)>, p);
}

void runElementwise(const Call& call) {
  if (call.out[0].view->count() == 0) return;
  Device& device = deviceOf(call);
  ElementLayout layout;
  layOut(call, layout);
  if (launchFused(device, call, layout)) return;
  const bool small = layout.total() <= 24 && instructionCount(call) <= 64;
  small ? interpretCall<SmallPlan>(device, call, layout) : interpretCall<LargePlan>(device, call, layout);
}

void prepareElementwise(const Call& call) {
  if (call.out[0].view->count() == 0) return;
  ElementLayout layout;
  layOut(call, layout);
  prepareFused(deviceOf(call), call, layout);
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(elementwise, {Op::elementwise, checkElementwise, runElementwise, prepareElementwise})
