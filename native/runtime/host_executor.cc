// Actions on the host: kernels one after the other. Everything was checked at load; nothing is checked here.
#include "runtime/host_executor.h"

namespace meshwork {

Status HostExecutor::run(const DeviceRun& run) {
  start(run);
  return runActions();
}

Status HostExecutor::segment(const Action& action) {
  const Program& program = *run_->program;
  const Segment& segment = program.segments[static_cast<size_t>(action.index)];
  moveTo(action);
  for (int i = segment.begin; i < segment.end; ++i) {
    const Instruction& next = program.instructions[static_cast<size_t>(i)];
    if (communicator_.failed() || (next.keeps && !commit())) return Status(Code::aborted, "the run was aborted");
    const char* label = program.labelOf(next);
    communicator_.progress(device_, label);
    const double begin = now();
    Status status;
    if (next.kernel == nullptr) {
      status = communicator_.run(device_, groupOf(next, action), collectivesOf(next, action), pool_);
    } else {
      const Call call = callOf(next, action);
      if (backend_.computes()) next.kernel->run(call);
    }
    record(static_cast<int32_t>(next.op), label, begin);
    if (!status.ok()) return status;
  }
  return Status();
}

Status HostExecutor::transfer(const Action& action) {
  const Program& program = *run_->program;
  const std::span<const Transfer> transfers(program.transfers.data() + action.index, static_cast<size_t>(action.count));
  const double begin = now();
  const int first = posted_;
  for (const Transfer& transfer : transfers) {
    if (transfer.receive) continue;
    const Message sent = messageOf(transfer);
    communicator_.post(device_, sent);
    countSend(sent);
  }
  for (const Transfer& transfer : transfers) {
    if (!transfer.receive) continue;
    Status status = communicator_.receive(device_, messageOf(transfer), pool_);
    if (!status.ok()) return status;
  }
  for (int i = first; run_->unbuffered && i < posted_; ++i) {
    Status status = communicator_.waitReceived(device_, i, "transfer");
    if (!status.ok()) return status;
  }
  record(0, "transfer", begin);
  return Status();
}

Status HostExecutor::wait(const Action& action) {
  const double begin = now();
  Status status = communicator_.waitReceived(device_, action.index, "wait");
  record(0, "wait", begin);
  return status;
}

void HostExecutor::copy(const Action& action) {
  const double begin = now();
  std::byte* base = bases_[static_cast<size_t>(action.region)];
  std::byte* memory = base == nullptr ? nullptr : base + action.offset;
  if (action.bytes == 0) return;
  if (action.kind == ActionKind::feed) {
    backend_.copyIn(device_, memory, run_->input + action.staging, action.bytes);
    record(0, "feed", begin);
  } else {
    backend_.copyOut(device_, run_->output + action.staging, memory, action.bytes);
    record(0, "fetch", begin);
  }
}

double HostExecutor::now() const {
  if (run_->profile == nullptr) return 0;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - run_->begin).count();
}

void HostExecutor::record(int32_t op, const char* label, double begin) {
  if (run_->profile == nullptr) return;
  run_->profile->push_back(ProfileEvent{device_, op, label, begin, now()});
}

}  // namespace meshwork
