// The emulator's forms of backend/cuda/kernels/mma.h: include that, never this. A product's terms are summed exactly as
// far as float64 goes and rounded once; hardware rounds more often.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "test/cuda_emulator/emulator.h"

namespace meshwork::cuda {
namespace emulated {

inline double fromBf16(uint16_t bits) {
  return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(bits) << 16));
}
inline double fromF16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  const double power = std::bit_cast<double>(static_cast<uint64_t>(exponent - 25 + 1023) << 52);
  const double value = exponent == 31  ? (fraction ? __builtin_nan("") : __builtin_inf())
                       : exponent == 0 ? fraction * 0x1p-24
                                       : (1024 + fraction) * power;
  return bits & 0x8000 ? -value : value;
}
inline double fromTf32(uint32_t bits) { return static_cast<double>(std::bit_cast<float>(bits & 0xffffe000u)); }

struct MmaOffer {
  const float* c;
  const uint32_t *a, *b;
};

inline const MmaOffer& offerOf(const meshwork::emulator::Exchange& e, int lane) {
  return *static_cast<const MmaOffer*>(e.in[lane]);
}

template <double (*decode)(uint16_t)>
double halfOf(uint32_t word, int which) {
  return decode(static_cast<uint16_t>(which ? word >> 16 : word & 0xffff));
}

template <class At>
void multiply(const meshwork::emulator::Exchange& e, int depth, const At& at) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
      double sum = static_cast<double>(offerOf(e, lane).c[i]);
      for (int k = 0; k < depth; ++k) sum += at.a(e, row, k) * at.b(e, k, column);
      static_cast<float*>(e.out[lane])[i] = static_cast<float>(sum);
    }
  }
}

template <double (*decode)(uint16_t)>
struct SixteenBit {
  double a(const meshwork::emulator::Exchange& e, int row, int k) const {
    const int lane = row % 8 * 4 + k % 8 / 2;
    return halfOf<decode>(offerOf(e, lane).a[row / 8 + k / 8 * 2], k % 2);
  }
  double b(const meshwork::emulator::Exchange& e, int k, int column) const {
    return halfOf<decode>(offerOf(e, column * 4 + k % 8 / 2).b[k / 8], k % 2);
  }
};
struct Tf32 {
  double a(const meshwork::emulator::Exchange& e, int row, int k) const {
    return fromTf32(offerOf(e, row % 8 * 4 + k % 4).a[row / 8 + k / 4 * 2]);
  }
  double b(const meshwork::emulator::Exchange& e, int k, int column) const {
    return fromTf32(offerOf(e, column * 4 + k % 4).b[k / 4]);
  }
};

template <class At, int kDepth>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const meshwork::emulator::Site& site) {
  static const char kind = 0;
  const MmaOffer offer{c, a, b};
  float result[4];
  meshwork::emulator::exchange(
      0xffffffffu, &kind, &offer, result, [](const meshwork::emulator::Exchange& e) { multiply(e, kDepth, At{}); },
      site);
  std::memcpy(c, result, sizeof result);
}

template <int kCount, bool kTransposed>
void loadMatrices(uint32_t (&r)[kCount], const void* row, const meshwork::emulator::Site& site) {
  static const char kind = 0;
  meshwork::emulator::exchange(
      0xffffffffu, &kind, row, r,
      [](const meshwork::emulator::Exchange& e) {
        uint16_t matrix[kCount][8][8];
        for (int lane = 0; lane < 8 * kCount; ++lane) {
          if (!meshwork::emulator::isShared(e.in[lane], 16)) {
            meshwork::emulator::fail(e.site, "a matrix row that is not in shared memory");
          }
          if (reinterpret_cast<uintptr_t>(e.in[lane]) % 16 != 0) {
            meshwork::emulator::fail(e.site, "a matrix row that is not aligned to 16 bytes");
          }
          std::memcpy(matrix[lane / 8][lane % 8], e.in[lane], 16);
        }
        for (int lane = 0; lane < 32; ++lane) {
          const int g = lane / 4, t = lane % 4;
          for (int i = 0; i < kCount; ++i) {
            const uint32_t low = kTransposed ? matrix[i][2 * t][g] : matrix[i][g][2 * t];
            const uint32_t high = kTransposed ? matrix[i][2 * t + 1][g] : matrix[i][g][2 * t + 1];
            static_cast<uint32_t*>(e.out[lane])[i] = low | high << 16;
          }
        }
      },
      site);
}

}  // namespace emulated

using emulator::Site;

inline void mmaBf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
  emulated::mma<emulated::SixteenBit<emulated::fromBf16>, 16>(c, a, b, site);
}
inline void mmaF16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
  emulated::mma<emulated::SixteenBit<emulated::fromF16>, 16>(c, a, b, site);
}
inline void mmaTf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
  emulated::mma<emulated::Tf32, 8>(c, a, b, site);
}
template <int kCount>
void loadMatrices(uint32_t (&r)[kCount], const void* row, Site site = Site::here()) {
  emulated::loadMatrices<kCount, false>(r, row, site);
}
template <int kCount>
void loadMatricesTransposed(uint32_t (&r)[kCount], const void* row, Site site = Site::here()) {
  emulated::loadMatrices<kCount, true>(r, row, site);
}
inline void copyAsync16(void* to, const void* from, int filled = 16, Site site = Site::here()) {
  emulator::copyAsync(to, from, 16, static_cast<size_t>(filled), site);
}
inline void copyAsync4(void* to, const void* from, int filled = 4, Site site = Site::here()) {
  emulator::copyAsync(to, from, 4, static_cast<size_t>(filled), site);
}
inline void commitCopies() { emulator::commitCopies(); }
template <int kPending>
void waitCopies() {
  emulator::waitCopies(kPending);
}
inline void namedBarrier(int id, int threads, Site site = Site::here()) {
  emulator::barrier(id, static_cast<unsigned>(threads), emulator::Vote::none, 0, site);
}

}  // namespace meshwork::cuda
