// Rotary positions: every pair (i, i + d/2) of a head's features is rotated by position * inv_freq[i].
#include "backend/checks/rope.h"

#include <algorithm>

#include "backend/cpu/kernels/rows.h"
#include "runtime/pool.h"

namespace meshwork::MESHWORK_ISA {
namespace {

constexpr int64_t kPairs = 256;        // pairs whose sines are held at a time
constexpr int64_t kRowsPerBlock = 16;  // (batch, position) rows of one block

// Of some pairs, in the type of the statistics.
template <class S>
struct Rotation {
  S frequency[kPairs];
  S cos[kPairs];
  S sin[kPairs];

  // Pairs [first, first + n).
  void readFrequencies(const Operand& from, int64_t first, int64_t n) {
    const bool wide = from.view->dtype == DType::f64;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = (first + i) * from.stride(0);
      frequency[i] = wide ? static_cast<S>(from.as<double>()[at]) : static_cast<S>(from.as<float>()[at]);
    }
    for (int64_t i = n; i < kPairs && i % kLanes<S> != 0; ++i) frequency[i] = 0;
  }

  void turnTo(int32_t position, int64_t n, bool inverse) {
    for (int64_t i = 0; i < n; i += kLanes<S>) {  // kPairs is a multiple of every vector's length
      const Vec<S> angle = static_cast<S>(position) * load(frequency + i);
      const Vec<S> sine = meshwork::MESHWORK_ISA::sin(angle);
      store(cos + i, meshwork::MESHWORK_ISA::cos(angle));
      store(sin + i, inverse ? -sine : sine);
    }
  }
};

template <class T, class S>
void rotate(const T* x, T* y, int64_t half, int64_t n, const Rotation<S>& by) {
  forVectors<S>(n, [&](int64_t i, int m) {
    const Vec<S> c = load(by.cos + i), s = load(by.sin + i);
    const Vec<S> a = loadSome(x + i, m), b = loadSome(x + half + i, m);
    storeSome(y + i, a * c - b * s, m);
    storeSome(y + half + i, b * c + a * s, m);
  });
}

// Pairs [first, first + n) of all heads of a row.
template <class T>
void ropeRow(const Call& call, int64_t b, int64_t t, int64_t first, int64_t n, Rotation<Compute<T>>& rotation) {
  const Operand &x = call.in[0], &positions = call.in[1], &y = call.out[0];
  const int64_t heads = x.dim(2), half = x.dim(3) / 2;
  const int32_t position = positions.as<int32_t>()[b * positions.stride(0) + t * positions.stride(1)];
  const T* from = x.as<T>() + b * x.stride(0) + t * x.stride(1) + first;
  T* to = y.as<T>() + b * y.stride(0) + t * y.stride(1) + first;
  rotation.turnTo(position, n, call.attrs[attr::rope::inverse] == 1);
  for (int64_t h = 0; h < heads; ++h) rotate(from + h * x.stride(2), to + h * y.stride(2), half, n, rotation);
}

template <class T>
void ropeRows(const Call& call) {
  const int64_t length = call.in[0].dim(1), half = call.in[0].dim(3) / 2;
  const int64_t rows = call.in[0].dim(0) * length;
  call.pool->run((rows + kRowsPerBlock - 1) / kRowsPerBlock, [&](int64_t block, int) {
    const int64_t end = std::min(rows, (block + 1) * kRowsPerBlock);
    Rotation<Compute<T>> rotation;
    for (int64_t first = 0; first < half; first += kPairs) {
      const int64_t n = std::min(kPairs, half - first);
      rotation.readFrequencies(call.in[2], first, n);
      for (int64_t row = block * kRowsPerBlock; row < end; ++row) {
        ropeRow<T>(call, row / length, row % length, first, n, rotation);
      }
    }
  });
}

void runRope(const Call& call) {
  if (call.in[0].view->count() == 0) return;
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return ropeRows<double>(call);
    case DType::bf16:
      return ropeRows<bf16>(call);
    case DType::f16:
      return ropeRows<f16>(call);
    default:
      return ropeRows<float>(call);
  }
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(rope, {Op::rope, checkRope, runRope})
