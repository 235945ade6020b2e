// The check of matmul.
#pragma once
#include "backend/kernel.h"

namespace meshwork {

// Bits of matmul's flags.
namespace matmul_flag {
constexpr int32_t accumulate = 1;
constexpr int32_t bias = 2;
constexpr int32_t residual = 4;
constexpr int32_t gelu = 8;
constexpr int32_t silu = 16;
constexpr int32_t all = 31;
}  // namespace matmul_flag

Status checkMatmul(const Call& call);

}  // namespace meshwork
