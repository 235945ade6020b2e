// The checks of the embedding kernels.
#pragma once
#include "backend/kernel.h"

namespace meshwork {

Status checkEmbedding(const Call& call);
Status checkEmbeddingGrad(const Call& call);

}  // namespace meshwork
