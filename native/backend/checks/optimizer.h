// The checks of the optimizer kernels.
#pragma once
#include "backend/kernel.h"

namespace meshwork {

Status checkAdamw(const Call& call);
Status checkSgd(const Call& call);
Status checkSquareSum(const Call& call);

}  // namespace meshwork
