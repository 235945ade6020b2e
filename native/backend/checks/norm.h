// The checks of the norm kernels.
#pragma once
#include "backend/kernel.h"

namespace meshwork {

// The longest row a norm's gradient takes: two float64 sums of it fit a thread's workspace.
constexpr int64_t kMaxNormWidth = 262144;

Status checkLayerNorm(const Call& call);
Status checkLayerNormGrad(const Call& call);
Status checkRmsNorm(const Call& call);
Status checkRmsNormGrad(const Call& call);

}  // namespace meshwork
