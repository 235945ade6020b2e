// Stands for backend/cuda/abi/load.cc beside emulated kernels: there are no libraries for an emulated device.
#include "backend/cuda/abi/cublaslt.h"
#include "backend/cuda/abi/nvrtc.h"

namespace meshwork::cuda::abi {
namespace {

Status none() { return Status(Code::unsupported, "there is no CUDA library for an emulated device"); }

}  // namespace

Status loadCublasLt(const CublasLt**) { return none(); }
Status loadNvrtc(const Nvrtc**) { return none(); }
Status loadDriver(const Driver**) { return none(); }

}  // namespace meshwork::cuda::abi
