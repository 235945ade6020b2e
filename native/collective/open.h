// Which communicator a backend's devices get.
#pragma once
#include <memory>

#include "backend/backend.h"
#include "collective/collective.h"

namespace meshwork {

// Devices that are the host's, or share a GPU, or where there is no NCCL: among threads of this process. Several GPUs,
// one a rank: NCCL. MESHWORK_COLLECTIVES=nccl or in-process asks for one of the two.
Status openCommunicator(const CommunicatorOptions& options, Backend& backend,
                        std::unique_ptr<Communicator>* communicator);

}  // namespace meshwork
