// Element types: their codes in a program, their sizes, and bfloat16 conversion. The codes are lib/core/dtype.ts's.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

namespace meshwork {

enum class DType : int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3, i32 = 4, boolean = 5 };
constexpr int kDTypeCount = 6;

constexpr int64_t dtypeSize(DType type) {
  constexpr int64_t sizes[kDTypeCount] = {4, 8, 2, 2, 4, 1};
  return sizes[static_cast<int>(type)];
}
constexpr const char* dtypeName(DType type) {
  constexpr const char* names[kDTypeCount] = {"f32", "f64", "bf16", "f16", "i32", "bool"};
  return names[static_cast<int>(type)];
}

// Storage of a bfloat16: the upper half of a float32.
struct bf16 {
  uint16_t bits;
};

inline float toFloat(bf16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
inline float toFloat(float value) { return value; }

// Rounds to nearest, ties to even; a NaN stays a (quiet) NaN.
inline bf16 toBf16(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return bf16{static_cast<uint16_t>(bits >> 16)};
}

}  // namespace meshwork
