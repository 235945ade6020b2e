// Rotary positions: every pair (i, i + d/2) of a head's features is rotated by position * inv_freq[i].
#include "backend/checks/rope.h"

#include <algorithm>

#include "backend/cpu/kernels/lanes.h"
#include "runtime/pool.h"

namespace meshwork::MESHWORK_ISA {
namespace {

constexpr int64_t kPairs = 256;        // pairs whose sines are held at a time
constexpr int64_t kRowsPerBlock = 16;  // (batch, position) rows of one block

template <class S>
struct Rotation {
  S cos[kPairs];
  S sin[kPairs];
};

// The frequencies of pairs [first, first + n), as S.
template <class S>
Vec<S> loadFrequencies(const Operand& frequencies, int64_t first, int n) {
  const int64_t stride = frequencies.stride(0);
  if (frequencies.view->dtype == DType::f32) {
    const float* from = frequencies.as<float>() + first * stride;
    return stride == 1 ? loadSomeAs<S>(from, n) : loadStrided<S>(from, stride, n);
  }
  return loadStrided<S>(frequencies.as<double>() + first * stride, stride, n);
}

// The sines of pairs [first, first + count) at a position; S is the type of the statistics.
template <class S>
void fillRotation(const Operand& frequencies, int64_t first, int64_t count, int32_t position, bool inverse,
                  Rotation<S>& to) {
  forVectors<S>(count, [&](int64_t i, int n) {
    const Vec<S> angle = static_cast<S>(position) * loadFrequencies<S>(frequencies, first + i, n);
    const Vec<S> sine = sin(angle);
    store(to.cos + i, cos(angle));  // kPairs is a multiple of every vector's length
    store(to.sin + i, inverse ? -sine : sine);
  });
}

template <class T, class S>
void rotate(const T* x, T* y, int64_t half, int64_t n, const Rotation<S>& by) {
  forVectors<S>(n, [&](int64_t i, int m) {
    const Vec<S> c = load(by.cos + i), s = load(by.sin + i);
    const Vec<S> a = loadSome(x + i, m), b = loadSome(x + half + i, m);
    storeSome(y + i, a * c - b * s, m);
    storeSome(y + half + i, b * c + a * s, m);
  });
}

template <class T>
void ropeRow(const Call& call, int64_t b, int64_t t) {
  using S = Compute<T>;
  const Operand &x = call.in[0], &positions = call.in[1], &y = call.out[0];
  const int64_t heads = x.dim(2), half = x.dim(3) / 2;
  const int32_t position = positions.as<int32_t>()[b * positions.stride(0) + t * positions.stride(1)];
  const T* from = x.as<T>() + b * x.stride(0) + t * x.stride(1);
  T* to = y.as<T>() + b * y.stride(0) + t * y.stride(1);
  Rotation<S> rotation;
  for (int64_t first = 0; first < half; first += kPairs) {
    const int64_t n = std::min(kPairs, half - first);
    fillRotation(call.in[2], first, n, position, call.attrs[attr::rope::inverse] == 1, rotation);
    for (int64_t h = 0; h < heads; ++h) {
      rotate(from + h * x.stride(2) + first, to + h * y.stride(2) + first, half, n, rotation);
    }
  }
}

template <class T>
void ropeRows(const Call& call) {
  const int64_t length = call.in[0].dim(1);
  const int64_t rows = call.in[0].dim(0) * length;
  call.pool->run((rows + kRowsPerBlock - 1) / kRowsPerBlock, [&](int64_t block, int) {
    const int64_t end = std::min(rows, (block + 1) * kRowsPerBlock);
    for (int64_t row = block * kRowsPerBlock; row < end; ++row) ropeRow<T>(call, row / length, row % length);
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
