// Products by cuBLASLt. It counts columns first: what it gets is d' = b' a', with b on its left.
#include "backend/cuda/matmul/library.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>

#include "backend/checks/matmul.h"
#include "backend/cuda/abi/cublaslt.h"

namespace meshwork::cuda {
namespace {

constexpr int64_t kMostWorkspace = int64_t{32} << 20;
constexpr uint32_t kDeterministicReductions = 2;  // partial sums of float32 in the workspace, or none
constexpr int64_t kWideAlignment = 16;

// A matrix as the library sees it: `rows` are neighbours in memory.
struct Matrix {
  int64_t type = 0, rows = 0, columns = 0, pitch = 0, batchStride = 0, alignment = kWideAlignment;
};

// All that a plan depends on.
struct Product {
  int64_t batch = 0, epilogue = abi::kEpilogueDefault, operationA = abi::kOpN, operationB = abi::kOpN, addsC = 0;
  Matrix a, b, c, d;  // the library's: a is our b

  auto key() const {
    std::array<int64_t, 29> words = {batch, epilogue, operationA, operationB, addsC};
    auto* to = words.begin() + 5;
    for (const Matrix* x : {&a, &b, &c, &d}) {
      for (int64_t word : {x->type, x->rows, x->columns, x->pitch, x->batchStride, x->alignment}) *to++ = word;
    }
    return words;
  }
};
using Key = decltype(Product().key());

int64_t typeOf(DType dtype) {
  if (dtype == DType::f64) return abi::kCudaF64;
  if (dtype == DType::bf16) return abi::kCudaBf16;
  return dtype == DType::f16 ? abi::kCudaF16 : abi::kCudaF32;
}

int64_t alignmentOf(const void* at) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  return address == 0 ? kWideAlignment : static_cast<int64_t>(std::min<uintptr_t>(address & -address, kWideAlignment));
}

// The matrix of an operand whose neighbours in memory are along `run`, a dim; false where its strides do not suit.
bool describe(const Operand& x, int run, Matrix* to) {
  const int across = 3 - run;
  const int64_t count = x.dim(across);
  const int64_t pitch = count <= 1 ? x.dim(run) : x.stride(across);
  *to = {typeOf(x.view->dtype), x.dim(run), count, pitch, x.dim(0) <= 1 ? 0 : x.stride(0), alignmentOf(x.data)};
  return pitch >= x.dim(run);
}

bool describeSide(const Operand& x, Matrix* to, int64_t* operation) {
  const bool columns = x.dim(2) <= 1 || x.stride(2) == 1;
  *operation = columns ? abi::kOpN : abi::kOpT;
  return describe(x, columns ? 2 : 1, to);
}

// Whether the library can do exactly what is asked: it adds before it activates, we after, and it has no silu.
bool takesFlags(int32_t flags) {
  const bool adds = (flags & (matmul_flag::accumulate | matmul_flag::residual)) != 0;
  const bool addsTwice = (flags & matmul_flag::accumulate) != 0 && (flags & matmul_flag::residual) != 0;
  return !addsTwice && !(flags & matmul_flag::silu) && !(adds && (flags & matmul_flag::gelu));
}

bool describeBias(const Call& call, Product* product) {
  const Operand &bias = call.in[2], &d = call.out[0];
  if (bias.view->dtype != d.view->dtype || (bias.dim(0) > 1 && bias.stride(0) != 1)) return false;
  product->d.alignment = std::min(product->d.alignment, alignmentOf(bias.data));
  return true;
}

bool describe(const Call& call, Product* product) {
  const Operand &a = call.in[0], &b = call.in[1], &d = call.out[0];
  const int32_t flags = call.attrs[attr::matmul::flags];
  if (!takesFlags(flags) || d.view->count() == 0 || a.dim(2) == 0) return false;
  product->batch = a.dim(0);
  if (product->batch > std::numeric_limits<int32_t>::max()) return false;
  if (!describeSide(b, &product->a, &product->operationA)) return false;
  if (!describeSide(a, &product->b, &product->operationB)) return false;
  if (!describe(d, 2, &product->d)) return false;
  product->c = product->d;
  if (flags & matmul_flag::residual) {
    const Operand& residual = call.in[call.inputs - 1];
    if (residual.view->dtype != d.view->dtype || !describe(residual, 2, &product->c)) return false;
    if (product->batch > 1 && product->c.batchStride == 0) return false;
  }
  product->addsC = (flags & (matmul_flag::accumulate | matmul_flag::residual)) != 0;
  const bool bias = (flags & matmul_flag::bias) != 0, gelu = (flags & matmul_flag::gelu) != 0;
  if (bias && !describeBias(call, product)) return false;
  product->epilogue =
      gelu ? (bias ? abi::kEpilogueGeluBias : abi::kEpilogueGelu) : (bias ? abi::kEpilogueBias : abi::kEpilogueDefault);
  return true;
}

// The descriptors and the algorithm of a product.
class Plan {
 public:
  Plan(const abi::CublasLt& api, abi::Handle handle, const Product& product, int64_t workspace) : api_(api) {
    usable_ = make(product) && choose(handle, product, workspace);
  }
  Plan(const Plan&) = delete;
  ~Plan() {
    for (abi::Layout layout : {a_, b_, c_, d_}) {
      if (layout != nullptr) api_.layoutDestroy(layout);
    }
    if (desc_ != nullptr) api_.descDestroy(desc_);
  }

