// The checks of the kernels that route rows to experts and work on them. What ids and counts hold is run's concern.
#pragma once
#include "backend/kernel.h"

namespace meshwork {

Status checkTopk(const Call& call);
Status checkExpertCapacity(const Call& call);
Status checkExpertSort(const Call& call);
Status checkPermuteRows(const Call& call);
Status checkGroupedMatmul(const Call& call);
Status checkGroupedMatmulGrad(const Call& call);
Status checkExpertGate(const Call& call);
Status checkExpertGateGrad(const Call& call);
Status checkExpertCombine(const Call& call);
Status checkExpertCombineGrad(const Call& call);

}  // namespace meshwork
