// The stand-in's library, and abi/load.cc's place beside emulated kernels: no other library is found there.
#include "test/cuda_emulator/cublaslt_stand_in.h"

#include <cmath>
#include <cstring>
#include <map>
#include <vector>

#include "backend/cuda/abi/cublaslt.h"
#include "backend/cuda/abi/nvrtc.h"
#include "core/dtype.h"

namespace meshwork::test {
namespace {

using namespace cuda::abi;

// What any object of the library holds: its attributes as bytes, and a layout's extents.
struct Object {
  std::map<int, std::vector<std::byte>> attributes;
  int type = 0;
  int64_t rows = 0, columns = 0, pitch = 0;

  template <class T>
  T get(int attribute, T otherwise) const {
    const auto found = attributes.find(attribute);
    if (found == attributes.end() || found->second.size() != sizeof(T)) return otherwise;
    T value;
    std::memcpy(&value, found->second.data(), sizeof value);
    return value;
  }
};

struct State {
  bool present = false, refuses = false;
  int products = 0, living = 0, heuristics = 0;
};
State state;

constexpr CublasStatus kInvalidValue = 7;

Object& objectOf(void* at) { return *static_cast<Object*>(at); }

CublasStatus make(void** object) {
  *object = new Object;
  ++state.living;
  return kCublasSuccess;
}
CublasStatus destroy(void* object) {
  delete static_cast<Object*>(object);
  --state.living;
  return kCublasSuccess;
}
CublasStatus set(void* object, int attribute, const void* value, size_t bytes) {
  const auto* from = static_cast<const std::byte*>(value);
  objectOf(object).attributes[attribute].assign(from, from + bytes);
  return kCublasSuccess;
}
CublasStatus makeDesc(Desc* desc, int compute, int scale) {
  make(desc);
  objectOf(*desc).type = scale;
  const bool wide = scale == kCudaF64;
  return compute == (wide ? kComputeF64 : kComputeF32) ? kCublasSuccess : kInvalidValue;
}
CublasStatus makeLayout(Layout* layout, int type, uint64_t rows, uint64_t columns, int64_t pitch) {
  make(layout);
  Object& x = objectOf(*layout);
  x.type = type, x.rows = static_cast<int64_t>(rows), x.columns = static_cast<int64_t>(columns), x.pitch = pitch;
  return pitch >= x.rows ? kCublasSuccess : kInvalidValue;
}
CublasStatus findAlgorithm(Handle, Desc, Layout, Layout, Layout, Layout, Preference preference, int,
                           CublasLtHeuristic* result, int* found) {
  ++state.heuristics;
  *found = 0;
  if (state.refuses) return kCublasNotSupported;
  *result = {};
  const int alignments[] = {kPreferenceAlignmentA, kPreferenceAlignmentB, kPreferenceAlignmentC, kPreferenceAlignmentD};
  for (int i = 0; i < 4; ++i) {  // what the algorithm may rely on
    result->algo.data[i] = objectOf(preference).get<uint32_t>(alignments[i], 256);
  }
  *found = 1;
  return kCublasSuccess;
}

// Element `at` of memory of a CudaDataType.
double read(const void* from, int type, int64_t at) {
  if (type == kCudaF64) return static_cast<const double*>(from)[at];
  if (type == kCudaF32) return static_cast<double>(static_cast<const float*>(from)[at]);
  if (type == kCudaF16) return static_cast<double>(toFloat(static_cast<const f16*>(from)[at]));
  return static_cast<double>(toFloat(static_cast<const bf16*>(from)[at]));
}
void write(void* to, int type, int64_t at, double value) {
  if (type == kCudaF64) static_cast<double*>(to)[at] = value;
  if (type == kCudaF32) static_cast<float*>(to)[at] = static_cast<float>(value);
  if (type == kCudaF16) static_cast<f16*>(to)[at] = toF16(static_cast<float>(value));
  if (type == kCudaBf16) static_cast<bf16*>(to)[at] = toBf16(static_cast<float>(value));
}

// A matrix, columns first, of a batch.
struct Matrix {
  const Object& layout;
  int64_t batch;
  int64_t at(int64_t row, int64_t column) const {
    return batch * layout.get<int64_t>(kLayoutBatchStride, 0) + column * layout.pitch + row;
  }
};

struct Epilogue {
  bool bias, gelu;
  const void* biases;
  int type;
  double operator()(double x, int64_t row) const {
    if (bias) x += read(biases, type, row);
    if (gelu) x *= 0.5 * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    return x;
  }
};

bool aligned(const void* at, uint64_t bytes) { return reinterpret_cast<uintptr_t>(at) % bytes == 0; }

CublasStatus multiply(Handle, Desc desc, const void* alpha, const void* a, Layout layoutA, const void* b,
                      Layout layoutB, const void* beta, const void* c, Layout layoutC, void* d, Layout layoutD,
                      const CublasLtAlgo* algorithm, void*, size_t, void*) {
  const Object &what = objectOf(desc), &A = objectOf(layoutA), &B = objectOf(layoutB), &C = objectOf(layoutC),
               &D = objectOf(layoutD);
  const bool turnA = what.get<int32_t>(kDescTransA, 0) == kOpT, turnB = what.get<int32_t>(kDescTransB, 0) == kOpT;
  const int64_t m = turnA ? A.columns : A.rows, k = turnA ? A.rows : A.columns, n = turnB ? B.rows : B.columns;
  const bool fits = k == (turnB ? B.columns : B.rows) && D.rows == m && D.columns == n && C.rows == m && C.columns == n;
  const uint64_t* least = algorithm->data;
  if (!fits || C.type != D.type || !aligned(a, least[0]) || !aligned(b, least[1]) || !aligned(c, least[2]) ||
      !aligned(d, least[3])) {
    return kInvalidValue;
  }
  const auto kind = what.get<uint32_t>(kDescEpilogue, kEpilogueDefault);
  const Epilogue epilogue = {(kind & kEpilogueBias) != 0, (kind & kEpilogueGelu) != 0,
                             what.get<const void*>(kDescBiasPointer, nullptr),
                             what.get<int32_t>(kDescBiasDataType, D.type)};
  const double scale = read(alpha, what.type, 0), keep = read(beta, what.type, 0);
  for (int64_t batch = 0; batch < D.get<int32_t>(kLayoutBatchCount, 1); ++batch) {
    const Matrix x = {A, batch}, y = {B, batch}, z = {C, batch}, to = {D, batch};
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0;
        for (int64_t p = 0; p < k; ++p) {
          sum += read(a, A.type, turnA ? x.at(p, i) : x.at(i, p)) * read(b, B.type, turnB ? y.at(j, p) : y.at(p, j));
        }
        sum = scale * sum + (keep != 0 ? keep * read(c, C.type, z.at(i, j)) : 0);
        write(d, D.type, to.at(i, j), epilogue(sum, i));
      }
    }
  }
  ++state.products;
  return kCublasSuccess;
}

size_t version() { return 130000; }

const CublasLt kStandIn = {make,    destroy, version, makeDesc, destroy, set,           makeLayout,
                           destroy, set,     make,    destroy,  set,     findAlgorithm, multiply};

Status none() { return Status(Code::unsupported, "there is no CUDA library for an emulated device"); }

}  // namespace

CublasLtStandIn::CublasLtStandIn() { state = {.present = true}; }
CublasLtStandIn::~CublasLtStandIn() { state = {}; }
int CublasLtStandIn::products() const { return state.products; }
int CublasLtStandIn::living() const { return state.living; }
int CublasLtStandIn::heuristics() const { return state.heuristics; }
void CublasLtStandIn::refuseAlgorithms() { state.refuses = true; }

}  // namespace meshwork::test

namespace meshwork::cuda::abi {

Status loadCublasLt(const CublasLt** api) {
  *api = test::state.present ? &test::kStandIn : nullptr;
  return *api != nullptr ? Status() : test::none();
}
Status loadNvrtc(const Nvrtc**) { return test::none(); }
Status loadDriver(const Driver**) { return test::none(); }

}  // namespace meshwork::cuda::abi