  bool run(const Call& call, abi::Handle handle, const Product& product) {
    if (!usable_) return false;
    Device& device = deviceOf(call);
    const int32_t flags = call.attrs[attr::matmul::flags];
    if (flags & matmul_flag::bias) {
      const void* bias = call.in[2].data;
      usable_ = good(api_.descSet(desc_, abi::kDescBiasPointer, &bias, sizeof bias));
      if (!usable_) return false;
    }
    const void* c = flags & matmul_flag::residual ? call.in[call.inputs - 1].data : call.out[0].data;
    const double alpha = call.floatAttr(attr::matmul::alpha), beta = product.addsC ? 1 : 0;
    const float alpha32 = static_cast<float>(alpha), beta32 = static_cast<float>(beta);
    const bool wide = product.d.type == abi::kCudaF64;
    usable_ =
        good(api_.matmul(handle, desc_, wide ? static_cast<const void*>(&alpha) : &alpha32, call.in[1].data, a_,
                         call.in[0].data, b_, wide ? static_cast<const void*>(&beta) : &beta32, c, c_, call.out[0].data,
                         d_, &algorithm_.algo, device.workspace, algorithm_.workspaceSize, device.compute));
    return usable_;
  }

 private:
  static bool good(abi::CublasStatus status) { return status == abi::kCublasSuccess; }

  template <class T>
  bool set(int attribute, T value) {
    return good(api_.descSet(desc_, attribute, &value, sizeof value));
  }

  bool makeLayout(const Matrix& x, int64_t batch, abi::Layout* layout) {
    const auto count = static_cast<int32_t>(batch);
    return good(api_.layoutCreate(layout, static_cast<int>(x.type), static_cast<uint64_t>(x.rows),
                                  static_cast<uint64_t>(x.columns), x.pitch)) &&
           good(api_.layoutSet(*layout, abi::kLayoutBatchCount, &count, sizeof count)) &&
           good(api_.layoutSet(*layout, abi::kLayoutBatchStride, &x.batchStride, sizeof x.batchStride));
  }

