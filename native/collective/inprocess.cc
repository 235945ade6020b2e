// Collectives among threads of this process: ranks publish their pointers, meet, each does a share, and meet again.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>

#include "collective/collective.h"
#include "collective/move.h"
#include "runtime/pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace meshwork {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSpins = 1000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// What a rank does: shown when nothing moves any more.
struct alignas(64) RankState {
  std::atomic<uint64_t> steps{0};  // grows with everything the rank does
  std::atomic<const char*> label{""};
  std::atomic<bool> waiting{false};
};

struct GroupState final : CommunicatorGroup {
  explicit GroupState(std::vector<int32_t> members) : ranks(std::move(members)) {
    calls.resize(ranks.size());
    arrivals.resize(ranks.size());
  }
  int indexOf(int rank) const {
    return static_cast<int>(std::lower_bound(ranks.begin(), ranks.end(), rank) - ranks.begin());
  }

  const std::vector<int32_t> ranks;
  // [i] is written by rank i before it arrives, read by all between the two meetings.
  std::vector<std::span<const Collective>> calls;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> meetings{0};
  int arrived = 0;
  std::vector<uint64_t> arrivals;  // of each rank since reset
};

struct Posted {
  const std::byte* data = nullptr;
  int64_t bytes = 0;
  int number = 0;
  const char* label = "";
};

// Of one rank: messages sent to it, and how far its own sends have got.
struct Mailbox {
  std::mutex mutex;
  std::condition_variable wake;
  std::map<std::pair<int, int32_t>, std::deque<Posted>> posted;  // by sender and tag
  std::vector<char> received;                                    // of its own sends, by number
};

class InProcess final : public Communicator {
 public:
  explicit InProcess(const CommunicatorOptions& options)
      : options_(options),
        states_(static_cast<size_t>(options.ranks)),
        mailboxes_(static_cast<size_t>(options.ranks)) {}

  CommunicatorGroup* group(const std::vector<int32_t>& ranks) override {
    const std::lock_guard lock(groupsMutex_);
    std::unique_ptr<GroupState>& group = groups_[ranks];
    if (group == nullptr) group = std::make_unique<GroupState>(ranks);
    return group.get();
  }

  Status run(int rank, CommunicatorGroup& members, std::span<const Collective> calls, Pool& pool) override {
    auto& group = static_cast<GroupState&>(members);
    const int me = group.indexOf(rank);
    group.calls[static_cast<size_t>(me)] = calls;
    Status status = meet(group, rank, me, calls[0]);
    if (!status.ok()) return status;
    status = exchange(group, me, pool);
    if (!status.ok()) {
      fail(status);
      return status;
    }
    return meet(group, rank, me, calls[0]);
  }

  void post(int rank, const Message& message) override {
    Mailbox& own = mailboxes_[static_cast<size_t>(rank)];
    int number = 0;
    {
      const std::lock_guard lock(own.mutex);
      number = static_cast<int>(own.received.size());
      own.received.push_back(0);
    }
    Mailbox& peer = mailboxes_[static_cast<size_t>(message.peer)];
    {
      const std::lock_guard lock(peer.mutex);
      peer.posted[{rank, message.tag}].push_back(Posted{message.data, message.bytes, number, message.label});
    }
    peer.wake.notify_all();
  }

