// Queues a program's actions on a device's two streams, and watches the device until they are done.
#include "runtime/queue_executor.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>

namespace meshwork {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kSpinTime = std::chrono::microseconds(50);
constexpr auto kNap = std::chrono::microseconds(50);

bool graphsWanted() {
  const char* value = std::getenv("MESHWORK_CUDA_GRAPHS");
  return value == nullptr || std::strcmp(value, "0") != 0;
}

Status aborted() { return Status(Code::aborted, "the run was aborted"); }

}  // namespace

QueueExecutor::QueueExecutor(int device, Backend& backend, Communicator& communicator, Pool& pool, DeviceQueue& queue)
    : Executor(device, backend, communicator, pool), queue_(queue), recording_(graphsWanted()) {}

Status QueueExecutor::run(const DeviceRun& run) {
  start(run);
  marks_.clear();
  sends_.clear();
  spans_.clear();
  if (*run.state == nullptr) *run.state = std::make_unique<QueueState>();
  state_ = static_cast<QueueState*>(run.state->get());
  if (state_->bases != bases_) {  // other buffers or a larger arena: what was recorded holds old addresses
    state_->segments.clear();
    state_->bases = bases_;
  }
  int64_t feeds = 0, fetches = 0;
  for (const Action& action : run.program->actions) {
    if (action.kind == ActionKind::feed) feeds += action.bytes;
    if (action.kind == ActionKind::fetch) fetches += action.bytes;
  }
  Status status = queue_.begin(feeds, fetches);
  if (!status.ok()) {
    queue_.end();
    return Status(status.code(), "rank " + std::to_string(device_) + ", before its run: " + status.message());
  }
  prepare();
  status = communicator_.begin(device_, run.knownGroups);
  if (status.ok()) status = queueAll();
  if (!status.ok()) communicator_.fail(status);  // before draining: others may wait for this rank
  const Status drained = drain();
  if (status.ok()) status = drained;
  if (status.ok()) collectSpans();
  queue_.end();
  return status;
}

// Lets kernels make what they keep (compiled code, descriptors), before anything of the run is queued.
void QueueExecutor::prepare() {
  if (state_->prepared) return;
  state_->prepared = true;
  const Program& program = *run_->program;
  for (const Action& action : program.actions) {
    if (action.kind != ActionKind::run) continue;
    const Segment& segment = program.segments[static_cast<size_t>(action.index)];
    for (int i = segment.begin; i < segment.end; ++i) {
      const Instruction& next = program.instructions[static_cast<size_t>(i)];
      if (next.kernel == nullptr || next.kernel->prepare == nullptr) continue;
      Call call = shapeOf(next, action);
      call.device = queue_.device();
      next.kernel->prepare(call);
    }
  }
}

Status QueueExecutor::queueAll() {
  joins_.assign(run_->program->instructions.size(), nullptr);
  beginning_ = run_->profile == nullptr ? nullptr : queue_.record(Stream::compute, true);
  return runActions();
}

Status QueueExecutor::segment(const Action& action) {
  moveTo(action);
  QueueState::Key key{action.index, {}, action.table};
  std::copy(std::begin(action.slots), std::end(action.slots), std::get<1>(key).begin());
  auto found = state_->segments.find(key);
  if (found == state_->segments.end()) {
    const Segment& segment = run_->program->segments[static_cast<size_t>(action.index)];
    found = state_->segments.emplace(key, planSegment(*run_->program, segment, bases_)).first;
  }
  for (Step& step : found->second.steps) {
    if (communicator_.failed() || (step.keeps && !commit())) return aborted();
    Status status;
    switch (step.kind) {
      case Step::Kind::kernels:
        status = kernels(action, step);
        break;
      case Step::Kind::collective:
        status = collective(action, step.begin);
        break;
      case Step::Kind::join:
        queue_.wait(Stream::compute, joins_[static_cast<size_t>(step.begin)]);
        break;
    }
    if (!status.ok()) return status;
  }
  return Status();
}

