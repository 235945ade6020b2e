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
constexpr bool isFloat(DType type) { return type != DType::i32 && type != DType::boolean; }
constexpr const char* dtypeName(DType type) {
  constexpr const char* names[kDTypeCount] = {"f32", "f64", "bf16", "f16", "i32", "bool"};
  return names[static_cast<int>(type)];
}

// Storage of a bfloat16: the upper half of a float32.
struct bf16 {
  uint16_t bits;
};

// Storage of a float16 (IEEE binary16).
struct f16 {
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

// The exponent is moved by a multiplication, which also normalises what was denormal.
inline float toFloat(f16 value) {
  const uint32_t wide = value.bits, sign = (wide & 0x8000u) << 16;
  const float scaled = std::bit_cast<float>((wide & 0x7fffu) << 13) * 0x1p112f;
  const uint32_t special = (wide & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled) | special);
}

// Rounds to nearest, ties to even; too large ones become infinite, a NaN stays a (quiet) NaN.
inline f16 toF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffffu;
  uint32_t result = 0x7c00u;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude < 0x38800000u) {  // denormal: an addition to 0.5 rounds it
    result = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else if (magnitude < 0x477ff000u) {
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return f16{static_cast<uint16_t>(result | ((bits >> 16) & 0x8000u))};
}

}  // namespace meshwork
