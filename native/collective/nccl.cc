// NCCL communicators of a process's ranks, a thread each: one a group, made on first use, polled, and aborted together.
#include "collective/nccl.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "backend/cuda/abi/nccl.h"
#include "collective/blocks.h"
#include "collective/move.h"
#include "collective/queued.h"

namespace meshwork {
namespace {

using Clock = std::chrono::steady_clock;
using cuda::abi::Nccl;
using cuda::abi::NcclComm;

constexpr auto kNap = std::chrono::microseconds(200);
constexpr auto kAbortGrace = std::chrono::seconds(10);

// A rank's communicator in a group. The mutex is held around every call that uses it.
struct Member {
  std::timed_mutex mutex;
  NcclComm comm = nullptr;
};

struct NcclGroup final : CommunicatorGroup {
  NcclGroup(std::vector<int32_t> members) : ranks(std::move(members)), members(ranks.size()) {}
  int indexOf(int rank) const {
    const auto found = std::lower_bound(ranks.begin(), ranks.end(), rank);
    return found == ranks.end() || *found != rank ? -1 : static_cast<int>(found - ranks.begin());
  }
  const std::vector<int32_t> ranks;
  std::vector<Member> members;
  cuda::abi::NcclUniqueId id;
  Status problem;  // of making the id
};

int ncclType(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return cuda::abi::kNcclFloat32;
    case DType::f64:
      return cuda::abi::kNcclFloat64;
    case DType::bf16:
      return cuda::abi::kNcclBfloat16;
    case DType::f16:
      return cuda::abi::kNcclFloat16;
    case DType::i32:
      return cuda::abi::kNcclInt32;
    case DType::boolean:
      return cuda::abi::kNcclUint8;
  }
  return cuda::abi::kNcclUint8;
}

int ncclOp(Reduction reduction) {
  if (reduction == Reduction::max) return cuda::abi::kNcclMax;
  return reduction == Reduction::min ? cuda::abi::kNcclMin : cuda::abi::kNcclSum;
}

bool equalCounts(const int32_t* counts, size_t n) {
  return std::all_of(counts, counts + n, [&](int32_t count) { return count == counts[0]; });
}

bool started(int result) { return result == cuda::abi::kNcclSuccess || result == cuda::abi::kNcclInProgress; }

// One tensor's exchange by one rank, as NCCL calls on its communication stream. Functions return NCCL's first error.
class Sequence {
 public:
  Sequence(const Nccl& nccl, DeviceQueue& queue, const Collective& call, int me, int ranks, NcclComm comm)
      : nccl_(nccl),
        queue_(queue),
        call_(call),
        me_(me),
        ranks_(static_cast<size_t>(ranks)),
        comm_(comm),
        stream_(queue.native(Stream::communication)),
        type_(ncclType(call.x->dtype)),
        size_(dtypeSize(call.x->dtype)) {}

  // Packs what is not contiguous. Then, inside of a group, exchange(); then, behind it, after().
  void before() {
    if (call_.op == Op::expert_exchange) return packRows();
    const View &x = *call_.x, &y = *call_.y;
    sent_ = call_.in;
    received_ = call_.out;
    std::byte* scratch = call_.scratch;
    if (call_.op == Op::reduce_scatter || call_.op == Op::all_to_all) {
      leaving_ = partsOf(x, call_.dim, call_.counts);
      if (dimProduct(x, 0, call_.dim) != 1) {
        pack(x, scratch);
        sent_ = scratch;
        scratch += rounded(x.count() * size_);
      }
    }
    if (call_.op == Op::all_gather || call_.op == Op::all_to_all) {
      arriving_ = partsOf(y, joinDim(), joinCounts());
      if (dimProduct(y, 0, joinDim()) != 1) received_ = scratch;
    }
  }

  int exchange() {
    const int op = ncclOp(call_.reduction);
    switch (call_.op) {
      case Op::all_reduce:
        return nccl_.allReduce(call_.in, call_.out, count(call_.x), type_, op, comm_, stream_);
      case Op::all_gather:
        if (!equalCounts(call_.counts, ranks_)) return gatherUneven();
        return nccl_.allGather(call_.in, received_, static_cast<size_t>(arriving_.sizes[0]), type_, comm_, stream_);
      case Op::reduce_scatter:
        if (!equalCounts(call_.counts, ranks_)) return scatterUneven(op);
        return nccl_.reduceScatter(sent_, call_.out, static_cast<size_t>(leaving_.sizes[0]), type_, op, comm_, stream_);
      case Op::all_to_all:
        return allToAll();
      case Op::expert_exchange:
        return exchangeRows();
      default:
        return nccl_.broadcast(call_.in, call_.out, count(call_.y), type_, call_.root, comm_, stream_);
    }
  }

