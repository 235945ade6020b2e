// The checks of attention and attention_grad.
#pragma once
#include "backend/kernel.h"

namespace meshwork {

// Bits of attention's flags.
namespace attention_flag {
constexpr int32_t causal = 1;
constexpr int32_t positions = 2;
constexpr int32_t segments = 4;
constexpr int32_t all = 7;
}  // namespace attention_flag

// The most features of a head (d and e): the blocks of one task then fit in Pool::kWorkspaceBytes.
constexpr int64_t kAttentionFeatures = 512;

Status checkAttention(const Call& call);
Status checkAttentionGrad(const Call& call);

}  // namespace meshwork
