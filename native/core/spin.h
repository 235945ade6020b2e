// Polling for a short while before sleeping: waking a thread that sleeps costs more than most waits last.
#pragma once
#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <thread>
#endif

namespace meshwork {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Polls until `ready` or so long; says whether it became ready.
template <class Ready>
inline bool spinUntil(const Ready& ready, std::chrono::nanoseconds most) {
  constexpr int kBetweenLooksAtTheClock = 32;
  const auto end = std::chrono::steady_clock::now() + most;
  do {
    for (int i = 0; i < kBetweenLooksAtTheClock; ++i, relax()) {
      if (ready()) return true;
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

}  // namespace meshwork
