// Results written past the caches: a line that nothing reads soon need not be fetched before it is overwritten.
#pragma once
#include "backend/cpu/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace meshwork::MESHWORK_ISA {

// From here on a result does not stay in the caches until it is read.
constexpr int64_t kStreamedBytes = int64_t{32} << 20;

// To an address that is a multiple of the vector's size. Others see it after endStreams().
MESHWORK_INLINE void streamVector(std::byte* to, F32 value) {
#if MESHWORK_ISA_LEVEL == 2
  _mm512_stream_ps(reinterpret_cast<float*>(to), bitCast<__m512>(value));
#elif MESHWORK_ISA_LEVEL == 1
  _mm256_stream_ps(reinterpret_cast<float*>(to), bitCast<__m256>(value));
#elif defined(__x86_64__)
  _mm_stream_ps(reinterpret_cast<float*>(to), bitCast<__m128>(value));
#else
  store(reinterpret_cast<float*>(to), value);
#endif
}

inline void endStreams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace meshwork::MESHWORK_ISA
