// What tests of CPU kernels share: tensors with guarded memory and any strides, and calls on every instruction set and
// several thread counts, whose results must agree.
#pragma once
#include <cstring>
#include <functional>
#include <initializer_list>
#include <random>
#include <string>
#include <vector>

#include "test/target.h"

namespace meshwork::test {

using Dims = std::vector<int64_t>;

inline int64_t product(const Dims& dims) {
  int64_t n = 1;
  for (const int64_t d : dims) n *= d;
  return n;
}

// A tensor whose memory ends exactly where its last element does (so that a sanitizer sees what lies beyond), filled
// with a pattern where no element is.
class Tensor {
 public:
  Tensor(DType dtype, const Dims& dims) : Tensor(dtype, dims, rowMajor(dims)) {}
  Tensor(DType dtype, const Dims& dims, const Dims& strides) {
    view_.dtype = dtype;
    view_.rank = static_cast<int32_t>(dims.size());
    int64_t last = 0;
    for (int d = 0; d < view_.rank; ++d) {
      view_.dims[d] = dims[static_cast<size_t>(d)];
      view_.strides[d] = strides[static_cast<size_t>(d)];
      last += (view_.dims[d] - 1) * view_.strides[d];
    }
    bytes_.assign(static_cast<size_t>(view_.count() == 0 ? 0 : (last + 1) * dtypeSize(dtype)), std::byte{0x5a});
  }

  static Dims rowMajor(const Dims& dims) {
    Dims strides(dims.size(), 1);
    for (size_t d = dims.size(); d-- > 1;) strides[d - 1] = strides[d] * dims[d];
    return strides;
  }

  const View& view() const { return view_; }
  DType dtype() const { return view_.dtype; }
  int64_t count() const { return view_.count(); }
  Operand operand() { return {bytes_.data(), &view_}; }
  Operand shape() const { return {nullptr, &view_}; }
  const std::vector<std::byte>& bytes() const { return bytes_; }
  void setBytes(const std::vector<std::byte>& bytes) { bytes_ = bytes; }

  // Element i in row-major order of the dims.
  double get(int64_t i) const {
    const std::byte* at = bytes_.data() + offset(i) * dtypeSize(view_.dtype);
    switch (view_.dtype) {
      case DType::f64:
        return read<double>(at);
      case DType::bf16:
        return static_cast<double>(toFloat(read<bf16>(at)));
      case DType::f16:
        return static_cast<double>(toFloat(read<f16>(at)));
      case DType::i32:
        return read<int32_t>(at);
      case DType::boolean:
        return read<uint8_t>(at);
      default:
        return static_cast<double>(read<float>(at));
    }
  }
  void set(int64_t i, double value) {
    std::byte* at = bytes_.data() + offset(i) * dtypeSize(view_.dtype);
    switch (view_.dtype) {
      case DType::f64:
        return write(at, value);
      case DType::bf16:
        return write(at, toBf16(static_cast<float>(value)));
      case DType::f16:
        return write(at, toF16(static_cast<float>(value)));
      case DType::i32:
        return write(at, static_cast<int32_t>(value));
      case DType::boolean:
        return write(at, static_cast<uint8_t>(value != 0));
      default:
        return write(at, static_cast<float>(value));
    }
  }

  Tensor& fill(const std::function<double(int64_t)>& f) {
    for (int64_t i = 0; i < count(); ++i) set(i, f(i));
    return *this;
  }
  Tensor& random(double low, double high, unsigned seed) {
    std::mt19937 engine(seed);
    std::uniform_real_distribution<double> draw(low, high);
    return fill([&](int64_t) { return draw(engine); });
  }