  // float32 is summed as float32, never as tf32.
  bool make(const Product& p) {
    const bool wide = p.d.type == abi::kCudaF64;
    if (!good(api_.descCreate(&desc_, wide ? abi::kComputeF64 : abi::kComputeF32,
                              wide ? abi::kCudaF64 : abi::kCudaF32))) {
      return false;
    }
    bool made = set(abi::kDescTransA, static_cast<int32_t>(p.operationA)) &&
                set(abi::kDescTransB, static_cast<int32_t>(p.operationB)) &&
                set(abi::kDescEpilogue, static_cast<uint32_t>(p.epilogue));
    if (p.epilogue == abi::kEpilogueBias || p.epilogue == abi::kEpilogueGeluBias) {
      made = made && set(abi::kDescBiasDataType, static_cast<int32_t>(p.d.type));
    }
    return made && makeLayout(p.a, p.batch, &a_) && makeLayout(p.b, p.batch, &b_) && makeLayout(p.c, p.batch, &c_) &&
           makeLayout(p.d, p.batch, &d_);
  }

  bool choose(abi::Handle handle, const Product& p, int64_t workspace) {
    abi::Preference preference = nullptr;
    if (!good(api_.preferenceCreate(&preference))) return false;
    const auto prefer = [&](int attribute, auto value) {
      return good(api_.preferenceSet(preference, attribute, &value, sizeof value));
    };
    int found = 0;
    const bool asked = prefer(abi::kPreferenceWorkspace, static_cast<uint64_t>(workspace)) &&
                       prefer(abi::kPreferenceReductionMask, kDeterministicReductions) &&
                       prefer(abi::kPreferenceAlignmentA, static_cast<uint32_t>(p.a.alignment)) &&
                       prefer(abi::kPreferenceAlignmentB, static_cast<uint32_t>(p.b.alignment)) &&
                       prefer(abi::kPreferenceAlignmentC, static_cast<uint32_t>(p.c.alignment)) &&
                       prefer(abi::kPreferenceAlignmentD, static_cast<uint32_t>(p.d.alignment)) &&
                       good(api_.heuristic(handle, desc_, a_, b_, c_, d_, preference, 1, &algorithm_, &found));
    api_.preferenceDestroy(preference);
    return asked && found > 0 && good(algorithm_.state);
  }

  const abi::CublasLt& api_;
  abi::Desc desc_ = nullptr;
  abi::Layout a_ = nullptr, b_ = nullptr, c_ = nullptr, d_ = nullptr;
  abi::CublasLtHeuristic algorithm_ = {};
  bool usable_ = false;
};

// The library's handle and the plans of a device.
class Library : public KernelState {
 public:
  Library() {
    const abi::CublasLt* api = nullptr;
    if (!abi::loadCublasLt(&api).ok() || api->create(&handle_) != abi::kCublasSuccess) return;
    api_ = api;
  }
  ~Library() override {
    plans_.clear();
    if (api_ != nullptr) api_->destroy(handle_);
  }

  static Library& of(Device& device) {
    auto& slot = device.states[kMatmulState];
    if (slot == nullptr) slot = std::make_unique<Library>();
    return *static_cast<Library*>(slot.get());
  }

  bool found() const { return api_ != nullptr; }
  abi::Handle handle() const { return handle_; }
  Plan& plan(const Product& product, const Device& device) {
    const int64_t workspace = std::min(device.workspaceBytes, kMostWorkspace);
    return plans_.try_emplace(product.key(), *api_, handle_, product, workspace).first->second;
  }

 private:
  const abi::CublasLt* api_ = nullptr;
  abi::Handle handle_ = nullptr;
  std::map<Key, Plan> plans_;
};

}  // namespace

void prepareLibrary(const Call& call) {
  Device& device = deviceOf(call);
  Library& library = Library::of(device);
  Product product;
  if (library.found() && describe(call, &product)) library.plan(product, device);
}

bool runLibrary(const Call& call) {
  Device& device = deviceOf(call);
  Library& library = Library::of(device);
  Product product;
  if (!library.found() || !describe(call, &product)) return false;
  return library.plan(product, device).run(call, library.handle(), product);
}

}  // namespace meshwork::cuda