Status QueueExecutor::kernels(const Action& action, Step& step) {
  const bool worthwhile = recording_ && run_->profile == nullptr && step.end - step.begin >= kShortestRecording;
  if (step.recording == nullptr && worthwhile && step.runs >= kWarmRuns) {
    queue_.beginRecording();
    runKernels(action, step);
    step.recording = queue_.endRecording();
  } else if (step.recording == nullptr || run_->profile != nullptr) {
    ++step.runs;
    runKernels(action, step);
    mark(queue_.record(Stream::compute), step.begin, step.end - 1, "");
    return checkQueue(step.begin, step.end - 1);
  }
  if (step.recording != nullptr) queue_.replay(*step.recording);
  mark(queue_.record(Stream::compute), step.begin, step.end - 1, "");
  return checkQueue(step.begin, step.end - 1);
}

void QueueExecutor::runKernels(const Action& action, const Step& step) {
  const Program& program = *run_->program;
  for (int i = step.begin; i < step.end && queue_.status().ok(); ++i) {
    const Instruction& next = program.instructions[static_cast<size_t>(i)];
    const char* label = program.labelOf(next);
    communicator_.progress(device_, label);
    Call call = callOf(next, action);
    call.device = queue_.device();
    const Event begin = beginSpan(Stream::compute);
    next.kernel->run(call);
    endSpan(Stream::compute, begin, static_cast<int32_t>(next.op), label);
  }
}

Status QueueExecutor::collective(const Action& action, int index) {
  const Instruction& next = run_->program->instructions[static_cast<size_t>(index)];
  const char* label = run_->program->labelOf(next);
  communicator_.progress(device_, label);
  order(Stream::compute, Stream::communication);
  const Event begin = beginSpan(Stream::communication);
  Status status = communicator_.run(device_, groupOf(next, action), collectivesOf(next, action), pool_);
  if (!status.ok()) return status;
  endSpan(Stream::communication, begin, static_cast<int32_t>(next.op), label);
  const Event done = queue_.record(Stream::communication);
  joins_[static_cast<size_t>(index)] = done;
  mark(done, index, index, "");
  return checkQueue(index, index);
}

Status QueueExecutor::transfer(const Action& action) {
  const Program& program = *run_->program;
  const std::span<const Transfer> transfers(program.transfers.data() + action.index, static_cast<size_t>(action.count));
  order(Stream::compute, Stream::communication);
  const Event begin = beginSpan(Stream::communication);
  const int first = posted_;
  bool receives = false;
  for (const Transfer& transfer : transfers) {
    if (transfer.receive) continue;
    const Message sent = messageOf(transfer);
    communicator_.post(device_, sent);
    countSend(sent);
  }
  Status status;
  for (const Transfer& transfer : transfers) {
    if (!transfer.receive || !status.ok()) continue;
    receives = true;
    status = communicator_.receive(device_, messageOf(transfer), pool_);
  }
  for (int i = first; run_->unbuffered && status.ok() && i < posted_; ++i) {
    status = communicator_.waitReceived(device_, i, "transfer");
  }
  if (!status.ok()) return status;
  endSpan(Stream::communication, begin, 0, "transfer");
  const Event done = queue_.record(Stream::communication);
  sends_.resize(static_cast<size_t>(posted_), done);
  if (receives) queue_.wait(Stream::compute, done);
  mark(done, -1, -1, "a transfer between stages");
  return checkQueue(-1, -1);
}

Status QueueExecutor::wait(const Action& action) {
  Status status = communicator_.waitReceived(device_, action.index, "wait");
  if (!status.ok()) return status;
  // The communicator may have made the communication stream wait for the receiver.
  const Event begin = beginSpan(Stream::compute);
  order(Stream::communication, Stream::compute);
  endSpan(Stream::compute, begin, 0, "wait");
  return Status();
}

void QueueExecutor::copy(const Action& action) {
  if (action.bytes == 0) return;
  std::byte* memory = bases_[static_cast<size_t>(action.region)] + action.offset;
  const Event begin = beginSpan(Stream::compute);
  const bool feed = action.kind == ActionKind::feed;
  if (feed) {
    queue_.feed(memory, run_->input + action.staging, action.bytes);
  } else {
    queue_.fetch(run_->output + action.staging, memory, action.bytes);
  }
  endSpan(Stream::compute, begin, 0, feed ? "feed" : "fetch");
}

