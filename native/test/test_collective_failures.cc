// In-process collectives that fail: disagreement, deadlines, aborts; and messages.
#include <atomic>
#include <chrono>

#include "test/collective_test.h"

namespace meshwork {
namespace {

using namespace test;

// One rank's call differs: both are named, nobody hangs, and the communicator works again after a reset.
void disagree(const std::function<void(Collective&)>& change) {
  auto communicator = open(3);
  CommunicatorGroup* group = communicator->group(upTo(3));
  const View view = viewOf(DType::f32, {6}), other = viewOf(DType::f32, {5});
  const std::vector<int32_t> counts = {2, 2, 2};
  float x[3][6] = {}, y[3][6] = {};
  const auto statuses = onRanks(3, [&](int r, Pool& pool) {
    Collective c = call(Op::all_reduce, x[r], y[r], view, view);
    c.counts = counts.data();
    if (r == 1) {
      c.x = c.y = &other;
      change(c);
    }
    return communicator->run(r, *group, {&c, 1}, pool);
  });
  for (const Status& status : statuses) CHECK(!status.ok());
  CHECK(communicator->failure().code() == Code::invalidProgram);
  CHECK(communicator->failure().message().find("disagree") != std::string::npos);
  CHECK(communicator->reset().ok());
  allOk(onRanks(3, [&](int r, Pool& pool) {
    const Collective c = call(Op::all_reduce, x[r], y[r], view, view);
    return communicator->run(r, *group, {&c, 1}, pool);
  }));
}

TEST(collective_disagreement) {
  const View wide = viewOf(DType::f64, {6}), same = viewOf(DType::f32, {6});
  disagree([](Collective&) {});
  disagree([&](Collective& c) { c.op = Op::broadcast; });
  disagree([&](Collective& c) { c.x = c.y = &wide; });
  disagree([&](Collective& c) {
    c.x = c.y = &same;
    c.reduction = Reduction::max;
  });
}

TEST(collective_bucket_of_another_size) {
  auto communicator = open(2);
  CommunicatorGroup* group = communicator->group(upTo(2));
  const View view = viewOf(DType::f32, {2});
  float x[2][2] = {}, y[2][2] = {};
  const auto statuses = onRanks(2, [&](int r, Pool& pool) {
    const std::vector<Collective> calls(static_cast<size_t>(1 + r), call(Op::all_reduce, x[r], y[r], view, view));
    return communicator->run(r, *group, calls, pool);
  });
  for (const Status& status : statuses) CHECK(!status.ok());
  CHECK(communicator->failure().message().find("tensors") != std::string::npos);
}

TEST(collective_timeout_names_the_missing) {
  auto communicator = open(3, 150);
  CommunicatorGroup* group = communicator->group(upTo(3));
  const View view = viewOf(DType::f32, {2});
  float x[3][2] = {};
  const auto statuses = onRanks(3, [&](int r, Pool& pool) {
    if (r == 2) {
      communicator->progress(r, "h.3.mlp");
      return Status();
    }
    const Collective c = call(Op::all_reduce, x[r], x[r], view, view);
    return communicator->run(r, *group, {&c, 1}, pool);
  });
  CHECK(!statuses[0].ok() && !statuses[1].ok());
  CHECK(communicator->failure().code() == Code::timeout);
  const std::string message = communicator->failure().message();
  CHECK(message.find("not arrived: 2") != std::string::npos);
  CHECK(message.find("h.3.mlp") != std::string::npos);
  CHECK(message.find("'test'") != std::string::npos);
}

TEST(collective_progress_extends_the_deadline) {
  auto communicator = open(2, 200);
  CommunicatorGroup* group = communicator->group(upTo(2));
  const View view = viewOf(DType::f32, {2});
  float x[2][2] = {};
  allOk(onRanks(2, [&](int r, Pool& pool) {
    for (int i = 0; r == 1 && i < 20; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      communicator->progress(r, "slow");
    }
    const Collective c = call(Op::all_reduce, x[r], x[r], view, view);
    return communicator->run(r, *group, {&c, 1}, pool);
  }));
}

TEST(collective_abort_wakes_everybody) {
  auto communicator = open(3);
  CommunicatorGroup* group = communicator->group(upTo(3));
  const View view = viewOf(DType::f32, {2});
  float x[3][2] = {};
  const auto statuses = onRanks(3, [&](int r, Pool& pool) {
    const Collective c = call(Op::all_reduce, x[r], x[r], view, view);
    if (r == 0) return communicator->run(r, *group, {&c, 1}, pool);
    if (r == 1) return communicator->receive(r, Message{"wait", 0, 5, nullptr, 0}, pool);
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    communicator->fail(Status(Code::aborted, "stop"));
    return Status(Code::aborted, "");
  });
  for (const Status& status : statuses) CHECK(status.code() == Code::aborted);
  CHECK_EQ(communicator->failure().message(), std::string("stop"));
  CHECK(communicator->reset().ok());
  CHECK(!communicator->failed());
}

Message message(int peer, int32_t tag, std::vector<int32_t>& data) {
  return Message{"message", peer, tag, reinterpret_cast<std::byte*>(data.data()),
                 static_cast<int64_t>(data.size()) * 4};
}

TEST(messages_match_by_tag_and_order) {
  auto communicator = open(2);
  allOk(onRanks(2, [&](int r, Pool& pool) {
    std::vector<int32_t> a = {10 * r, 1}, b = {10 * r, 2}, c = {10 * r, 3, 3}, in(2), wide(3);
    communicator->post(r, message(1 - r, 7, a));
    communicator->post(r, message(1 - r, 7, b));
    communicator->post(r, message(1 - r, 8, c));
    Status status = communicator->receive(r, message(1 - r, 8, wide), pool);
    if (wide != std::vector<int32_t>{10 * (1 - r), 3, 3}) status = Status(Code::internal, "tag 8");
    for (int i = 1; status.ok() && i <= 2; ++i) {
      status = communicator->receive(r, message(1 - r, 7, in), pool);
      if (in != std::vector<int32_t>{10 * (1 - r), i}) status = Status(Code::internal, "tag 7");
    }
    for (int i = 0; status.ok() && i < 3; ++i) status = communicator->waitReceived(r, i, "wait");
    return status;
  }));
  CHECK(communicator->reset().ok());
}

TEST(messages_of_other_sizes_fail) {
  auto communicator = open(2);
  std::vector<int32_t> two(2), three(3);
  const auto statuses = onRanks(2, [&](int r, Pool& pool) {
    if (r == 1) return communicator->receive(r, message(0, 1, three), pool);
    communicator->post(r, message(1, 1, two));
    return communicator->waitReceived(r, 0, "wait");
  });
  CHECK(statuses[1].code() == Code::invalidProgram);
  CHECK(!statuses[0].ok());
}

TEST(messages_left_over_are_reported) {
  auto communicator = open(2);
  std::vector<int32_t> data(2);
  communicator->post(0, message(1, 1, data));
  const Status status = communicator->reset();
  CHECK(status.code() == Code::invalidProgram);
  CHECK(status.message().find("never received") != std::string::npos);
  CHECK(communicator->reset().ok());
}

}  // namespace
}  // namespace meshwork
