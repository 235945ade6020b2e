// The checks of attention and attention_grad.
#include "backend/checks/attention.h"

#include "backend/checks/check.h"

namespace meshwork {
namespace {

std::string label(const char* op, const char* name) { return std::string(op) + ": " + name; }

// The optional inputs, from input `first` on: positions of queries and keys, then segments of both, all i32.
Status checkIndices(const char* op, const Call& call, int first) {
  const int32_t flags = call.attrs[attr::attention::flags];
  if ((flags & ~attention_flag::all) != 0) return refuse(label(op, "unknown bits in flags ") + std::to_string(flags));
  const int expected =
      first + ((flags & attention_flag::positions) ? 2 : 0) + ((flags & attention_flag::segments) ? 2 : 0);
  if (call.inputs != expected) {
    return refuse(label(op, "flags ") + std::to_string(flags) + " mean " + std::to_string(expected) +
                  " inputs, found " + std::to_string(call.inputs));
  }
  for (int i = first; i < expected; ++i) {
    const bool positions = (flags & attention_flag::positions) && i < first + 2;
    const bool ofKeys = (i - first) % 2 != 0;
    const std::string name = label(op, positions ? "positions_" : "segments_") + (ofKeys ? "k" : "q");
    MESHWORK_TRY(checkRank(name.c_str(), call.in[i], 2));
    MESHWORK_TRY(checkDType(name.c_str(), call.in[i], DType::i32));
    MESHWORK_TRY(checkDim(name.c_str(), call.in[i], 0, call.in[0].dim(0), "q's batch"));
    MESHWORK_TRY(
        checkDim(name.c_str(), call.in[i], 1, call.in[ofKeys ? 1 : 0].dim(1), ofKeys ? "k's length" : "q's length"));
  }
  return {};
}

// Operand `x` has rank 4, unit stride in its features and dtype `type`.
Status checkHeads(const std::string& name, const Operand& x, DType type) {
  MESHWORK_TRY(checkRank(name.c_str(), x, 4));
  MESHWORK_TRY(checkDType(name.c_str(), x, type));
  return checkUnitStride(name.c_str(), x);
}

Status checkFeatures(const std::string& name, const Operand& x) {
  if (x.dim(3) <= kAttentionFeatures) return {};
  return unsupported(name + dimsOf(*x.view) + " has heads of " + std::to_string(x.dim(3)) + " features, at most " +
                     std::to_string(kAttentionFeatures) + " are supported");
}

// q, k, v, and `out`, which has q's dims but v's features.
Status checkTensors(const char* op, const Operand* in, const char* outName, const Operand& out) {
  const Operand &q = in[0], &k = in[1], &v = in[2];
  const DType type = q.view->dtype;
  if (!isFloat(type)) {
    return unsupported(label(op, "q is ") + dtypeName(type) + ", expected f32, f64, bf16 or f16");
  }
  const std::string nameQ = label(op, "q"), nameK = label(op, "k"), nameV = label(op, "v"),
                    nameOut = label(op, outName);
  MESHWORK_TRY(checkHeads(nameQ, q, type));
  MESHWORK_TRY(checkHeads(nameK, k, type));
  MESHWORK_TRY(checkHeads(nameV, v, type));
  MESHWORK_TRY(checkHeads(nameOut, out, type));
  MESHWORK_TRY(checkDim(nameK.c_str(), k, 0, q.dim(0), "q's batch"));
  MESHWORK_TRY(checkDim(nameK.c_str(), k, 3, q.dim(3), "q's features"));
  MESHWORK_TRY(checkDim(nameV.c_str(), v, 0, k.dim(0), "k's batch"));
  MESHWORK_TRY(checkDim(nameV.c_str(), v, 1, k.dim(1), "k's length"));
  MESHWORK_TRY(checkDim(nameV.c_str(), v, 2, k.dim(2), "k's heads"));
  MESHWORK_TRY(checkDim(nameOut.c_str(), out, 0, q.dim(0), "q's batch"));
  MESHWORK_TRY(checkDim(nameOut.c_str(), out, 1, q.dim(1), "q's length"));
  MESHWORK_TRY(checkDim(nameOut.c_str(), out, 2, q.dim(2), "q's heads"));
  MESHWORK_TRY(checkDim(nameOut.c_str(), out, 3, v.dim(3), "v's features"));
  const int64_t heads = q.dim(2), groups = k.dim(2);
  if (groups == 0 ? heads != 0 : heads % groups != 0) {
    return refuse(label(op, "q has ") + std::to_string(heads) + " heads, not a multiple of k's " +
                  std::to_string(groups));
  }
  MESHWORK_TRY(checkFeatures(nameQ, q));
  return checkFeatures(nameV, v);
}

Status checkLse(const char* op, const Operand& lse, const Operand& q) {
  const std::string name = label(op, "lse");
  MESHWORK_TRY(checkRank(name.c_str(), lse, 3));
  MESHWORK_TRY(checkDType(name.c_str(), lse, q.view->dtype == DType::f64 ? DType::f64 : DType::f32));
  MESHWORK_TRY(checkDim(name.c_str(), lse, 0, q.dim(0), "q's batch"));
  MESHWORK_TRY(checkDim(name.c_str(), lse, 1, q.dim(2), "q's heads"));
  return checkDim(name.c_str(), lse, 2, q.dim(1), "q's length");
}

Status checkGradient(const char* name, const Operand& gradient, const char* otherName, const Operand& other) {
  MESHWORK_TRY(checkSameDims(name, gradient, otherName, other));
  MESHWORK_TRY(checkDType(name, gradient, other.view->dtype));
  return checkUnitStride(name, gradient);
}

}  // namespace

Status checkAttention(const Call& call) {
  const char* op = "attention";
  MESHWORK_TRY(checkCounts(call, Op::attention));
  MESHWORK_TRY(checkTensors(op, call.in, "out", call.out[0]));
  MESHWORK_TRY(checkLse(op, call.out[1], call.in[0]));
  return checkIndices(op, call, 3);
}

Status checkAttentionGrad(const Call& call) {
  const char* op = "attention_grad";
  MESHWORK_TRY(checkCounts(call, Op::attention_grad));
  MESHWORK_TRY(checkTensors(op, call.in, "out", call.in[3]));
  MESHWORK_TRY(checkLse(op, call.in[4], call.in[0]));
  MESHWORK_TRY(checkGradient("attention_grad: dout", call.in[5], "out", call.in[3]));
  MESHWORK_TRY(checkGradient("attention_grad: dq", call.out[0], "q", call.in[0]));
  MESHWORK_TRY(checkGradient("attention_grad: dk", call.out[1], "k", call.in[1]));
  MESHWORK_TRY(checkGradient("attention_grad: dv", call.out[2], "v", call.in[2]));
  return checkIndices(op, call, 6);
}

}  // namespace meshwork
