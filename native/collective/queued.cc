// Collectives among ranks of this process whose devices have queues, several ranks on one device allowed. Ranks meet on
// the host; the last one to come makes its communication stream wait for the others', queues everybody's work there,
// and the others' streams wait for that. No work on a device ever waits for a rank that has not come.
#include "collective/queued.h"

#include "collective/blocks.h"
#include "collective/inprocess.h"
#include "collective/move.h"

namespace meshwork {
namespace {

class Queued final : public InProcess {
 public:
  Queued(const CommunicatorOptions& options, std::vector<DeviceQueue*> queues)
      : InProcess(options), queues_(std::move(queues)) {}

  Status run(int rank, CommunicatorGroup& members, std::span<const Collective> calls, Pool&) override {
    auto& group = static_cast<GroupState&>(members);
    const int me = group.indexOf(rank);
    DeviceQueue& queue = queueOf(rank);
    group.calls[static_cast<size_t>(me)].assign(calls.begin(), calls.end());
    group.ready[static_cast<size_t>(me)] = queue.record(Stream::communication);
    bool last = false;
    Status status = meet(group, rank, me, calls[0], [&] {
      last = true;
      return launch(group, queue);
    });
    if (status.ok() && !last) queue.wait(Stream::communication, group.done);
    return status;
  }

  int64_t scratchBytes(const Collective& call) const override {
    return call.op == Op::expert_exchange ? RowExchange::planBytes(call.ranks, call.experts) : 0;
  }

 protected:
  Event posted(int rank) override { return queueOf(rank).record(Stream::communication); }

  Event deliver(int rank, const Message& message, const std::byte* data, Event ready, Pool&) override {
    DeviceQueue& queue = queueOf(rank);
    queue.wait(Stream::communication, ready);
    queue.move(Stream::communication, message.data, data, message.bytes);
    return queue.record(Stream::communication);
  }

  void delivered(int rank, Event done) override { queueOf(rank).wait(Stream::communication, done); }

 private:
  DeviceQueue& queueOf(int rank) const { return *queues_[static_cast<size_t>(rank)]; }

  // On the thread of the last rank, while the others wait.
  static Status launch(GroupState& group, DeviceQueue& queue) {
    for (size_t r = 1; r < group.calls.size(); ++r) {
      Status status = forEachTensor(group, static_cast<int>(r), [](std::span<const Collective>) {});
      if (!status.ok()) return status;
    }
    for (const Event ready : group.ready) queue.wait(Stream::communication, ready);
    Status status =
        forEachTensor(group, 0, [&](std::span<const Collective> tensor) { queueCollective(queue, tensor); });
    if (!status.ok()) return status;
    group.done = queue.record(Stream::communication);
    return Status();  // what the queue could not take, its executor sees and names
  }

  const std::vector<DeviceQueue*> queues_;
};

}  // namespace

std::unique_ptr<Communicator> openQueued(const CommunicatorOptions& options, std::vector<DeviceQueue*> queues) {
  return std::make_unique<Queued>(options, std::move(queues));
}

}  // namespace meshwork
