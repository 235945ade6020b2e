// The checks of the cross-entropy kernels.
#pragma once
#include "backend/kernel.h"

namespace meshwork {

Status checkCrossEntropy(const Call& call);
Status checkCrossEntropyPartial(const Call& call);
Status checkCrossEntropyGrad(const Call& call);

}  // namespace meshwork
