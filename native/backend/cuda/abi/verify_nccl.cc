// Holds abi/nccl.h against the real header; compiled where CMake finds it.
#include <nccl.h>

#include "backend/cuda/abi/alike.h"
#include "backend/cuda/abi/nccl.h"

namespace meshwork::cuda::abi {

static_assert(int{kNcclSuccess} == ncclSuccess && int{kNcclInvalidUsage} == ncclInvalidUsage);
static_assert(int{kNcclRemoteError} == ncclRemoteError && int{kNcclInProgress} == ncclInProgress);
static_assert(int{kNcclUint8} == ncclUint8 && int{kNcclInt32} == ncclInt32 && int{kNcclFloat16} == ncclFloat16);
static_assert(int{kNcclFloat32} == ncclFloat32 && int{kNcclFloat64} == ncclFloat64);
static_assert(int{kNcclBfloat16} == ncclBfloat16);
static_assert(int{kNcclSum} == ncclSum && int{kNcclMax} == ncclMax && int{kNcclMin} == ncclMin);
static_assert(sizeof(NcclUniqueId) == sizeof(ncclUniqueId));
static_assert(sizeof(NcclConfig) <= sizeof(ncclConfig_t));
static_assert(offsetof(NcclConfig, size) == offsetof(ncclConfig_t, size));
static_assert(offsetof(NcclConfig, magic) == offsetof(ncclConfig_t, magic));
static_assert(offsetof(NcclConfig, version) == offsetof(ncclConfig_t, version));
static_assert(offsetof(NcclConfig, blocking) == offsetof(ncclConfig_t, blocking));
static_assert(offsetof(NcclConfig, cgaClusterSize) == offsetof(ncclConfig_t, cgaClusterSize));
static_assert(offsetof(NcclConfig, minCtas) == offsetof(ncclConfig_t, minCTAs));
static_assert(offsetof(NcclConfig, maxCtas) == offsetof(ncclConfig_t, maxCTAs));
static_assert(offsetof(NcclConfig, netName) == offsetof(ncclConfig_t, netName));
static_assert(offsetof(NcclConfig, splitShare) == offsetof(ncclConfig_t, splitShare));
static_assert(alike<decltype(Nccl::getVersion), decltype(&ncclGetVersion)>);
static_assert(alike<decltype(Nccl::getUniqueId), decltype(&ncclGetUniqueId)>);
static_assert(alike<decltype(Nccl::commInitRankConfig), decltype(&ncclCommInitRankConfig)>);
static_assert(alike<decltype(Nccl::commDestroy), decltype(&ncclCommDestroy)>);
static_assert(alike<decltype(Nccl::commAbort), decltype(&ncclCommAbort)>);
static_assert(alike<decltype(Nccl::commGetAsyncError), decltype(&ncclCommGetAsyncError)>);
static_assert(alike<decltype(Nccl::getErrorString), decltype(&ncclGetErrorString)>);
static_assert(alike<decltype(Nccl::getLastError), decltype(&ncclGetLastError)>);
static_assert(alike<decltype(Nccl::groupStart), decltype(&ncclGroupStart)>);
static_assert(alike<decltype(Nccl::groupEnd), decltype(&ncclGroupEnd)>);
static_assert(alike<decltype(Nccl::allReduce), decltype(&ncclAllReduce)>);
static_assert(alike<decltype(Nccl::allGather), decltype(&ncclAllGather)>);
static_assert(alike<decltype(Nccl::reduceScatter), decltype(&ncclReduceScatter)>);
static_assert(alike<decltype(Nccl::reduce), decltype(&ncclReduce)>);
static_assert(alike<decltype(Nccl::broadcast), decltype(&ncclBroadcast)>);
static_assert(alike<decltype(Nccl::send), decltype(&ncclSend)>);
static_assert(alike<decltype(Nccl::recv), decltype(&ncclRecv)>);

}  // namespace meshwork::cuda::abi
