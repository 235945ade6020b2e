// Kernels compiled for AMX with its tiles emulated: run in place of the real ones where the processor has no AMX, so
// that everything about them but the instructions themselves is tested everywhere.
#pragma once
#include "backend/cpu/registry.h"

namespace meshwork::test {

// Whether tests can run the kernels of `isa` here.
bool isaTestable(Isa isa);
// The kernel for `isa`, of which isaTestable() says yes; null when there is none.
const Kernel* testableKernel(Op op, Isa isa);

}  // namespace meshwork::test
