// Products by cuBLASLt: which of them it can do exactly as asked, their descriptors and algorithms, kept per device.
#pragma once
#include "backend/cuda/device.h"

namespace meshwork::cuda {

// Makes the plan of a product ahead of its first run, as if its operands began at 16 bytes.
void prepareLibrary(const Call& call);

// Queues the product on the compute stream; false where the library is missing, has no such epilogue or no algorithm:
// nothing has been queued then. Allocates at most when a product with its strides, flags and alignment is first seen.
bool runLibrary(const Call& call);

}  // namespace meshwork::cuda
