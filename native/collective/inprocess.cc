// Collectives among threads of this process: ranks publish their pointers, meet, each does a share, and meet again.
#include "collective/inprocess.h"

#include <chrono>

#include "collective/move.h"
#include "core/spin.h"
#include "runtime/pool.h"

namespace meshwork {
namespace {

// Ranks that do equal work come within this time of each other; to wake one that sleeps takes about as long.
constexpr std::chrono::nanoseconds kSpin = std::chrono::microseconds(200);
// A rank that polled in vain polls half as long the next time, as others may need its core, and the whole time again
// only now and then.
constexpr int kVainPolls = 16;

Status aborted() { return Status(Code::aborted, "the run was aborted"); }

std::string describeMeeting(const GroupState& group, int me, const Collective& call) {
  std::string missing;
  for (size_t r = 0; r < group.ranks.size(); ++r) {
    if (group.arrivals[r] >= group.arrivals[static_cast<size_t>(me)]) continue;
    missing += (missing.empty() ? "" : ", ") + std::to_string(group.ranks[r]);
  }
  std::string members;
  for (const int32_t r : group.ranks) members += (members.empty() ? "" : ", ") + std::to_string(r);
  return describe(call) + " over ranks " + members + "; not arrived: " + missing;
}

// Ranks whose memory is the host's.
class HostInProcess final : public InProcess {
 public:
  using InProcess::InProcess;

  Status run(int rank, CommunicatorGroup& members, std::span<const Collective> calls, Pool& pool) override {
    auto& group = static_cast<GroupState&>(members);
    const int me = group.indexOf(rank);
    group.calls[static_cast<size_t>(me)].assign(calls.begin(), calls.end());
    Status status = meet(group, rank, me, calls[0]);
    if (!status.ok()) return status;
    status = forEachTensor(group, me, [&](std::span<const Collective> tensor) {
      if (options_.moveData) moveShare(tensor, me, pool);
    });
    if (!status.ok()) {
      fail(status);
      return status;
    }
    return meet(group, rank, me, calls[0]);
  }

