// Opens NCCL.
#include "backend/cuda/abi/nccl.h"
#include "backend/library_search.h"

namespace meshwork::cuda::abi {
namespace {

Status find(Nccl* api) {
  SharedLibrary library;
  Status status = openLibrary("NCCL", {"libnccl.so.2", "libnccl.so"}, &library);
  if (!status.ok()) return status;
  const char* missing = nullptr;
  const auto need = [&](const char* name, auto** function) {
    if (!findSymbol(library, name, function) && missing == nullptr) missing = name;
  };
  need("ncclGetVersion", &api->getVersion);
  need("ncclGetUniqueId", &api->getUniqueId);
  need("ncclCommInitRankConfig", &api->commInitRankConfig);
  need("ncclCommDestroy", &api->commDestroy);
  need("ncclCommAbort", &api->commAbort);
  need("ncclCommGetAsyncError", &api->commGetAsyncError);
  need("ncclGetErrorString", &api->getErrorString);
  need("ncclGetLastError", &api->getLastError);
  need("ncclGroupStart", &api->groupStart);
  need("ncclGroupEnd", &api->groupEnd);
  need("ncclAllReduce", &api->allReduce);
  need("ncclAllGather", &api->allGather);
  need("ncclReduceScatter", &api->reduceScatter);
  need("ncclReduce", &api->reduce);
  need("ncclBroadcast", &api->broadcast);
  need("ncclSend", &api->send);
  need("ncclRecv", &api->recv);
  api->path = library.path;
  if (missing == nullptr) return Status();
  return Status(Code::unsupported, library.path + " has no " + missing + ": NCCL 2.14 or newer is needed");
}

}  // namespace

Status loadNccl(const Nccl** api) {
  static Nccl found = {};
  static const Status status = find(&found);
  *api = status.ok() ? &found : nullptr;
  return status;
}

}  // namespace meshwork::cuda::abi
