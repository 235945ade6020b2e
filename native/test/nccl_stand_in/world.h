// What the ranks of one stand-in communicator share: the calls they made, and the data they exchange.
#pragma once
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace meshwork::stand_in {

enum class Kind { allReduce, allGather, reduceScatter, reduce, broadcast };

// What must be the same on every rank, for the collective with one number.
struct Signature {
  Kind kind;
  size_t count;
  int type, op, root;
  bool operator==(const Signature&) const = default;
};
std::string describe(const Signature& signature);
size_t typeSize(int type);

struct Part {
  const void* send = nullptr;
  void* receive = nullptr;
  bool here = false;
};

struct Meeting {
  Signature signature;
  int first = 0;            // the rank that came first
  std::vector<Part> parts;  // of each rank
  int arrived = 0;
  bool done = false;
};

struct Message {
  const void* data = nullptr;
  size_t count = 0;
  int type = 0;
  bool taken = false;
};

// One communicator over all its ranks.
class World {
 public:
  explicit World(int ranks) : ranks_(ranks), aborted_(static_cast<size_t>(ranks)) {}

  int ranks() const { return ranks_; }
  void join();
  bool complete();

  // Checked when it is called on the host: the rank's collective `number` against what other ranks called there.
  void announce(int rank, size_t number, const Signature& signature);
  // On the rank's stream: waits for all ranks, as a kernel of NCCL does; the last one moves the data.
  void meet(int rank, size_t number, const Part& part);

  // Messages between two ranks match in their order.
  Message* post(int from, int to, const Message& message);
  void take(int from, int to, const Message& into);
  void awaitTaken(int rank, Message* message);

  void fail(const std::string& why);
  void abort(int rank);
  bool failed();
  std::string failure();

 private:
  bool over(int rank) const { return !failure_.empty() || aborted_[static_cast<size_t>(rank)]; }
  void move(Meeting& meeting);

  const int ranks_;
  std::mutex mutex_;
  std::condition_variable wake_;
  int joined_ = 0;
  std::vector<char> aborted_;
  std::deque<Meeting> meetings_;                                 // by number
  std::map<std::pair<int, int>, std::deque<Message>> messages_;  // by sender and receiver
  std::map<std::pair<int, int>, size_t> taken_;                  // how many were received
  std::string failure_;
};

}  // namespace meshwork::stand_in