  void after() {
    if (call_.op == Op::expert_exchange) return takeRows();
    if (received_ != call_.out) unpack(*call_.y);
  }

  static int64_t rounded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

  // What an exchange with experts needs: the plan, and a slot for each rank that rows go to and come from.
  static int64_t exchangeBytes(const Collective& call) {
    return rounded(RowExchange::planBytes(call.ranks, call.experts)) + 2 * call.ranks * slotBytes(call);
  }

 private:
  static size_t count(const View* view) { return static_cast<size_t>(view->count()); }

  // Of each rank: elements of its part along a dim, and bytes before it where parts lie one behind the other.
  struct Parts {
    std::vector<int64_t> sizes, begins;
  };
  Parts partsOf(const View& whole, int dim, const int32_t* counts) const {
    const int64_t unit = dimProduct(whole, 0, dim) * dimProduct(whole, dim + 1, whole.rank);
    Parts parts;
    int64_t begin = 0;
    for (size_t r = 0; r < ranks_; ++r) {
      parts.sizes.push_back(counts[r] * unit);
      parts.begins.push_back(begin * size_);
      begin += parts.sizes.back();
    }
    return parts;
  }

  static int64_t slotBytes(const Collective& call) {
    return rounded(call.most * call.x->dims[1] * dtypeSize(call.x->dtype));
  }

  // How many rows go where is known to the devices alone, so as many as could ever be travel between any two ranks: the
  // host need not wait for counts. A rank's own rows stay.
  void packRows() {
    exchange_ = rowExchange(call_, me_, call_.scratch);
    leavingSlots_.assign(ranks_, nullptr);
    arrivingSlots_.assign(ranks_, nullptr);
    std::byte* at = call_.scratch + rounded(RowExchange::planBytes(call_.ranks, call_.experts));
    for (size_t r = 0; r < ranks_; ++r, at += 2 * slotBytes(call_)) {
      if (static_cast<int>(r) == me_) continue;
      leavingSlots_[r] = at;
      arrivingSlots_[r] = at + slotBytes(call_);
    }
    queue_.planRows(Stream::communication, exchange_);
    const Rows own{const_cast<std::byte*>(call_.in), call_.x->dims[0]};
    queue_.packRows(Stream::communication, exchange_, own, leavingSlots_, call_.most);
  }

  int exchangeRows() {
    const auto elements = static_cast<size_t>(call_.most * call_.x->dims[1]);
    int result = cuda::abi::kNcclSuccess;
    for (size_t r = 0; r < ranks_ && elements > 0 && started(result); ++r) {
      if (leavingSlots_[r] == nullptr) continue;
      const auto peer = static_cast<int>(r);
      result = nccl_.send(leavingSlots_[r], elements, type_, peer, comm_, stream_);
      if (started(result)) result = nccl_.recv(arrivingSlots_[r], elements, type_, peer, comm_, stream_);
    }
    return result;
  }

  void takeRows() {
    std::vector<RowSource> sources;
    for (const std::byte* slot : arrivingSlots_) {
      sources.push_back(slot != nullptr ? RowSource{slot, call_.most, true}
                                        : RowSource{call_.in, call_.x->dims[0], false});
    }
    queue_.takeRows(Stream::communication, exchange_, sources, Rows{call_.out, call_.y->dims[0]});
  }

  // The dim along which what arrives is joined, and the ranks' sizes along it.
  int joinDim() const { return call_.op == Op::all_to_all ? call_.joinDim : call_.dim; }
  const int32_t* joinCounts() const { return call_.op == Op::all_to_all ? call_.joinCounts : call_.counts; }

  void pack(const View& x, std::byte* parts) {
    blocks_.clear();
    int64_t begin = 0;
    for (size_t r = 0; r < ranks_; begin += call_.counts[r++]) {
      blocks_.push_back(packPart(x, call_.in, call_.dim, begin, call_.counts[r], parts + leaving_.begins[r]));
    }
    copyBlocks();
  }
  void unpack(const View& y) {
    blocks_.clear();
    int64_t begin = 0;
    for (size_t r = 0; r < ranks_; begin += joinCounts()[r++]) {
      const std::byte* part = received_ + arriving_.begins[r];
      blocks_.push_back(unpackPart(y, call_.out, joinDim(), begin, joinCounts()[r], part));
    }
    copyBlocks();
  }
  void copyBlocks() {
    std::erase_if(blocks_, [](const BlockCopy& block) { return block.empty() || block.to == block.from; });
    if (!blocks_.empty()) queue_.copy(Stream::communication, blocks_);
  }

