// Meetings and messages of the stand-in, and its arithmetic.
#include "test/nccl_stand_in/world.h"

#include <cstdint>
#include <cstring>

#include "core/dtype.h"

namespace meshwork::stand_in {
namespace {

const char* kindName(Kind kind) {
  constexpr const char* names[] = {"ncclAllReduce", "ncclAllGather", "ncclReduceScatter", "ncclReduce",
                                   "ncclBroadcast"};
  return names[static_cast<int>(kind)];
}

const char* typeName(int type) {
  switch (type) {
    case 1:
      return "u8";
    case 2:
      return "i32";
    case 6:
      return "f16";
    case 7:
      return "f32";
    case 8:
      return "f64";
    case 9:
      return "bf16";
    default:
      return "unknown type";
  }
}

template <class T>
T combine(T a, T b, int op) {
  if (op == 2) return a > b || a != a ? a : b;
  if (op == 3) return a < b || a != a ? a : b;
  return a + b;
}

float value(bf16 x) { return toFloat(x); }
float value(f16 x) { return toFloat(x); }
template <class T>
T value(T x) {
  return x;
}
void assign(bf16& to, float x) { to = toBf16(x); }
void assign(f16& to, float x) { to = toF16(x); }
template <class T>
void assign(T& to, T x) {
  to = x;
}

// out[i] = the parts' elements at `from` + i, combined in rank order.
template <class T>
void reduceInto(std::vector<T>& out, const Meeting& meeting, size_t from, size_t count) {
  out.resize(count);
  for (size_t i = 0; i < count; ++i) {
    auto sum = value(static_cast<const T*>(meeting.parts[0].send)[from + i]);
    for (size_t r = 1; r < meeting.parts.size(); ++r) {
      sum = combine(sum, value(static_cast<const T*>(meeting.parts[r].send)[from + i]), meeting.signature.op);
    }
    assign(out[i], sum);
  }
}

template <class T>
void reduceAll(Meeting& meeting) {
  const Signature& signature = meeting.signature;
  std::vector<std::vector<T>> results(meeting.parts.size());  // before anything is written: calls may be in place
  for (size_t r = 0; r < meeting.parts.size(); ++r) {
    const size_t from = signature.kind == Kind::reduceScatter ? r * signature.count : 0;
    if (signature.kind == Kind::reduce && static_cast<int>(r) != signature.root) continue;
    reduceInto(results[r], meeting, from, signature.count);
  }
  for (size_t r = 0; r < meeting.parts.size(); ++r) {
    if (!results[r].empty()) std::memcpy(meeting.parts[r].receive, results[r].data(), results[r].size() * sizeof(T));
  }
}

}  // namespace

size_t typeSize(int type) { return type == 1 ? 1 : type == 6 || type == 9 ? 2 : type == 8 ? 8 : 4; }

std::string describe(const Signature& signature) {
  std::string text =
      std::string(kindName(signature.kind)) + " of " + std::to_string(signature.count) + " " + typeName(signature.type);
  if (signature.kind != Kind::allGather && signature.kind != Kind::broadcast) {
    text += ", op " + std::to_string(signature.op);
  }
  if (signature.root >= 0) text += ", root " + std::to_string(signature.root);
  return text;
}

void World::join() {
  const std::lock_guard lock(mutex_);
  ++joined_;
}
bool World::complete() {
  const std::lock_guard lock(mutex_);
  return joined_ >= ranks_;
}

void World::announce(int rank, size_t number, const Signature& signature) {
  std::unique_lock lock(mutex_);
  if (number == meetings_.size()) {
    meetings_.push_back(Meeting{signature, rank, std::vector<Part>(static_cast<size_t>(ranks_))});
    return;
  }
  const Meeting& meeting = meetings_[number];
  if (meeting.signature == signature) return;
  const std::string text = "call " + std::to_string(number) + " of rank " + std::to_string(rank) + " is " +
                           describe(signature) + ", of rank " + std::to_string(meeting.first) + " it is " +
                           describe(meeting.signature);
  lock.unlock();
  fail(text);
}

void World::meet(int rank, size_t number, const Part& part) {
  std::unique_lock lock(mutex_);
  if (over(rank)) return;
  Meeting& meeting = meetings_[number];
  meeting.parts[static_cast<size_t>(rank)] = part;
  if (++meeting.arrived == ranks_) {
    move(meeting);
    meeting.done = true;
    wake_.notify_all();
    return;
  }
  wake_.wait(lock, [&] { return meeting.done || over(rank); });
}

void World::move(Meeting& meeting) {
  const Signature& signature = meeting.signature;
  const size_t bytes = signature.count * typeSize(signature.type);
  if (bytes == 0) return;
  if (signature.kind == Kind::allGather) {
    for (const Part& to : meeting.parts) {
      for (size_t r = 0; r < meeting.parts.size(); ++r) {
        std::memmove(static_cast<char*>(to.receive) + r * bytes, meeting.parts[r].send, bytes);
      }
    }
  } else if (signature.kind == Kind::broadcast) {
    const Part& root = meeting.parts[static_cast<size_t>(signature.root)];
    for (const Part& to : meeting.parts) std::memmove(to.receive, root.send, bytes);
  } else if (signature.type == 7) {
    reduceAll<float>(meeting);
  } else if (signature.type == 8) {
    reduceAll<double>(meeting);
  } else if (signature.type == 9) {
    reduceAll<bf16>(meeting);
  } else if (signature.type == 6) {
    reduceAll<f16>(meeting);
  } else {
    reduceAll<int32_t>(meeting);
  }
}

Message* World::post(int from, int to, const Message& message) {
  Message* posted = nullptr;
  {
    const std::lock_guard lock(mutex_);
    std::deque<Message>& queue = messages_[{from, to}];  // grows only: what is posted keeps its place
    queue.push_back(message);
    posted = &queue.back();
  }
  wake_.notify_all();
  return posted;
}

void World::take(int from, int to, const Message& into) {
  std::unique_lock lock(mutex_);
  std::deque<Message>& queue = messages_[{from, to}];
  const size_t number = taken_[{from, to}]++;
  wake_.wait(lock, [&] { return queue.size() > number || over(to); });
  if (over(to)) return;
  Message& message = queue[number];
  if (message.count != into.count || message.type != into.type) {
    const std::string text = "message " + std::to_string(number) + " from rank " + std::to_string(from) + " to rank " +
                             std::to_string(to) + " is " + std::to_string(message.count) + " " +
                             typeName(message.type) + ", received as " + std::to_string(into.count) + " " +
                             typeName(into.type);
    lock.unlock();
    return fail(text);
  }
  std::memmove(const_cast<void*>(into.data), message.data, message.count * typeSize(message.type));
  message.taken = true;
  wake_.notify_all();
}

void World::awaitTaken(int rank, Message* message) {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [&] { return message->taken || over(rank); });
}

void World::fail(const std::string& why) {
  {
    const std::lock_guard lock(mutex_);
    if (failure_.empty()) failure_ = why;
  }
  wake_.notify_all();
}
void World::abort(int rank) {
  {
    const std::lock_guard lock(mutex_);
    aborted_[static_cast<size_t>(rank)] = 1;
  }
  wake_.notify_all();
}
bool World::failed() {
  const std::lock_guard lock(mutex_);
  return !failure_.empty();
}
std::string World::failure() {
  const std::lock_guard lock(mutex_);
  return failure_;
}

}  // namespace meshwork::stand_in