  Status receive(int rank, const Message& message, Pool& pool) override {
    Mailbox& own = mailboxes_[static_cast<size_t>(rank)];
    Posted posted;
    const auto arrived = [&] {
      const auto queue = own.posted.find({message.peer, message.tag});
      return queue != own.posted.end() && !queue->second.empty();
    };
    {
      std::unique_lock lock(own.mutex);
      Status status = wait(lock, own.wake, rank, message.label, arrived, [&] {
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
    if (options_.moveData) copyBytes(message.data, posted.data, posted.bytes, pool);
    Mailbox& peer = mailboxes_[static_cast<size_t>(message.peer)];
    {
      const std::lock_guard lock(peer.mutex);
      peer.received[static_cast<size_t>(posted.number)] = 1;
    }
    peer.wake.notify_all();
    return Status();
  }

  Status waitReceived(int rank, int number, const char* label) override {
    Mailbox& own = mailboxes_[static_cast<size_t>(rank)];
    std::unique_lock lock(own.mutex);
    return wait(
        lock, own.wake, rank, label, [&] { return own.received[static_cast<size_t>(number)] != 0; },
        [&] { return "send number " + std::to_string(number) + " to be received"; });
  }

  void progress(int rank, const char* label) override {
    RankState& state = states_[static_cast<size_t>(rank)];
    state.label.store(label, std::memory_order_relaxed);
    state.steps.fetch_add(1, std::memory_order_relaxed);
  }

  void fail(const Status& status) override {
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

  bool failed() const override { return failed_.load(std::memory_order_acquire); }

  Status failure() const override {
    const std::lock_guard lock(failureMutex_);
    return failure_;
  }

  Status reset() override {
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
      mailbox.received.clear();
      states_[rank].label.store("", std::memory_order_relaxed);
    }
    const std::lock_guard lock(failureMutex_);
    if (failed_.load(std::memory_order_relaxed)) status = Status();  // a failed run leaves messages behind
    failure_ = Status();
    failed_.store(false, std::memory_order_release);
    return status;
  }

 private:
  // This rank's share, tensor by tensor.
  Status exchange(const GroupState& group, int me, Pool& pool) const {
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
      if (options_.moveData) moveShare(calls, me, pool);
    }
    return Status();
  }

  // Returns when all ranks of the group have called.
  Status meet(GroupState& group, int rank, int me, const Collective& call) {
    progress(rank, call.label);
    uint64_t meeting = 0;
    {
      std::unique_lock lock(group.mutex);
      if (failed()) return aborted();
      meeting = group.meetings.load(std::memory_order_relaxed);
      ++group.arrivals[static_cast<size_t>(me)];
      if (++group.arrived == static_cast<int>(group.ranks.size())) {
        group.arrived = 0;
        group.meetings.store(meeting + 1, std::memory_order_release);
        lock.unlock();
        group.wake.notify_all();
        return Status();
      }
    }
    const auto met = [&] { return group.meetings.load(std::memory_order_acquire) != meeting; };
    for (int i = 0; options_.spin && i < kSpins; ++i, relax()) {
      if (met()) return Status();
    }
    std::unique_lock lock(group.mutex);
    return wait(lock, group.wake, rank, call.label, met, [&] { return describeMeeting(group, me, call); });
  }

  static std::string describeMeeting(const GroupState& group, int me, const Collective& call) {
    std::string missing;
    for (size_t r = 0; r < group.ranks.size(); ++r) {
      if (group.arrivals[r] >= group.arrivals[static_cast<size_t>(me)]) continue;
      missing += (missing.empty() ? "" : ", ") + std::to_string(group.ranks[r]);
    }
    std::string members;
    for (const int32_t r : group.ranks) members += (members.empty() ? "" : ", ") + std::to_string(r);
    return describe(call) + " over ranks " + members + "; not arrived: " + missing;
  }

  static Status aborted() { return Status(Code::aborted, "the run was aborted"); }

  uint64_t steps() const {
    uint64_t sum = 0;
    for (const RankState& state : states_) sum += state.steps.load(std::memory_order_relaxed);
    return sum;
  }

  // Sleeps until `ready`, a failure, or no rank having made progress for the timeout.
  template <class Ready, class What>
  Status wait(std::unique_lock<std::mutex>& lock, std::condition_variable& wake, int rank, const char* label,
              const Ready& ready, const What& what) {
    if (!failed() && ready()) return Status();
    RankState& state = states_[static_cast<size_t>(rank)];
    state.label.store(label, std::memory_order_relaxed);
    state.waiting.store(true, std::memory_order_relaxed);
    const Status status = sleep(lock, wake, rank, ready, what);
    state.waiting.store(false, std::memory_order_relaxed);
    state.steps.fetch_add(1, std::memory_order_relaxed);
    return status;
  }

  template <class Ready, class What>
  Status sleep(std::unique_lock<std::mutex>& lock, std::condition_variable& wake, int rank, const Ready& ready,
               const What& what) {
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

  std::string timeoutMessage(int rank, const std::string& what) const {
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

  const CommunicatorOptions options_;
  std::mutex groupsMutex_;
  std::map<std::vector<int32_t>, std::unique_ptr<GroupState>> groups_;
  std::vector<RankState> states_;
  std::vector<Mailbox> mailboxes_;
  mutable std::mutex failureMutex_;
  Status failure_;
  std::atomic<bool> failed_{false};
};

}  // namespace

std::unique_ptr<Communicator> openInProcess(const CommunicatorOptions& options) {
  return std::make_unique<InProcess>(options);
}

}  // namespace meshwork
