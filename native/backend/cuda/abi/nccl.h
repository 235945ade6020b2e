// NCCL's functions, by dlopen. Hand-declared, because machines that build often lack its header; where it is found,
// verify_nccl.cc holds these declarations against it.
#pragma once
#include <climits>
#include <cstddef>
#include <string>

#include "core/status.h"

namespace meshwork::cuda::abi {

enum NcclResult : int { kNcclSuccess = 0, kNcclInvalidUsage = 5, kNcclRemoteError = 6, kNcclInProgress = 7 };
enum NcclType : int {
  kNcclUint8 = 1,
  kNcclInt32 = 2,
  kNcclFloat16 = 6,
  kNcclFloat32 = 7,
  kNcclFloat64 = 8,
  kNcclBfloat16 = 9,
};
enum NcclOp : int { kNcclSum = 0, kNcclMax = 2, kNcclMin = 3 };

struct NcclUniqueId {
  char bytes[128];
};

// What NCCL 2.17 knew. Later versions take fewer bytes than theirs and give the rest its default.
struct NcclConfig {
  size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef;
  unsigned version = 21805;
  int blocking = INT_MIN;  // INT_MIN and null: NCCL's default
  int cgaClusterSize = INT_MIN;
  int minCtas = INT_MIN;
  int maxCtas = INT_MIN;
  const char* netName = nullptr;
  int splitShare = INT_MIN;
};

using NcclComm = void*;

struct Nccl {
  int (*getVersion)(int* version);  // 10000 * major + 100 * minor + patch
  int (*getUniqueId)(NcclUniqueId*);
  int (*commInitRankConfig)(NcclComm*, int ranks, NcclUniqueId, int rank, NcclConfig*);
  int (*commDestroy)(NcclComm);
  int (*commAbort)(NcclComm);
  int (*commGetAsyncError)(NcclComm, int* result);
  const char* (*getErrorString)(int result);
  const char* (*getLastError)(NcclComm);
  int (*groupStart)();
  int (*groupEnd)();
  int (*allReduce)(const void* send, void* receive, size_t count, int type, int op, NcclComm, void* stream);
  int (*allGather)(const void* send, void* receive, size_t sendCount, int type, NcclComm, void* stream);
  int (*reduceScatter)(const void* send, void* receive, size_t receiveCount, int type, int op, NcclComm, void* stream);
  int (*reduce)(const void* send, void* receive, size_t count, int type, int op, int root, NcclComm, void* stream);
  int (*broadcast)(const void* send, void* receive, size_t count, int type, int root, NcclComm, void* stream);
  int (*send)(const void* data, size_t count, int type, int peer, NcclComm, void* stream);
  int (*recv)(void* data, size_t count, int type, int peer, NcclComm, void* stream);
  std::string path = "";  // of the library
};

// The library, opened at the first call; all later calls give the same. `unsupported` where there is none.
Status loadNccl(const Nccl** api);

}  // namespace meshwork::cuda::abi
