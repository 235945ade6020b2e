// Cores and instruction sets of this machine.
#include "runtime/machine.h"

#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace meshwork {

int machineCores() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const unsigned cores = std::thread::hardware_concurrency();
  return cores == 0 ? 1 : static_cast<int>(cores);
}

std::string machineIsa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  std::string isa = "baseline";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isa = "avx2";
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) isa = "avx512";
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (isa == "avx512" && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5)) != 0) isa += " bf16";
  if (isa != "baseline" && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & (1u << 24)) != 0 && (d & (1u << 22)) != 0) {
    isa += " amx";
  }
  return isa;
#elif defined(__aarch64__)
  return "neon";
#else
  return "baseline";
#endif
}

}  // namespace meshwork