 private:
  template <class T>
  static T read(const std::byte* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  template <class T>
  static void write(std::byte* at, T value) {
    std::memcpy(at, &value, sizeof value);
  }
  int64_t offset(int64_t i) const {
    int64_t at = 0;
    for (int d = view_.rank - 1; d >= 0; --d) {
      at += i % view_.dims[d] * view_.strides[d];
      i /= view_.dims[d];
    }
    return at;
  }

  View view_;
  std::vector<std::byte> bytes_;
};

// The relative size of a rounding in a dtype.
inline double epsilonOf(DType dtype) {
  return dtype == DType::f64 ? 2.3e-16 : dtype == DType::bf16 ? 4e-3 : dtype == DType::f32 ? 1.2e-7 : 0;
}

// One instruction under test.
struct Instruct {
  Instruct(Op what, std::vector<Tensor*> inputs, std::vector<Tensor*> outputs, std::vector<int32_t> words = {},
           std::vector<double> constants = {}, std::vector<int32_t> tableWords = {})
      : op(what),
        in(std::move(inputs)),
        out(std::move(outputs)),
        attrs(std::move(words)),
        floats(std::move(constants)),
        table(std::move(tableWords)) {}

  Op op;
  std::vector<Tensor*> in, out;
  std::vector<int32_t> attrs;
  std::vector<double> floats;
  std::vector<int32_t> table;

  Status check(Isa isa = Isa::portable) const { return kernelOf(op, isa)->check(call(true)); }

  // Runs it once.
  void run(Isa isa = targetIsa(), int threads = 1) const { runKernel(*kernelOf(op, isa), call(false), threads); }

  // Calls f with the call as run() and as prepare() would see it.
  template <class F>
  void runOn(const F& f) const {
    f(call(false));
  }
  template <class F>
  void prepareOn(const F& f) const {
    f(call(true));
  }

  // Runs it on every instruction set with 1 and 3 threads; all must give the same bits (between instruction sets only
  // when `sameOnAll`). The outputs hold the active set's results afterwards.
  void runAll(bool sameOnAll = true) const {
    const Status status = check();
    CHECK_EQ(status.message(), std::string());
    if (!status.ok()) return;
    std::vector<std::vector<std::byte>> before, first;
    for (const Tensor* t : out) before.push_back(t->bytes());
    for (int isa = 0; isa < kIsaCount; ++isa) {
      if (!targetHas(static_cast<Isa>(isa))) continue;
      if (!sameOnAll) first.clear();
      for (const int threads : {1, 3}) {
        for (size_t k = 0; k < out.size(); ++k) out[k]->setBytes(before[k]);
        run(static_cast<Isa>(isa), threads);
        for (size_t k = 0; k < out.size(); ++k) {
          if (first.size() <= k) first.push_back(out[k]->bytes());
          if (first[k] != out[k]->bytes()) {
            fail(__FILE__, __LINE__,
                 std::string(kOpInfo[static_cast<int>(op)].name) + ": output " + std::to_string(k) + " differs on " +
                     isaName(static_cast<Isa>(isa)) + " with " + std::to_string(threads) + " threads");
          }
        }
      }
    }
  }

 private:
  struct Held {
    std::vector<Operand> in, out;
  };
  Call call(bool shapesOnly) const {
    held_ = {};
    for (Tensor* t : in) held_.in.push_back(shapesOnly ? t->shape() : t->operand());
    for (Tensor* t : out) held_.out.push_back(shapesOnly ? t->shape() : t->operand());
    Call c;
    c.in = held_.in.data();
    c.out = held_.out.data();
    c.inputs = static_cast<int>(in.size());
    c.outputs = static_cast<int>(out.size());
    c.attrs = attrs.data();
    c.attrCount = static_cast<int>(attrs.size());
    c.floats = floats.data();
    c.floatCount = static_cast<int>(floats.size());
    c.table = shapesOnly ? nullptr : table.data();
    c.tableCount = static_cast<int>(table.size());
    return c;
  }
  mutable Held held_;
};

}  // namespace meshwork::test

#define CHECK_REFUSED(instruct) CHECK(!(instruct).check().ok())