void QueueExecutor::order(Stream first, Stream then) { queue_.wait(then, queue_.record(first)); }

void QueueExecutor::mark(Event event, int first, int last, const char* what) {
  marks_.push_back(Mark{event, first, last, what});
}

Event QueueExecutor::beginSpan(Stream stream) {
  return run_->profile == nullptr ? nullptr : queue_.record(stream, true);
}

void QueueExecutor::endSpan(Stream stream, Event begin, int32_t op, const char* label) {
  if (run_->profile == nullptr) return;
  spans_.push_back(Span{op, label, begin, queue_.record(stream, true)});
}

void QueueExecutor::collectSpans() {
  if (run_->profile == nullptr) return;
  for (const Span& span : spans_) {
    run_->profile->push_back(ProfileEvent{device_, span.op, span.label, queue_.seconds(beginning_, span.begin),
                                          queue_.seconds(beginning_, span.end)});
  }
}

// Waits until the device has done all that was queued. It watches for the deadline, which counts from the last time the
// device got past a mark, and for failures; after one the device gets some time to come to its end.
Status QueueExecutor::drain() {
  order(Stream::communication, Stream::compute);
  mark(queue_.record(Stream::compute), -1, -1, "the end of the run");
  Status status;
  size_t next = 0;
  bool stopping = communicator_.failed();
  const auto limit = [&] { return std::chrono::milliseconds(stopping ? kGraceMs : run_->timeoutMs); };
  const auto begin = Clock::now();
  auto moved = begin;
  for (;;) {
    const size_t before = next;
    while (next < marks_.size() && queue_.reached(marks_[next].event)) ++next;
    const Status device = queue_.status();
    if (!device.ok()) return failedAt(marks_[std::min(before, marks_.size() - 1)], device);
    if (next == marks_.size()) {
      if (status.ok()) status = communicator_.failed() ? aborted() : communicator_.poll(device_);  // a last look
      return status;
    }
    const auto now = Clock::now();
    if (next != before) {
      moved = now;
      communicator_.progress(device_, labelOf(marks_[next]));
    }
    if (!stopping) {
      status = communicator_.poll(device_);
      if (status.ok() && run_->timeoutMs > 0 && now - moved > limit()) {
        status =
            Status(Code::timeout, "rank " + std::to_string(device_) + " waited " + std::to_string(run_->timeoutMs) +
                                      " ms in vain for its device, which is at " + describe(marks_[next]));
      }
      if (!status.ok()) communicator_.fail(status);
      stopping = communicator_.failed();
      if (stopping) moved = now;
    } else if (now - moved > limit()) {
      queue_.abandon(Status(Code::device, "rank " + std::to_string(device_) + ": the device hangs at " +
                                              describe(marks_[next]) + "; the engine can only be closed"));
      return queue_.status();
    }
    if (now - begin > kSpinTime) std::this_thread::sleep_for(kNap);
  }
}

const char* QueueExecutor::labelOf(const Mark& mark) const {
  if (mark.first < 0) return mark.what;
  return run_->program->labelOf(run_->program->instructions[static_cast<size_t>(mark.first)]);
}

std::string QueueExecutor::describe(const Mark& mark) const {
  if (mark.first < 0) return mark.what;
  const auto name = [&](int index) {
    const Instruction& at = run_->program->instructions[static_cast<size_t>(index)];
    const std::string op = kOpInfo[static_cast<int>(at.op)].name;
    return at.label < 0 ? op : op + " '" + run_->program->labelOf(at) + "'";
  };
  if (mark.first == mark.last) return name(mark.first);
  return "the kernels from " + name(mark.first) + " to " + name(mark.last);
}

Status QueueExecutor::failedAt(const Mark& mark, const Status& status) const {
  return Status(status.code(), "rank " + std::to_string(device_) + ", " + describe(mark) + ": " + status.message());
}

Status QueueExecutor::checkQueue(int first, int last) {
  const Status status = queue_.status();
  return status.ok() ? status : failedAt(Mark{nullptr, first, last, "a transfer between stages"}, status);
}

}  // namespace meshwork
