// A stand-in for NCCL in tests without GPUs: a library with NCCL's symbols, for communicators of threads of one process
// on the streams of the CUDA emulator. Every call is held against what the other ranks called at the same place (kind,
// count, type, op, root; messages: count and type), group calls must nest, and a call blocks its stream until its peers
// have come, as NCCL's kernels do. It moves host memory. It proves the sequence of calls, and nothing else about NCCL.
#include "backend/cuda/abi/nccl.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <memory>

#include "test/cuda_emulator/hooks.h"
#include "test/nccl_stand_in/world.h"

namespace meshwork::stand_in {
namespace {

using cuda::abi::NcclConfig;
using cuda::abi::NcclUniqueId;

constexpr int kSuccess = 0, kInvalidArgument = 4, kInvalidUsage = 5, kInProgress = 7;

struct Comm {
  std::shared_ptr<World> world;
  int rank = 0;
  size_t calls = 0;  // collectives so far
  std::string error;
};

std::mutex worldsMutex;
std::map<uint64_t, std::shared_ptr<World>> worlds;  // by unique id

struct Transfer {
  Comm* comm;
  void* stream;
  bool sends;
  int peer;
  Message message;
};
// Of the calling thread.
thread_local int depth = 0;
thread_local std::vector<Transfer> transfers;

void queue(void* stream, std::function<void()> work) {
  static const emulator::Hooks* hooks = [] {
    const char* path = std::getenv("MESHWORK_CUDA_LIBRARY");
    void* library = path == nullptr ? nullptr : dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) std::abort();  // without the emulator there are no streams
    return reinterpret_cast<emulator::HooksFunction>(dlsym(library, emulator::kHooksName))();
  }();
  auto* held = new std::function<void()>(std::move(work));
  hooks->enqueue(
      stream,
      [](void* context) {
        const std::unique_ptr<std::function<void()>> body(static_cast<std::function<void()>*>(context));
        (*body)();
      },
      held);
}

int collective(Comm* comm, void* stream, const Signature& signature, const void* send, void* receive) {
  if (comm == nullptr || !comm->world->complete()) return kInvalidArgument;
  const size_t number = comm->calls++;
  comm->world->announce(comm->rank, number, signature);
  queue(stream, [world = comm->world, rank = comm->rank, number, part = Part{send, receive, true}] {
    world->meet(rank, number, part);
  });
  return kSuccess;
}

// A group's messages: all are posted, then taken, then waited for.
void launch(std::vector<Transfer> group) {
  if (group.empty()) return;
  void* stream = group.front().stream;
  queue(stream, [group = std::move(group)] {
    World& world = *group.front().comm->world;
    const int rank = group.front().comm->rank;
    std::vector<Message*> posted;
    for (const Transfer& t : group) {
      if (t.sends) posted.push_back(world.post(rank, t.peer, t.message));
    }
    for (const Transfer& t : group) {
      if (!t.sends) world.take(t.peer, rank, t.message);
    }
    for (Message* message : posted) world.awaitTaken(rank, message);
  });
}

int transfer(Transfer next) {
  Comm* comm = next.comm;
  if (comm == nullptr || next.peer < 0 || next.peer >= comm->world->ranks()) return kInvalidArgument;
  if (depth == 0 && next.peer == comm->rank) {
    comm->world->fail("rank " + std::to_string(comm->rank) + " sends to itself outside of a group");
    return kInvalidUsage;
  }
  for (const Transfer& other : transfers) {
    if (other.comm != comm) {
      comm->world->fail("one group has messages of two communicators");
      return kInvalidUsage;
    }
  }
  if (depth > 0) {
    transfers.push_back(std::move(next));
  } else {
    launch({std::move(next)});
  }
  return kSuccess;
}

}  // namespace
}  // namespace meshwork::stand_in

