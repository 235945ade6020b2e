// Finds the CPU kernel of an op.
#pragma once
#include "backend/cpu/isa.h"
#include "backend/kernel.h"

namespace meshwork {

// The kernel for the active instruction set; null when there is none (collectives, unknown opcodes).
const Kernel* findCpuKernel(Op op);
// The kernel for a given instruction set (tests, benchmarks); null when the set is not supported here.
const Kernel* findCpuKernel(Op op, Isa isa);

}  // namespace meshwork
