// Reads cpuid once and picks the instruction set.
#include "backend/cpu/isa.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace meshwork {
namespace {

constexpr const char* kNames[kIsaCount] = {"portable", "avx2", "avx512"};

#if defined(__x86_64__)
// __builtin_cpu_supports also asks whether the operating system saves the registers.
bool hasAvx2() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && ((c >> 29) & 1u);
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool hasAvx512() {
  return hasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#else
bool hasAvx2() { return false; }
bool hasAvx512() { return false; }
#endif

Isa choose() {
  Isa best = isaSupported(Isa::avx512) ? Isa::avx512 : isaSupported(Isa::avx2) ? Isa::avx2 : Isa::portable;
  const char* wanted = std::getenv("MESHWORK_CPU_ISA");
  for (int i = 0; wanted && i < kIsaCount; ++i) {
    if (std::strcmp(wanted, kNames[i]) == 0 && i < static_cast<int>(best)) best = static_cast<Isa>(i);
  }
  return best;
}

}  // namespace

const char* isaName(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool isaSupported(Isa isa) {
  static const bool supported[kIsaCount] = {true, hasAvx2(), hasAvx512()};
  return supported[static_cast<int>(isa)];
}

Isa activeIsa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace meshwork