  int send(size_t to, const std::byte* data, int64_t elements) {
    if (elements == 0) return cuda::abi::kNcclSuccess;
    return nccl_.send(data, static_cast<size_t>(elements), type_, static_cast<int>(to), comm_, stream_);
  }
  int receive(size_t from) {
    const int64_t elements = arriving_.sizes[from];
    if (elements == 0) return cuda::abi::kNcclSuccess;
    return nccl_.recv(received_ + arriving_.begins[from], static_cast<size_t>(elements), type_, static_cast<int>(from),
                      comm_, stream_);
  }

  int gatherUneven() {
    int result = cuda::abi::kNcclSuccess;
    for (size_t r = 0; r < ranks_ && started(result); ++r) {
      result = send(r, call_.in, arriving_.sizes[static_cast<size_t>(me_)]);
      if (started(result)) result = receive(r);
    }
    return result;
  }

  int scatterUneven(int op) {
    int result = cuda::abi::kNcclSuccess;
    for (size_t r = 0; r < ranks_ && started(result); ++r) {
      if (leaving_.sizes[r] == 0) continue;
      result = nccl_.reduce(sent_ + leaving_.begins[r], call_.out, static_cast<size_t>(leaving_.sizes[r]), type_, op,
                            static_cast<int>(r), comm_, stream_);
    }
    return result;
  }

  int allToAll() {
    int result = cuda::abi::kNcclSuccess;
    for (size_t r = 0; r < ranks_ && started(result); ++r) {
      result = send(r, sent_ + leaving_.begins[r], leaving_.sizes[r]);
      if (started(result)) result = receive(r);
    }
    return result;
  }

  const Nccl& nccl_;
  DeviceQueue& queue_;
  const Collective& call_;
  const int me_;
  const size_t ranks_;
  const NcclComm comm_;
  void* const stream_;
  const int type_;
  const int64_t size_;
  const std::byte* sent_ = nullptr;  // the parts that leave, one behind the other
  std::byte* received_ = nullptr;    // the parts that arrive, likewise
  Parts leaving_, arriving_;
  std::vector<BlockCopy> blocks_;
  RowExchange exchange_;
  std::vector<std::byte*> leavingSlots_, arrivingSlots_;  // by rank; null for this one
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const CommunicatorOptions& options, std::vector<DeviceQueue*> queues, const Nccl& nccl)
      : options_(options),
        queues_(std::move(queues)),
        nccl_(nccl),
        messages_(openQueued(options, queues_)),
        states_(queues_.size()) {}

  ~NcclCommunicator() override {
    if (closing_.joinable()) closing_.join();
    closeAll(failed() ? nccl_.commAbort : nccl_.commDestroy);
  }

  CommunicatorGroup* group(const std::vector<int32_t>& ranks) override {
    const std::lock_guard lock(groupsMutex_);
    const auto found = byRanks_.find(ranks);
    if (found != byRanks_.end()) return found->second;
    auto made = std::make_unique<NcclGroup>(ranks);
    newId(*made);
    NcclGroup* group = made.get();
    byRanks_.emplace(ranks, group);
    groups_.push_back(std::move(made));
    return group;
  }
  int groups() const override {
    const std::lock_guard lock(groupsMutex_);
    return static_cast<int>(groups_.size());
  }

  // Every rank makes its communicators in one order: that in which the groups were asked for.
  Status begin(int rank, int groups) override {
    stateOf(rank).label.store("");  // the last run's program may be gone
    for (int i = 0; i < groups; ++i) {
      NcclGroup* group = nullptr;
      {
        const std::lock_guard lock(groupsMutex_);
        group = groups_[static_cast<size_t>(i)].get();
      }
      const int me = group->indexOf(rank);
      if (me < 0) continue;
      Status status = join(rank, *group, me);
      if (!status.ok()) return status;
    }
    return Status();
  }

  // The tensors of a bucket are exchanged as one group of NCCL's.
  Status run(int rank, CommunicatorGroup& members, std::span<const Collective> calls, Pool&) override {
    auto& group = static_cast<NcclGroup&>(members);
    const int me = group.indexOf(rank);
    stateOf(rank).label.store(calls[0].label);
    stateOf(rank).op.store(calls[0].op);
    const auto what = [&] { return describe(calls[0]); };
    return use(rank, group.members[static_cast<size_t>(me)], what, [&](NcclComm comm) {
      std::vector<Sequence> sequences;
      for (const Collective& call : calls) {
        // With nothing to bring and no room a rank still takes part in what is alike for all.
        if (call.op != Op::expert_exchange && call.x->count() == 0 && call.y->count() == 0) continue;
        sequences.emplace_back(nccl_, queueOf(rank), call, me, static_cast<int>(group.ranks.size()), comm);
      }
      for (Sequence& sequence : sequences) sequence.before();
      int result = nccl_.groupStart();
      for (Sequence& sequence : sequences) {
        if (started(result)) result = sequence.exchange();
      }
      const int end = nccl_.groupEnd();
      if (started(result)) result = end;
      for (Sequence& sequence : sequences) {
        if (started(result)) sequence.after();
      }
      return result;
    });
  }

