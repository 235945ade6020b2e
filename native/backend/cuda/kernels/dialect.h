// The words in which kernels ask for shared memory. With nvcc they are the language's own; where the same sources are
// compiled as plain C++ for the emulator (native/test/cuda_emulator), every variable is poisoned and guarded there.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#if defined(MESHWORK_CUDA_EMULATOR)

// MESHWORK_SHARED_ARRAY(float, tile, [32][33]); declares a shared array of the block.
#define MESHWORK_SHARED_ARRAY(Type, name, extents) \
  static const char name##Key = 0;                 \
  using name##Type = Type extents;                 \
  name##Type& name = *static_cast<name##Type*>(    \
      ::meshwork::emulator::sharedVariable(&name##Key, sizeof(name##Type), alignof(name##Type)))
// MESHWORK_DYNAMIC_SHARED(name); declares `name`, the launch's dynamic shared memory, aligned to 128 bytes.
#define MESHWORK_DYNAMIC_SHARED(name) auto* name = static_cast<unsigned char*>(::meshwork::emulator::dynamicShared())

#else

#define MESHWORK_SHARED_ARRAY(Type, name, extents) __shared__ Type name extents
#define MESHWORK_DYNAMIC_SHARED(name)                                     \
  extern __shared__ __align__(128) unsigned char meshworkDynamicShared[]; \
  unsigned char* name = meshworkDynamicShared

#endif
