// Which instruction set the CPU kernels use: decided once, from cpuid and MESHWORK_CPU_ISA.
#pragma once

namespace meshwork {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2 };
constexpr int kIsaCount = 3;

const char* isaName(Isa isa);
// Whether this build and this processor (and its operating system) can run the kernels of `isa`.
bool isaSupported(Isa isa);
// The widest supported set, or what MESHWORK_CPU_ISA=avx512|avx2|portable asks for where that is narrower. A name that
// is unknown or not supported here is ignored.
Isa activeIsa();

}  // namespace meshwork
