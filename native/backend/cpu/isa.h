// Which instruction set the CPU kernels use: decided once, from cpuid and MESHWORK_CPU_ISA.
#pragma once

namespace meshwork {

// The last two are avx512 with a unit that multiplies pairs of bfloat16 (see pairs.h).
enum class Isa { portable = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3, amx = 4 };
constexpr int kIsaCount = 5;

const char* isaName(Isa isa);
// Whether this build and this processor (and its operating system) can run the kernels of `isa`.
bool isaSupported(Isa isa);
// The fastest supported set, or what MESHWORK_CPU_ISA=amx|avx512bf16|avx512|avx2|portable asks for. A name that is
// unknown or not supported here is ignored.
Isa activeIsa();

}  // namespace meshwork
