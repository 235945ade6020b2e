// Collectives of devices that run beside their host threads.
#pragma once
#include <vector>

#include "backend/queue.h"
#include "collective/collective.h"

namespace meshwork {

// Ranks are threads of this process, each with its device's queue. A call returns when its work is queued: it comes
// after what the rank's communication stream held before, and before what is queued there next. The same for messages.
std::unique_ptr<Communicator> openQueued(const CommunicatorOptions& options, std::vector<DeviceQueue*> queues);

}  // namespace meshwork
