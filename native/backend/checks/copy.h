// The checks of the copy kernels.
#pragma once
#include "backend/kernel.h"

namespace meshwork {

Status checkCopy(const Call& call);
Status checkShardSlice(const Call& call);

}  // namespace meshwork
