// Wrappers of the warp-wide matrix instructions, of the loads that feed them and of asynchronous copies, each with a
// form for the emulator. All 32 lanes of the warp call the matrix wrappers together. With g = lane / 4, t = lane % 4, a
// register of two 16-bit values holds the lower column (A, C) or row (B) in its low half.
//   A 16 x 16 (16 bit): a[0] (g, 2t), a[1] (g + 8, 2t), a[2] (g, 2t + 8), a[3] (g + 8, 2t + 8), two columns each
//   A 16 x 8 (tf32):    a[0] (g, t), a[1] (g + 8, t), a[2] (g, t + 4), a[3] (g + 8, t + 4)
//   B 16 x 8 (16 bit):  b[0] (2t, g), b[1] (2t + 8, g), two rows each;   B 8 x 8 (tf32): b[0] (t, g), b[1] (t + 4, g)
//   C 16 x 8 (f32):     c[0], c[1] (g, 2t), (g, 2t + 1);   c[2], c[3] (g + 8, 2t), (g + 8, 2t + 1)
#pragma once
#include <type_traits>

#include "backend/cuda/kernels/dialect.h"
#include "core/dtype.h"

#if defined(MESHWORK_CUDA_EMULATOR)
#include <emulated_mma.h>  // the emulator's, found where <cuda_runtime.h> is
#else

namespace meshwork::cuda {

// A pointer into shared memory, as the instructions want it.
__device__ __forceinline__ uint32_t sharedAddress(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// c += a * b, m16n8k16, bfloat16 (float16) in, float32 out.
__device__ __forceinline__ void mmaBf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mmaF16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// c += a * b, m16n8k8, tf32: float32 bits whose 13 lowest are not read.
__device__ __forceinline__ void mmaTf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Loads 8 x 8 matrices of 16-bit values from shared memory: matrix i's rows are where lanes 8i to 8i + 7 point, each 16
// bytes long and aligned. A lane gets elements (g, 2t) and (g, 2t + 1) of every matrix; in the second form, of its
// transpose.
__device__ __forceinline__ void loadMatrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(sharedAddress(row))
               : "memory");
}
__device__ __forceinline__ void loadMatricesTransposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(sharedAddress(row))
               : "memory");
}
__device__ __forceinline__ void loadMatrices(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(sharedAddress(row))
               : "memory");
}
__device__ __forceinline__ void loadMatricesTransposed(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(sharedAddress(row))
               : "memory");
}

// Starts a copy of 16 bytes to shared memory, both sides aligned to 16; the bytes from `filled` on become zeros, and
// nothing is read when it is 0. It may be read after waitCopies() (by other threads: and a barrier).
__device__ __forceinline__ void copyAsync16(void* to, const void* from, int filled = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sharedAddress(to)), "l"(from), "r"(filled)
               : "memory");
}
// The same for 4 bytes.
__device__ __forceinline__ void copyAsync4(void* to, const void* from, int filled = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(sharedAddress(to)), "l"(from), "r"(filled)
               : "memory");
}
// Closes a group of copies.
__device__ __forceinline__ void commitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void waitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// A barrier of `threads` threads of the block (a multiple of 32), 1 <= id < 16.
__device__ __forceinline__ void namedBarrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace meshwork::cuda

#endif

namespace meshwork::cuda {

// mmaBf16 or mmaF16, by the storage type.
template <class T>
__device__ __forceinline__ void mmaShort(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, bf16>) {
    mmaBf16(c, a, b);
  } else {
    mmaF16(c, a, b);
  }
}

}  // namespace meshwork::cuda
