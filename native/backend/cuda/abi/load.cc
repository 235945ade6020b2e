// Opens cuBLASLt, NVRTC and the driver and looks up their functions.
#include "backend/cuda/abi/cublaslt.h"
#include "backend/cuda/abi/nvrtc.h"
#include "backend/library_search.h"

namespace meshwork::cuda::abi {
namespace {

// Looks up functions; remembers the first that is missing.
class Symbols {
 public:
  explicit Symbols(const SharedLibrary& library) : library_(library) {}
  template <class Function>
  void find(const char* name, Function** function) {
    if (!findSymbol(library_, name, function) && missing_ == nullptr) missing_ = name;
  }
  Status status() const {
    if (missing_ == nullptr) return Status();
    return Status(Code::unsupported, library_.path + " has no " + missing_ + ": a newer version is needed");
  }

 private:
  const SharedLibrary& library_;
  const char* missing_ = nullptr;
};

Status findCublasLt(CublasLt* api) {
  SharedLibrary library;
  Status status = openLibrary("cuBLASLt", {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}, &library);
  if (!status.ok()) return status;
  Symbols symbols(library);
  symbols.find("cublasLtCreate", &api->create);
  symbols.find("cublasLtDestroy", &api->destroy);
  symbols.find("cublasLtGetVersion", &api->getVersion);
  symbols.find("cublasLtMatmulDescCreate", &api->descCreate);
  symbols.find("cublasLtMatmulDescDestroy", &api->descDestroy);
  symbols.find("cublasLtMatmulDescSetAttribute", &api->descSet);
  symbols.find("cublasLtMatrixLayoutCreate", &api->layoutCreate);
  symbols.find("cublasLtMatrixLayoutDestroy", &api->layoutDestroy);
  symbols.find("cublasLtMatrixLayoutSetAttribute", &api->layoutSet);
  symbols.find("cublasLtMatmulPreferenceCreate", &api->preferenceCreate);
  symbols.find("cublasLtMatmulPreferenceDestroy", &api->preferenceDestroy);
  symbols.find("cublasLtMatmulPreferenceSetAttribute", &api->preferenceSet);
  symbols.find("cublasLtMatmulAlgoGetHeuristic", &api->heuristic);
  symbols.find("cublasLtMatmul", &api->matmul);
  api->path = library.path;
  return symbols.status();
}

Status findNvrtc(Nvrtc* api) {
  SharedLibrary library;
  Status status = openLibrary("NVRTC", {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"}, &library);
  if (!status.ok()) return status;
  Symbols symbols(library);
  symbols.find("nvrtcVersion", &api->version);
  symbols.find("nvrtcGetErrorString", &api->errorString);
  symbols.find("nvrtcCreateProgram", &api->createProgram);
  symbols.find("nvrtcDestroyProgram", &api->destroyProgram);
  symbols.find("nvrtcCompileProgram", &api->compileProgram);
  symbols.find("nvrtcGetCUBINSize", &api->getCubinSize);
  symbols.find("nvrtcGetCUBIN", &api->getCubin);
  symbols.find("nvrtcGetProgramLogSize", &api->getLogSize);
  symbols.find("nvrtcGetProgramLog", &api->getLog);
  api->path = library.path;
  return symbols.status();
}

Status findDriver(Driver* api) {
  SharedLibrary library;
  Status status = openLibrary("the NVIDIA driver's library", {"libcuda.so.1"}, &library);
  if (!status.ok()) return status;
  Symbols symbols(library);
  symbols.find("cuModuleLoadData", &api->moduleLoadData);
  symbols.find("cuModuleUnload", &api->moduleUnload);
  symbols.find("cuModuleGetFunction", &api->moduleGetFunction);
  symbols.find("cuLaunchKernel", &api->launchKernel);
  symbols.find("cuGetErrorString", &api->getErrorString);
  symbols.find("cuDriverGetVersion", &api->driverGetVersion);
  api->path = library.path;
  return symbols.status();
}

// One per library: what was found at the first call.
template <class Api, Status (*find)(Api*)>
Status load(const Api** api) {
  static Api found = {};
  static const Status status = find(&found);
  *api = status.ok() ? &found : nullptr;
  return status;
}

}  // namespace

Status loadCublasLt(const CublasLt** api) { return load<CublasLt, findCublasLt>(api); }
Status loadNvrtc(const Nvrtc** api) { return load<Nvrtc, findNvrtc>(api); }
Status loadDriver(const Driver** api) { return load<Driver, findDriver>(api); }

}  // namespace meshwork::cuda::abi
