// The seam of collectives: what a group of ranks does together. Each rank calls from its own thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/opcodes.h"
#include "core/status.h"
#include "core/view.h"

namespace meshwork {

class Pool;

enum class Reduction : int32_t { sum = 0, max = 1, min = 2 };

// One rank's part in the exchange of one tensor by all_reduce, all_gather, reduce_scatter, all_to_all, broadcast or
// expert_exchange. Views are contiguous; what they and the counts must be is in opcodes.h and has been checked for this
// rank. Everything lives until the call returns.
struct Collective {
  Op op = Op::all_reduce;
  const char* label = "";
  const std::byte* in = nullptr;
  std::byte* out = nullptr;
  const View* x = nullptr;
  const View* y = nullptr;
  Reduction reduction = Reduction::sum;  // all_reduce, reduce_scatter
  int dim = 0;                           // all_gather, reduce_scatter; all_to_all: the split dim
  int joinDim = 0;                       // all_to_all
  const int32_t* counts = nullptr;       // one per rank: all_gather, reduce_scatter; all_to_all: split counts
  const int32_t* joinCounts = nullptr;   // all_to_all
  int root = 0;                          // broadcast: index in the group
  const int32_t* rows = nullptr;         // expert_exchange: [ranks, experts], which may hold anything
  const int32_t* owners = nullptr;       // expert_exchange: how many experts each rank has
  int64_t experts = 0;                   // expert_exchange
  int ranks = 0;                         // expert_exchange: of the group
  int64_t most = 0;                      // expert_exchange: no rank has more rows for any other
  bool back = false;                     // expert_exchange
  std::byte* scratch = nullptr;          // what the communicator's scratchBytes() asked for
};

struct Message {
  const char* label = "";
  int peer = 0;
  int32_t tag = 0;
  std::byte* data = nullptr;
  int64_t bytes = 0;
};

struct CommunicatorOptions {
  int ranks = 1;
  bool moveData = true;   // false: ranks meet and are checked, nothing is copied
  bool spin = false;      // ranks poll for some microseconds before they sleep: only with a core for each
  int64_t timeoutMs = 0;  // no rank making any progress for this long while one waits is a timeout; 0: never
};

// A group of ranks; the communicator owns it.
struct CommunicatorGroup {
  virtual ~CommunicatorGroup() = default;
};

// Functions that wait return ok, or: timeout (this rank noticed that nothing moves any more), aborted (another rank
// failed or abort() was called), invalidProgram (the ranks' calls do not fit together). Any failure aborts all ranks,
// until reset().
class Communicator {
 public:
  virtual ~Communicator() = default;

  // The group of these (ascending) ranks: the same for the same ranks. Any thread.
  virtual CommunicatorGroup* group(const std::vector<int32_t>& ranks) = 0;

  // Called by every rank when it begins a run whose program needs the first `groups` groups that were asked for.
  virtual Status begin(int /*rank*/, int /*groups*/) { return Status(); }
  // How many groups there are so far.
  virtual int groups() const = 0;

  // One exchange of one or more tensors (a bucket): all calls have one op, and every rank brings as many, in one order.
  virtual Status run(int rank, CommunicatorGroup& group, std::span<const Collective> calls, Pool& pool) = 0;
  // Bytes of scratch a call needs, which Collective::scratch then points to.
  virtual int64_t scratchBytes(const Collective& /*call*/) const { return 0; }

  // Messages match by (sender, receiver, tag) in posting order. The data of a posted message is read until received
  // says so. `number` counts this rank's posts since reset(), from 0.
  virtual void post(int rank, const Message& message) = 0;
  virtual Status receive(int rank, const Message& message, Pool& pool) = 0;
  virtual Status waitReceived(int rank, int number, const char* label) = 0;

  // Looks for failures that show by themselves (of devices with queues), while a rank waits for its device.
  virtual Status poll(int /*rank*/) { return Status(); }

  // Says what the rank does now, for the message of a timeout; counts as progress. `label` must outlive the run.
  virtual void progress(int rank, const char* label) = 0;

  // The first failure wins and wakes everybody. Any thread.
  virtual void fail(const Status& status) = 0;
  virtual bool failed() const = 0;
  // The first failure, or ok.
  virtual Status failure() const = 0;
  // Ready for the next run. Only when no rank is at work. Returns invalidProgram when messages were left unreceived.
  virtual Status reset() = 0;
};

// Ranks are threads of this process.
std::unique_ptr<Communicator> openInProcess(const CommunicatorOptions& options);

}  // namespace meshwork