  int64_t scratchBytes(const Collective& call) const override {
    const int64_t x = Sequence::rounded(call.x->count() * dtypeSize(call.x->dtype));
    const int64_t y = Sequence::rounded(call.y->count() * dtypeSize(call.y->dtype));
    switch (call.op) {
      case Op::all_gather:
        return dimProduct(*call.y, 0, call.dim) == 1 ? 0 : y;
      case Op::reduce_scatter:
        return dimProduct(*call.x, 0, call.dim) == 1 ? 0 : x;
      case Op::all_to_all:
        return (dimProduct(*call.x, 0, call.dim) == 1 ? 0 : x) + (dimProduct(*call.y, 0, call.joinDim) == 1 ? 0 : y);
      case Op::expert_exchange:
        return Sequence::exchangeBytes(call);
      default:
        return 0;
    }
  }

  // Messages between stages are copied from GPU to GPU: NCCL's would hold the stream of a sender until they are
  // received, while schedules are proven for sends that wait for nothing.
  void post(int rank, const Message& message) override { messages_->post(rank, message); }
  Status receive(int rank, const Message& message, Pool& pool) override {
    return known(messages_->receive(rank, message, pool));
  }
  Status waitReceived(int rank, int number, const char* label) override {
    return known(messages_->waitReceived(rank, number, label));
  }

  Status poll(int rank) override {
    if (failed()) return Status();
    std::vector<NcclGroup*> all;
    {
      const std::lock_guard lock(groupsMutex_);
      for (const auto& group : groups_) all.push_back(group.get());
    }
    for (NcclGroup* group : all) {
      const int me = group->indexOf(rank);
      if (me < 0) continue;
      Member& member = group->members[static_cast<size_t>(me)];
      const std::lock_guard lock(member.mutex);
      if (member.comm == nullptr) continue;
      int result = 0;
      nccl_.commGetAsyncError(member.comm, &result);
      if (result != cuda::abi::kNcclSuccess && result != cuda::abi::kNcclInProgress) {
        const RankState& state = stateOf(rank);
        const std::string last = kOpInfo[static_cast<int>(state.op.load())].name;
        return failure(rank, member.comm, result, last + " '" + state.label.load() + "' or what came before");
      }
    }
    return Status();
  }

  void progress(int rank, const char* label) override { messages_->progress(rank, label); }

  void fail(const Status& status) override {
    {
      const std::lock_guard lock(failureMutex_);
      if (failed_.load()) return;
      failure_ = status;
      failed_.store(true);
    }
    messages_->fail(status);
    closing_ = std::thread([this] { closeAll(nccl_.commAbort); });
  }
  bool failed() const override { return failed_.load(); }
  Status failure() const override {
    const std::lock_guard lock(failureMutex_);
    return failure_;
  }

  Status reset() override {
    Status left = messages_->reset();
    if (!failed_.load()) return left;
    if (closing_.joinable()) closing_.join();
    const std::lock_guard lock(failureMutex_);
    if (failure_.code() != Code::aborted || !closed_) return Status();  // dead: it stays failed
    const std::lock_guard groupsLock(groupsMutex_);
    for (const auto& group : groups_) newId(*group);
    failure_ = Status();
    failed_.store(false);
    return Status();
  }

 private:
  struct RankState {
    std::atomic<const char*> label{""};  // of its last collective, and
    std::atomic<Op> op{Op::all_reduce};
  };

  static Status aborted() { return Status(Code::aborted, "the run was aborted"); }

  // What failed among messages ends collectives too, with the first cause.
  Status known(const Status& status) {
    if (!status.ok()) fail(messages_->failure());
    return status;
  }

  RankState& stateOf(int rank) { return states_[static_cast<size_t>(rank)]; }
  DeviceQueue& queueOf(int rank) const { return *queues_[static_cast<size_t>(rank)]; }

