// Reads cpuid once and picks the instruction set.
#include "backend/cpu/isa.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace meshwork {
namespace {

constexpr const char* kNames[kIsaCount] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};

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

bool hasAvx512Bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return hasAvx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && ((a >> 5) & 1u);
}

// Linux saves the tiles of processes that asked for it (arch_prctl, since 5.16).
bool hasAmx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool unit = hasAvx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && ((d >> 24) & 1u) && ((d >> 22) & 1u);
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return unit && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false && unit;
#endif
}

// Intel's cores multiply pairs at half the rate of float32 sums outside of AMX; AMD's at twice the rate.
bool pairsAreFast() { return hasAvx512Bf16() && __builtin_cpu_is("amd"); }
#else
bool hasAvx2() { return false; }
bool hasAvx512() { return false; }
bool hasAvx512Bf16() { return false; }
bool hasAmx() { return false; }
bool pairsAreFast() { return false; }
#endif

Isa fastest() {
  if (isaSupported(Isa::amx)) return Isa::amx;
  if (pairsAreFast()) return Isa::avx512bf16;
  return isaSupported(Isa::avx512) ? Isa::avx512 : isaSupported(Isa::avx2) ? Isa::avx2 : Isa::portable;
}

Isa choose() {
  const char* wanted = std::getenv("MESHWORK_CPU_ISA");
  for (int i = 0; wanted && i < kIsaCount; ++i) {
    const auto isa = static_cast<Isa>(i);
    if (std::strcmp(wanted, kNames[i]) == 0 && isaSupported(isa)) return isa;
  }
  return fastest();
}

}  // namespace

const char* isaName(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool isaSupported(Isa isa) {
  static const bool supported[kIsaCount] = {true, hasAvx2(), hasAvx512(), hasAvx512Bf16(), hasAmx()};
  return supported[static_cast<int>(isa)];
}

Isa activeIsa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace meshwork
