// Chooses between the communicators.
#include "collective/open.h"

#include <cstdlib>
#include <set>
#include <string>

#include "collective/nccl.h"
#include "collective/queued.h"

namespace meshwork {
namespace {

// Whether every rank has a GPU of its own, and whether they may use each other's memory.
bool separate(const std::vector<DeviceQueue*>& queues) {
  std::set<int> gpus;
  for (const DeviceQueue* queue : queues) gpus.insert(queue->gpu());
  return gpus.size() == queues.size();
}
bool connected(const std::vector<DeviceQueue*>& queues) {
  for (const DeviceQueue* queue : queues) {
    for (const DeviceQueue* other : queues) {
      if (!queue->reaches(*other)) return false;
    }
  }
  return true;
}

Status openForQueues(const CommunicatorOptions& options, std::vector<DeviceQueue*> queues,
                     std::unique_ptr<Communicator>* communicator) {
  const char* asked = std::getenv("MESHWORK_COLLECTIVES");
  const std::string wanted = asked == nullptr ? "" : asked;
  if (wanted != "" && wanted != "nccl" && wanted != "in-process") {
    return Status(Code::invalidArgument, "MESHWORK_COLLECTIVES is nccl or in-process, not '" + wanted + "'");
  }
  const bool apart = separate(queues);
  if (wanted == "nccl" && !apart) {
    return Status(Code::device, "NCCL needs a GPU for each rank; here some ranks share one");
  }
  Status status;
  if (wanted == "nccl" || (wanted == "" && apart && queues.size() > 1)) {
    status = openNccl(options, queues, communicator);
    if (status.ok()) return status;
    if (wanted == "nccl") return Status(Code::device, status.message());
  }
  if (!connected(queues)) {
    return Status(Code::device, "these GPUs cannot read each other's memory, and so need NCCL: " + status.message());
  }
  *communicator = openQueued(options, std::move(queues));
  return Status();
}

}  // namespace

Status openCommunicator(const CommunicatorOptions& options, Backend& backend,
                        std::unique_ptr<Communicator>* communicator) {
  std::vector<DeviceQueue*> queues;
  for (int rank = 0; rank < options.ranks; ++rank) queues.push_back(backend.queue(rank));
  if (queues.front() == nullptr) {
    *communicator = openInProcess(options);
    return Status();
  }
  return openForQueues(options, std::move(queues), communicator);
}

}  // namespace meshwork
