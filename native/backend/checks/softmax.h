// The checks of the softmax kernels.
#pragma once
#include "backend/kernel.h"

namespace meshwork {

Status checkSoftmax(const Call& call);
Status checkSoftmaxGrad(const Call& call);

}  // namespace meshwork
