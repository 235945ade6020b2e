// Holds abi/nvrtc.h against the real headers; compiled where CMake finds them.
#include <cuda.h>
#include <nvrtc.h>

#include "backend/cuda/abi/alike.h"
#include "backend/cuda/abi/nvrtc.h"

namespace meshwork::cuda::abi {

static_assert(NVRTC_SUCCESS == 0 && CUDA_SUCCESS == 0);
static_assert(alike<decltype(Nvrtc::version), decltype(&nvrtcVersion)>);
static_assert(alike<decltype(Nvrtc::errorString), decltype(&nvrtcGetErrorString)>);
static_assert(alike<decltype(Nvrtc::createProgram), decltype(&nvrtcCreateProgram)>);
static_assert(alike<decltype(Nvrtc::destroyProgram), decltype(&nvrtcDestroyProgram)>);
static_assert(alike<decltype(Nvrtc::compileProgram), decltype(&nvrtcCompileProgram)>);
static_assert(alike<decltype(Nvrtc::getCubinSize), decltype(&nvrtcGetCUBINSize)>);
static_assert(alike<decltype(Nvrtc::getCubin), decltype(&nvrtcGetCUBIN)>);
static_assert(alike<decltype(Nvrtc::getLogSize), decltype(&nvrtcGetProgramLogSize)>);
static_assert(alike<decltype(Nvrtc::getLog), decltype(&nvrtcGetProgramLog)>);

}  // namespace meshwork::cuda::abi
