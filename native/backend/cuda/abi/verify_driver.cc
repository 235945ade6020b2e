// Holds the driver's functions in abi/nvrtc.h against cuda.h, which every toolkit has.
#include <cuda.h>

#include "backend/cuda/abi/alike.h"
#include "backend/cuda/abi/cublaslt.h"
#include "backend/cuda/abi/nvrtc.h"
#include "library_types.h"

namespace meshwork::cuda::abi {

static_assert(CUDA_SUCCESS == 0);
static_assert(alike<decltype(Driver::moduleLoadData), decltype(&cuModuleLoadData)>);
static_assert(alike<decltype(Driver::moduleUnload), decltype(&cuModuleUnload)>);
static_assert(alike<decltype(Driver::moduleGetFunction), decltype(&cuModuleGetFunction)>);
static_assert(alike<decltype(Driver::launchKernel), decltype(&cuLaunchKernel)>);
static_assert(alike<decltype(Driver::getErrorString), decltype(&cuGetErrorString)>);
static_assert(alike<decltype(Driver::driverGetVersion), decltype(&cuDriverGetVersion)>);
static_assert(int{kCudaF32} == CUDA_R_32F && int{kCudaF64} == CUDA_R_64F && int{kCudaF16} == CUDA_R_16F);
static_assert(int{kCudaBf16} == CUDA_R_16BF && int{kCudaE4m3} == CUDA_R_8F_E4M3 && int{kCudaE5m2} == CUDA_R_8F_E5M2);

}  // namespace meshwork::cuda::abi
