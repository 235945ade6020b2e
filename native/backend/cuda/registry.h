// Finds the CUDA kernel of an op.
#pragma once
#include "backend/kernel.h"

namespace meshwork::cuda {

// Null when there is none (collectives, unknown opcodes).
const Kernel* findKernel(Op op);

}  // namespace meshwork::cuda