  void newId(NcclGroup& group) const {
    group.problem = Status();
    const int result = nccl_.getUniqueId(&group.id);
    if (result == cuda::abi::kNcclSuccess) return;
    group.problem = Status(Code::device, std::string("ncclGetUniqueId: ") + nccl_.getErrorString(result));
  }

  Status join(int rank, NcclGroup& group, int me) {
    Member& member = group.members[static_cast<size_t>(me)];
    if (!group.problem.ok()) return group.problem;
    const std::lock_guard lock(member.mutex);
    if (member.comm != nullptr) return Status();
    cuda::abi::NcclConfig config;
    config.blocking = 0;
    const int result =
        nccl_.commInitRankConfig(&member.comm, static_cast<int>(group.ranks.size()), group.id, me, &config);
    return settled(rank, member.comm, result,
                   [&] { return "making the communicator of " + std::to_string(group.ranks.size()) + " ranks"; });
  }

  // Calls `body` with the rank's communicator, unless that was aborted.
  template <class What, class Body>
  Status use(int rank, Member& member, const What& what, const Body& body) {
    const std::lock_guard lock(member.mutex);
    if (failed() || member.comm == nullptr) return aborted();
    return settled(rank, member.comm, body(member.comm), what);
  }

  // Waits while a call that does not block is being set up; that is no wait for the device.
  template <class What>
  Status settled(int rank, NcclComm comm, int result, const What& what) {
    const auto begin = Clock::now();
    while (result == cuda::abi::kNcclInProgress) {
      if (failed()) return aborted();
      if (nccl_.commGetAsyncError(comm, &result) != cuda::abi::kNcclSuccess) break;
      if (result != cuda::abi::kNcclInProgress) break;
      if (options_.timeoutMs > 0 && Clock::now() - begin > std::chrono::milliseconds(options_.timeoutMs)) {
        return Status(Code::timeout, "rank " + std::to_string(rank) + " waited " + std::to_string(options_.timeoutMs) +
                                         " ms in vain for NCCL: " + what());
      }
      std::this_thread::sleep_for(kNap);
    }
    return result == cuda::abi::kNcclSuccess ? Status() : failure(rank, comm, result, what());
  }

  Status failure(int rank, NcclComm comm, int result, const std::string& what) const {
    const char* last = comm == nullptr ? nullptr : nccl_.getLastError(comm);
    std::string text = "rank " + std::to_string(rank) + ", " + what + ": NCCL: " + nccl_.getErrorString(result);
    if (last != nullptr && last[0] != '\0') text += std::string(" (") + last + ")";
    return Status(Code::device, text);
  }

  // Aborts or destroys every communicator, each on a thread of its own, because they wait for one another and may hang;
  // gives up after a while. A device thread that is inside of a call is waited for first, as long.
  void closeAll(int (*close)(NcclComm)) {
    struct Progress {
      std::mutex mutex;
      std::condition_variable done;
      int left = 0;
    };
    const auto progress = std::make_shared<Progress>();
    const std::lock_guard lock(groupsMutex_);
    for (const auto& group : groups_) {
      for (Member& member : group->members) {
        const std::unique_lock held(member.mutex, kAbortGrace);
        NcclComm comm = std::exchange(member.comm, nullptr);
        if (comm == nullptr) continue;
        {
          const std::lock_guard count(progress->mutex);
          ++progress->left;
        }
        std::thread([progress, close, comm] {
          close(comm);
          const std::lock_guard count(progress->mutex);
          --progress->left;
          progress->done.notify_all();
        }).detach();
      }
    }
    std::unique_lock waiting(progress->mutex);
    closed_ = progress->done.wait_for(waiting, kAbortGrace, [&] { return progress->left == 0; });
  }

  const CommunicatorOptions options_;
  const std::vector<DeviceQueue*> queues_;
  const Nccl& nccl_;
  const std::unique_ptr<Communicator> messages_;
  mutable std::mutex groupsMutex_;
  std::map<std::vector<int32_t>, NcclGroup*> byRanks_;
  std::vector<std::unique_ptr<NcclGroup>> groups_;  // in the order in which they were asked for
  std::vector<RankState> states_;
  mutable std::mutex failureMutex_;
  Status failure_;
  std::atomic<bool> failed_{false};
  std::thread closing_;
  std::atomic<bool> closed_{false};
};

}  // namespace

Status openNccl(const CommunicatorOptions& options, std::vector<DeviceQueue*> queues,
                std::unique_ptr<Communicator>* communicator) {
  const Nccl* nccl = nullptr;
  Status status = cuda::abi::loadNccl(&nccl);
  if (status.ok()) *communicator = std::make_unique<NcclCommunicator>(options, std::move(queues), *nccl);
  return status;
}

}  // namespace meshwork