using namespace meshwork::stand_in;
using meshwork::cuda::abi::NcclConfig;
using meshwork::cuda::abi::NcclUniqueId;

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int ncclGetVersion(int* version) {
  *version = 22809;
  return kSuccess;
}
EXPORTED int ncclGetUniqueId(NcclUniqueId* id) {
  static std::atomic<uint64_t> next{1};
  *id = {};
  *reinterpret_cast<uint64_t*>(id->bytes) = next++;
  return kSuccess;
}
EXPORTED int ncclCommInitRankConfig(void** comm, int ranks, NcclUniqueId id, int rank, NcclConfig* config) {
  if (config == nullptr || config->magic != 0xcafebeef || config->size != sizeof(NcclConfig)) return kInvalidArgument;
  if (rank < 0 || rank >= ranks) return kInvalidArgument;
  const std::lock_guard lock(worldsMutex);
  std::shared_ptr<World>& world = worlds[*reinterpret_cast<const uint64_t*>(id.bytes)];
  if (world == nullptr) world = std::make_shared<World>(ranks);
  if (world->ranks() != ranks) return kInvalidArgument;
  world->join();
  *comm = new Comm{world, rank, 0, {}};
  return config->blocking == 0 ? kInProgress : kSuccess;
}
EXPORTED int ncclCommGetAsyncError(void* comm, int* result) {
  World& world = *static_cast<Comm*>(comm)->world;
  *result = world.failed() ? kInvalidUsage : world.complete() ? kSuccess : kInProgress;
  return kSuccess;
}
EXPORTED int ncclCommAbort(void* comm) {
  auto* mine = static_cast<Comm*>(comm);
  mine->world->abort(mine->rank);
  return kSuccess;  // work that is queued may still name it
}
EXPORTED int ncclCommDestroy(void* comm) {
  delete static_cast<Comm*>(comm);
  return kSuccess;
}
EXPORTED const char* ncclGetErrorString(int result) {
  return result == kSuccess ? "no error" : result == kInvalidUsage ? "invalid usage" : "invalid argument";
}
EXPORTED const char* ncclGetLastError(void* comm) {
  auto* mine = static_cast<Comm*>(comm);
  if (mine == nullptr) return "";
  mine->error = mine->world->failure();
  return mine->error.c_str();
}
EXPORTED int ncclGroupStart() {
  ++depth;
  return kSuccess;
}
EXPORTED int ncclGroupEnd() {
  if (depth == 0) return kInvalidUsage;
  if (--depth == 0) launch(std::exchange(transfers, {}));
  return kSuccess;
}
EXPORTED int ncclAllReduce(const void* send, void* receive, size_t count, int type, int op, void* comm, void* stream) {
  return collective(static_cast<Comm*>(comm), stream, {Kind::allReduce, count, type, op, -1}, send, receive);
}
EXPORTED int ncclAllGather(const void* send, void* receive, size_t count, int type, void* comm, void* stream) {
  return collective(static_cast<Comm*>(comm), stream, {Kind::allGather, count, type, 0, -1}, send, receive);
}
EXPORTED int ncclReduceScatter(const void* send, void* receive, size_t count, int type, int op, void* comm,
                               void* stream) {
  return collective(static_cast<Comm*>(comm), stream, {Kind::reduceScatter, count, type, op, -1}, send, receive);
}
EXPORTED int ncclReduce(const void* send, void* receive, size_t count, int type, int op, int root, void* comm,
                        void* stream) {
  return collective(static_cast<Comm*>(comm), stream, {Kind::reduce, count, type, op, root}, send, receive);
}
EXPORTED int ncclBroadcast(const void* send, void* receive, size_t count, int type, int root, void* comm,
                           void* stream) {
  return collective(static_cast<Comm*>(comm), stream, {Kind::broadcast, count, type, 0, root}, send, receive);
}
EXPORTED int ncclSend(const void* data, size_t count, int type, int peer, void* comm, void* stream) {
  return transfer({static_cast<Comm*>(comm), stream, true, peer, {data, count, type, false}});
}
EXPORTED int ncclRecv(void* data, size_t count, int type, int peer, void* comm, void* stream) {
  return transfer({static_cast<Comm*>(comm), stream, false, peer, {data, count, type, false}});
}