 protected:
  Event deliver(int, const Message& message, const std::byte* data, Event, Pool& pool) override {
    if (options_.moveData) copyBytes(message.data, data, message.bytes, pool);
    return nullptr;
  }
};

}  // namespace

CommunicatorGroup* InProcess::group(const std::vector<int32_t>& ranks) {
  const std::lock_guard lock(groupsMutex_);
  std::unique_ptr<GroupState>& group = groups_[ranks];
  if (group == nullptr) group = std::make_unique<GroupState>(ranks);
  return group.get();
}

int InProcess::groups() const {
  const std::lock_guard lock(groupsMutex_);
  return static_cast<int>(groups_.size());
}

void InProcess::post(int rank, const Message& message) {
  Mailbox& own = mailboxes_[static_cast<size_t>(rank)];
  const Event ready = posted(rank);
  int number = 0;
  {
    const std::lock_guard lock(own.mutex);
    number = static_cast<int>(own.sent.size());
    own.sent.emplace_back();
  }
  Mailbox& peer = mailboxes_[static_cast<size_t>(message.peer)];
  {
    const std::lock_guard lock(peer.mutex);
    peer.posted[{rank, message.tag}].push_back(Posted{message.data, message.bytes, number, ready});
    peer.changes.fetch_add(1, std::memory_order_release);
  }
  peer.wake.notify_all();
}

Status InProcess::receive(int rank, const Message& message, Pool& pool) {
  Mailbox& own = mailboxes_[static_cast<size_t>(rank)];
  Posted posted;
  const auto arrived = [&] {
    const auto queue = own.posted.find({message.peer, message.tag});
    return queue != own.posted.end() && !queue->second.empty();
  };
  {
    std::unique_lock lock(own.mutex);
    Status status = wait(lock, own.wake, own.changes, rank, message.label, arrived, [&] {
      return "receive of tag " + std::to_string(message.tag) + " from rank " + std::to_string(message.peer);
    });
    if (!status.ok()) return status;
    std::deque<Posted>& queue = own.posted.find({message.peer, message.tag})->second;
    posted = queue.front();
    queue.pop_front();
  }
  if (posted.bytes != message.bytes) {
    const Status status(Code::invalidProgram, "rank " + std::to_string(message.peer) + " sends " +
                                                  std::to_string(posted.bytes) + " bytes (tag " +
                                                  std::to_string(message.tag) + "), rank " + std::to_string(rank) +
                                                  " receives " + std::to_string(message.bytes));
    fail(status);
    return status;
  }
  const Event done = deliver(rank, message, posted.data, posted.ready, pool);
  Mailbox& peer = mailboxes_[static_cast<size_t>(message.peer)];
  {
    const std::lock_guard lock(peer.mutex);
    peer.sent[static_cast<size_t>(posted.number)] = Sent{true, done};
    peer.changes.fetch_add(1, std::memory_order_release);
  }
  peer.wake.notify_all();
  return Status();
}

Status InProcess::waitReceived(int rank, int number, const char* label) {
  Mailbox& own = mailboxes_[static_cast<size_t>(rank)];
  Event done = nullptr;
  {
    std::unique_lock lock(own.mutex);
    Status status = wait(
        lock, own.wake, own.changes, rank, label, [&] { return own.sent[static_cast<size_t>(number)].received; },
        [&] { return "send number " + std::to_string(number) + " to be received"; });
    if (!status.ok()) return status;
    done = own.sent[static_cast<size_t>(number)].done;
  }
  delivered(rank, done);
  return Status();
}

void InProcess::progress(int rank, const char* label) {
  RankState& state = states_[static_cast<size_t>(rank)];
  state.label.store(label, std::memory_order_relaxed);
  state.steps.fetch_add(1, std::memory_order_relaxed);
}

void InProcess::fail(const Status& status) {
  {
    const std::lock_guard lock(failureMutex_);
    if (failed_.load(std::memory_order_relaxed)) return;
    failure_ = status;
    failed_.store(true, std::memory_order_release);
  }
  // Taking each lock once lets nobody fall asleep between its look at failed_ and its wait.
  const std::lock_guard groupsLock(groupsMutex_);
  for (const auto& [ranks, group] : groups_) {
    { const std::lock_guard lock(group->mutex); }
    group->wake.notify_all();
  }
  for (Mailbox& mailbox : mailboxes_) {
    { const std::lock_guard lock(mailbox.mutex); }
    mailbox.wake.notify_all();
  }
}

Status InProcess::failure() const {
  const std::lock_guard lock(failureMutex_);
  return failure_;
}

Status InProcess::reset() {
  Status status;
  const std::lock_guard groupsLock(groupsMutex_);
  for (const auto& [ranks, group] : groups_) {
    group->arrived = 0;
    std::fill(group->arrivals.begin(), group->arrivals.end(), uint64_t{0});
  }
  for (size_t rank = 0; rank < mailboxes_.size(); ++rank) {
    Mailbox& mailbox = mailboxes_[rank];
    for (const auto& [key, queue] : mailbox.posted) {
      if (queue.empty() || !status.ok()) continue;
      status = Status(Code::invalidProgram, "a message from rank " + std::to_string(key.first) + " to rank " +
                                                std::to_string(rank) + " (tag " + std::to_string(key.second) +
                                                ") was never received");
    }
    mailbox.posted.clear();
    mailbox.sent.clear();
    states_[rank].label.store("", std::memory_order_relaxed);
  }
  const std::lock_guard lock(failureMutex_);
  if (failed_.load(std::memory_order_relaxed)) status = Status();  // a failed run leaves messages behind
  failure_ = Status();
  failed_.store(false, std::memory_order_release);
  return status;
}

Status InProcess::meet(GroupState& group, int rank, int me, const Collective& call,
                       const std::function<Status()>& last) {
  progress(rank, call.label);
  uint64_t meeting = 0;
  {
    std::unique_lock lock(group.mutex);
    if (failed()) return aborted();
    meeting = group.meetings.load(std::memory_order_relaxed);
    ++group.arrivals[static_cast<size_t>(me)];
    if (++group.arrived == static_cast<int>(group.ranks.size())) {
      group.arrived = 0;
      if (last != nullptr) {
        lock.unlock();  // fail() takes it
        Status status = last();
        if (!status.ok()) {
          fail(status);
          return status;
        }
        lock.lock();
      }
      group.meetings.store(meeting + 1, std::memory_order_release);
      lock.unlock();
      group.wake.notify_all();
      return Status();
    }
  }
  const auto met = [&] { return group.meetings.load(std::memory_order_acquire) != meeting; };
  std::unique_lock lock(group.mutex);
  return wait(lock, group.wake, group.meetings, rank, call.label, met,
              [&] { return describeMeeting(group, me, call); });
}

Status InProcess::forEachTensor(const GroupState& group, int me,
                                const std::function<void(std::span<const Collective>)>& body) {
  const size_t tensors = group.calls[static_cast<size_t>(me)].size();
  std::vector<Collective> calls(group.calls.size());
  for (size_t r = 0; r < calls.size(); ++r) {
    if (group.calls[r].size() == tensors) continue;
    return Status(Code::invalidProgram, "ranks " + std::to_string(group.ranks[static_cast<size_t>(me)]) + " and " +
                                            std::to_string(group.ranks[r]) + " disagree: " + std::to_string(tensors) +
                                            " tensors meet " + std::to_string(group.calls[r].size()));
  }
  for (size_t i = 0; i < tensors; ++i) {
    for (size_t r = 0; r < calls.size(); ++r) calls[r] = group.calls[r][i];
    Status status = checkCalls(calls, group.ranks, me);
    if (!status.ok()) return status;
    body(calls);
  }
  return Status();
}

uint64_t InProcess::steps() const {
  uint64_t sum = 0;
  for (const RankState& state : states_) sum += state.steps.load(std::memory_order_relaxed);
  return sum;
}

// Polls, then sleeps until `ready`, a failure, or no rank having made progress for the timeout.
Status InProcess::wait(std::unique_lock<std::mutex>& lock, std::condition_variable& wake,
                       const std::atomic<uint64_t>& changes, int rank, const char* label, const Question& ready,
                       const Explanation& what) {
  if (!failed() && ready()) return Status();
  RankState& state = states_[static_cast<size_t>(rank)];
  state.label.store(label, std::memory_order_relaxed);
  state.waiting.store(true, std::memory_order_relaxed);
  if (options_.spin) {
    if (state.vainPolls % kVainPolls == 0) state.spin = kSpin;
    poll(lock, changes, ready, state.spin);
    const bool vain = !ready();
    state.vainPolls = vain ? state.vainPolls + 1 : 0;
    state.spin = vain ? state.spin / 2 : kSpin;
  }
  const Status status = sleep(lock, wake, rank, ready, what);
  state.waiting.store(false, std::memory_order_relaxed);
  state.steps.fetch_add(1, std::memory_order_relaxed);
  return status;
}

// Without the lock: whoever makes `ready` true needs it, and counts in `changes`.
void InProcess::poll(std::unique_lock<std::mutex>& lock, const std::atomic<uint64_t>& changes, const Question& ready,
                     std::chrono::nanoseconds most) {
  const auto end = std::chrono::steady_clock::now() + most;
  while (!failed() && !ready()) {
    const uint64_t seen = changes.load(std::memory_order_relaxed);
    const auto left = end - std::chrono::steady_clock::now();
    lock.unlock();
    const bool changed = spinUntil([&] { return failed() || changes.load(std::memory_order_acquire) != seen; }, left);
    lock.lock();
    if (!changed) return;
  }
}

Status InProcess::sleep(std::unique_lock<std::mutex>& lock, std::condition_variable& wake, int rank,
                        const Question& ready, const Explanation& what) {
  const auto done = [&] { return failed() || ready(); };
  const auto timeout = std::chrono::milliseconds(options_.timeoutMs);
  uint64_t seen = steps();
  for (;;) {
    if (options_.timeoutMs <= 0) {
      wake.wait(lock, done);
    } else if (!wake.wait_for(lock, timeout, done)) {
      const uint64_t now = steps();
      if (now != seen) {
        seen = now;
        continue;
      }
      const std::string waited = what();
      lock.unlock();  // fail() takes it
      const Status status(Code::timeout, timeoutMessage(rank, waited));
      fail(status);
      return status;
    }
    return failed() ? aborted() : Status();
  }
}

std::string InProcess::timeoutMessage(int rank, const std::string& what) const {
  std::string text =
      "rank " + std::to_string(rank) + " waited " + std::to_string(options_.timeoutMs) + " ms in vain: " + what;
  std::string busy;
  for (size_t r = 0; r < states_.size(); ++r) {
    const RankState& state = states_[r];
    if (static_cast<int>(r) == rank || state.waiting.load(std::memory_order_relaxed)) continue;
    const char* label = state.label.load(std::memory_order_relaxed);
    busy += (busy.empty() ? "" : ", ") + std::string("rank ") + std::to_string(r) +
            (label[0] == '\0' ? " (idle)" : std::string(" (at '") + label + "')");
  }
  return busy.empty() ? text + "; every rank waits" : text + "; not waiting: " + busy;
}

std::unique_ptr<Communicator> openInProcess(const CommunicatorOptions& options) {
  return std::make_unique<HostInProcess>(options);
}

}  // namespace meshwork
