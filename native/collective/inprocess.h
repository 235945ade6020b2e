// Ranks that are threads of this process: how they meet, send messages, notice that nothing moves any more, and fail
// together. How the data move is a subclass's: inprocess.cc for the host's memory, queued.cc for devices with queues.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <span>

#include "backend/queue.h"
#include "collective/collective.h"

namespace meshwork {

struct GroupState final : CommunicatorGroup {
  explicit GroupState(std::vector<int32_t> members) : ranks(std::move(members)) {
    calls.resize(ranks.size());
    arrivals.resize(ranks.size());
    ready.resize(ranks.size());
  }
  int indexOf(int rank) const {
    return static_cast<int>(std::lower_bound(ranks.begin(), ranks.end(), rank) - ranks.begin());
  }

  const std::vector<int32_t> ranks;
  // [i] is written by rank i before it arrives, read by all between two meetings.
  // Copies: a rank that fails returns while others still look.
  std::vector<std::vector<Collective>> calls;
  std::vector<Event> ready;  // of queues: likewise, when rank i's operands may be used
  Event done = nullptr;      // of queues: when the last rank's work is done
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> meetings{0};
  int arrived = 0;
  std::vector<uint64_t> arrivals;  // of each rank since reset
};

class InProcess : public Communicator {
 public:
  explicit InProcess(const CommunicatorOptions& options)
      : options_(options),
        states_(static_cast<size_t>(options.ranks)),
        mailboxes_(static_cast<size_t>(options.ranks)) {}

  CommunicatorGroup* group(const std::vector<int32_t>& ranks) override;
  int groups() const override;
  void post(int rank, const Message& message) override;
  Status receive(int rank, const Message& message, Pool& pool) override;
  Status waitReceived(int rank, int number, const char* label) override;
  void progress(int rank, const char* label) override;
  void fail(const Status& status) override;
  bool failed() const override { return failed_.load(std::memory_order_acquire); }
  Status failure() const override;
  Status reset() override;

 protected:
  // When a posted message's data may be read, and the copy of a message, which returns when it may be written again; a
  // rank's way of waiting for that.
  virtual Event posted(int /*rank*/) { return nullptr; }
  virtual Event deliver(int rank, const Message& message, const std::byte* data, Event ready, Pool& pool) = 0;
  virtual void delivered(int /*rank*/, Event /*done*/) {}

  // Returns when all ranks of the group have called. The last one calls `last` first, where given, while the others
  // wait; its failure is everybody's.
  Status meet(GroupState& group, int rank, int me, const Collective& call,
              const std::function<Status()>& last = nullptr);

  // Calls body(calls) for every tensor of the exchange, with the ranks' calls for it, which were found to fit rank
  // `me`'s.
  static Status forEachTensor(const GroupState& group, int me,
                              const std::function<void(std::span<const Collective>)>& body);

  const CommunicatorOptions options_;

 private:
  // What a rank does: shown when nothing moves any more.
  struct alignas(64) RankState {
    std::atomic<uint64_t> steps{0};  // grows with everything the rank does
    std::atomic<const char*> label{""};
    std::atomic<bool> waiting{false};
    // The rank's own: how long it polls before it sleeps, and how often that was in vain since it last was not.
    std::chrono::nanoseconds spin{0};
    uint32_t vainPolls = 0;
  };
  struct Posted {
    const std::byte* data = nullptr;
    int64_t bytes = 0;
    int number = 0;
    Event ready = nullptr;
  };
  struct Sent {
    bool received = false;
    Event done = nullptr;
  };
  // Of one rank: messages sent to it, and how far its own sends have got.
  struct Mailbox {
    std::mutex mutex;
    std::condition_variable wake;
    std::atomic<uint64_t> changes{0};                              // grows with every change of what follows
    std::map<std::pair<int, int32_t>, std::deque<Posted>> posted;  // by sender and tag
    std::vector<Sent> sent;                                        // its own, by number
  };

  using Question = std::function<bool()>;
  using Explanation = std::function<std::string()>;
  Status wait(std::unique_lock<std::mutex>& lock, std::condition_variable& wake, const std::atomic<uint64_t>& changes,
              int rank, const char* label, const Question& ready, const Explanation& what);
  void poll(std::unique_lock<std::mutex>& lock, const std::atomic<uint64_t>& changes, const Question& ready,
            std::chrono::nanoseconds most);
  Status sleep(std::unique_lock<std::mutex>& lock, std::condition_variable& wake, int rank, const Question& ready,
               const Explanation& what);
  std::string timeoutMessage(int rank, const std::string& what) const;
  uint64_t steps() const;

  mutable std::mutex groupsMutex_;
  std::map<std::vector<int32_t>, std::unique_ptr<GroupState>> groups_;
  std::vector<RankState> states_;
  std::vector<Mailbox> mailboxes_;
  mutable std::mutex failureMutex_;
  Status failure_;
  std::atomic<bool> failed_{false};
};

}  // namespace meshwork
