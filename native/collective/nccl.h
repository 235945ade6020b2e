// Collectives by NCCL: every rank has a GPU of its own.
#pragma once
#include <vector>

#include "backend/queue.h"
#include "collective/collective.h"

namespace meshwork {

// Ranks are threads of this process, each with its device's queue. Calls are queued on the rank's communication stream.
// A communicator a group is made when the first run that needs it begins. A failure aborts them all from threads of
// their own; after a user's abort they are made again for the next run, after any other failure the engine is dead.
// `unsupported` where NCCL is not found.
Status openNccl(const CommunicatorOptions& options, std::vector<DeviceQueue*> queues,
                std::unique_ptr<Communicator>* communicator);

}  // namespace meshwork
