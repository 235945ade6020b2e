// Functions that many builds share: several instruction sets of the CPU, and the host and the device side of CUDA.
#pragma once

// Always inline: compiled for several instruction sets, there must be no copy for the linker to merge.
#if defined(__CUDACC__)
#define MESHWORK_INLINE __host__ __device__ inline __attribute__((always_inline))
#else
#define MESHWORK_INLINE inline __attribute__((always_inline))
#endif
