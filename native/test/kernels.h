// Calls CPU kernels from tests: tensors that own their memory, any strides, every instruction set and thread count.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

#include "test/target.h"

// Its own (inline) namespace: kernel_test.h has a Tensor too.
namespace meshwork::test {
inline namespace kernels {

// A tensor with its own memory between two guards that nothing may write to.
class Tensor {
 public:
  // Row-major; `pitch` (if larger) is the stride of the last dim but one.
  Tensor(DType dtype, std::vector<int64_t> dims, int64_t pitch = 0) {
    view_.dtype = dtype;
    view_.rank = static_cast<int32_t>(dims.size());
    int64_t stride = 1;
    for (int d = view_.rank - 1; d >= 0; --d) {
      view_.dims[d] = dims[static_cast<size_t>(d)];
      view_.strides[d] = stride;
      stride *= view_.dims[d] > 0 ? view_.dims[d] : 1;
      if (d == view_.rank - 1 && pitch > stride) stride = pitch;
    }
    bytes_.assign(static_cast<size_t>(stride * dtypeSize(dtype)) + 2 * kGuard, kFill);
  }

  const View& view() const { return view_; }
  View& view() { return view_; }
  Operand operand() { return {bytes_.data() + kGuard, &view_}; }
  int64_t count() const { return view_.count(); }
  const std::vector<std::byte>& bytes() const { return bytes_; }

  // Exchanges two dims: a transposed view of the same memory.
  Tensor& transpose(int a, int b) {
    std::swap(view_.dims[a], view_.dims[b]);
    std::swap(view_.strides[a], view_.strides[b]);
    return *this;
  }

  // Element number `index` in row-major order of the view.
  double get(int64_t index) const {
    const std::byte* at = address(index);
    switch (view_.dtype) {
      case DType::f64:
        return *reinterpret_cast<const double*>(at);
      case DType::bf16:
        return static_cast<double>(toFloat(*reinterpret_cast<const bf16*>(at)));
      case DType::i32:
        return *reinterpret_cast<const int32_t*>(at);
      default:
        return static_cast<double>(*reinterpret_cast<const float*>(at));
    }
  }
  void set(int64_t index, double value) {
    std::byte* at = const_cast<std::byte*>(address(index));
    switch (view_.dtype) {
      case DType::f64:
        *reinterpret_cast<double*>(at) = value;
        break;
      case DType::bf16:
        *reinterpret_cast<bf16*>(at) = toBf16(static_cast<float>(value));
        break;
      case DType::i32:
        *reinterpret_cast<int32_t*>(at) = static_cast<int32_t>(value);
        break;
      default:
        *reinterpret_cast<float*>(at) = static_cast<float>(value);
    }
  }
  template <class Function>
  Tensor& fill(const Function& value) {
    for (int64_t i = 0; i < count(); ++i) set(i, value(i));
    return *this;
  }
  // Uniform in [-1, 1), the same for the same seed.
  Tensor& random(uint32_t seed) {
    std::mt19937 engine(seed);
    return fill([&](int64_t) { return static_cast<double>(engine() >> 8) * 0x1p-23 - 1.0; });
  }
  bool guardsWhole() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (bytes_[i] != kFill || bytes_[bytes_.size() - 1 - i] != kFill) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr std::byte kFill{0xab};

  const std::byte* address(int64_t index) const {
    int64_t offset = 0;
    for (int d = view_.rank - 1; d >= 0; --d) {
      offset += index % view_.dims[d] * view_.strides[d];
      index /= view_.dims[d];
    }
    return bytes_.data() + kGuard + offset * dtypeSize(view_.dtype);
  }

  View view_;
  std::vector<std::byte> bytes_;
};

// Arguments of a kernel besides its tensors.
struct Attributes {
  std::vector<int32_t> words;
  std::vector<double> floats = {};
  std::vector<int32_t> table = {};
};

using Tensors = std::vector<Tensor*>;

struct Prepared {
  std::vector<Operand> in, out;
  Call call;
  Prepared(const Tensors& inputs, const Tensors& outputs, const Attributes& attributes, bool data) {
    for (Tensor* t : inputs) in.push_back(data ? t->operand() : Operand{nullptr, &t->view()});
    for (Tensor* t : outputs) out.push_back(data ? t->operand() : Operand{nullptr, &t->view()});
    call.in = in.data();
    call.out = out.data();
    call.inputs = static_cast<int>(in.size());
    call.outputs = static_cast<int>(out.size());
    call.attrs = attributes.words.data();
    call.attrCount = static_cast<int>(attributes.words.size());
    call.floats = attributes.floats.data();
    call.floatCount = static_cast<int>(attributes.floats.size());
    call.table = data ? attributes.table.data() : nullptr;
    call.tableCount = static_cast<int>(attributes.table.size());
  }
};

inline Status check(Op op, const Tensors& inputs, const Tensors& outputs, const Attributes& attributes) {
  const Prepared prepared(inputs, outputs, attributes, false);
  return kernelOf(op, targetIsa())->check(prepared.call);
}

// Checks and runs a kernel; fails the test if the check refuses or a guard was written to.
inline void run(Op op, Isa isa, int threads, const Tensors& inputs, const Tensors& outputs,
                const Attributes& attributes) {
  const Kernel* kernel = kernelOf(op, isa);
  CHECK(kernel != nullptr);
  if (kernel == nullptr) return;
  const Status status = kernel->check(Prepared(inputs, outputs, attributes, false).call);
  if (!status.ok()) return fail(__FILE__, __LINE__, "refused: " + status.message());
  const Prepared prepared(inputs, outputs, attributes, true);
  runKernel(*kernel, prepared.call, threads);
  for (const Tensor* t : inputs) CHECK(t->guardsWhole());
  for (const Tensor* t : outputs) CHECK(t->guardsWhole());
}

// Calls body(isa) for every instruction set this machine has.
template <class Body>
void forEachIsa(const Body& body) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (targetHas(static_cast<Isa>(i))) body(static_cast<Isa>(i));
  }
}

}  // namespace kernels
}  // namespace meshwork::test
