// Threads that stay on one core.
#pragma once

#if defined(__linux__)
#include <sched.h>
#endif

namespace meshwork {

// Keeps the calling thread on the index-th of the cores that it may run on, counted round. Where the system has no such
// thing, nothing.
inline void pinThread(int index) {
#if defined(__linux__)
  cpu_set_t allowed, one;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) == 0) return;
  int left = index % CPU_COUNT(&allowed), core = 0;
  while (!CPU_ISSET(core, &allowed) || left-- > 0) ++core;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  sched_setaffinity(0, sizeof(one), &one);  // only a wish
#else
  (void)index;
#endif
}

}  // namespace meshwork
