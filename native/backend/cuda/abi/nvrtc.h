// NVRTC, which compiles CUDA C++ at run time, and the driver's functions that load and start what it made.
// Hand-declared; where the headers are found, verify_nvrtc.cc holds these declarations against them.
#pragma once
#include <cstddef>
#include <string>

#include "core/status.h"

namespace meshwork::cuda::abi {

struct Nvrtc {
  int (*version)(int* major, int* minor);
  const char* (*errorString)(int result);
  int (*createProgram)(void** program, const char* source, const char* name, int headers, const char* const* sources,
                       const char* const* names);
  int (*destroyProgram)(void** program);
  int (*compileProgram)(void* program, int options, const char* const* values);
  int (*getCubinSize)(void* program, size_t* bytes);
  int (*getCubin)(void* program, char* cubin);
  int (*getLogSize)(void* program, size_t* bytes);
  int (*getLog)(void* program, char* log);
  std::string path = "";  // of the library
};

// libcuda.so.1: of the driver, whose context the CUDA runtime has made current.
struct Driver {
  int (*moduleLoadData)(void** module, const void* image);
  int (*moduleUnload)(void* module);
  int (*moduleGetFunction)(void** function, void* module, const char* name);
  int (*launchKernel)(void* function, unsigned gridX, unsigned gridY, unsigned gridZ, unsigned blockX, unsigned blockY,
                      unsigned blockZ, unsigned sharedBytes, void* stream, void** arguments, void** extra);
  int (*getErrorString)(int result, const char** text);
  int (*driverGetVersion)(int* version);
  std::string path = "";  // of the library
};

// Opened at the first call; all later calls give the same. `unsupported` where there is none.
Status loadNvrtc(const Nvrtc** api);
Status loadDriver(const Driver** api);

}  // namespace meshwork::cuda::abi
