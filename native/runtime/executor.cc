// The loop over a program's actions and instructions. Everything was checked at load; nothing is checked here.
#include "runtime/executor.h"

#include <algorithm>

namespace meshwork {

Status Executor::run(const DeviceRun& run) {
  run_ = &run;
  posted_ = 0;
  const Program& program = *run.program;
  bases_.assign(program.bufferBytes.size() + kBuffers, run.arena);
  std::copy(run.buffers.begin(), run.buffers.end(), bases_.begin() + kBuffers);
  operands_.resize(static_cast<size_t>(program.maxOperands));
  ++counters_.runs;
  for (const Action& next : program.actions) {
    if (communicator_.failed()) return Status(Code::aborted, "the run was aborted");
    Status status = action(next);
    if (!status.ok()) return status;
  }
  for (int i = 0; i < posted_; ++i) {  // the arena is used again by the next run
    Status status = communicator_.waitReceived(device_, i, "the end of the run");
    if (!status.ok()) return status;
  }
  return Status();
}

Status Executor::action(const Action& action) {
  switch (action.kind) {
    case ActionKind::run:
      return segment(action);
    case ActionKind::transfer:
      return transfer(action);
    case ActionKind::wait: {
      const double begin = now();
      Status status = communicator_.waitReceived(device_, action.index, "wait");
      record(0, "wait", begin);
      return status;
    }
    case ActionKind::feed:
    case ActionKind::fetch:
      copy(action);
      return Status();
  }
  return Status(Code::internal, "unknown action");
}

Status Executor::segment(const Action& action) {
  const Program& program = *run_->program;
  const Segment& segment = program.segments[static_cast<size_t>(action.index)];
  if (run_->arena != nullptr) {
    for (size_t i = 0; i < kSlots; ++i) bases_[kSlot + i] = run_->arena + action.slots[i];
  }
  const int32_t* table = program.table.data() + action.table;
  const int tableCount = static_cast<int>(program.table.size()) - action.table;
  for (int i = segment.begin; i < segment.end; ++i) {
    const Instruction& next = program.instructions[static_cast<size_t>(i)];
    if (communicator_.failed() || (next.keeps && !commit())) return Status(Code::aborted, "the run was aborted");
    const char* label = program.labelOf(next);
    communicator_.progress(device_, label);
    ++counters_.instructions[static_cast<size_t>(next.op)];
    const double begin = now();
    Status status;
    if (next.kernel == nullptr) {
      status = collective(next, table);
    } else if (backend_.computes()) {
      kernel(next, table, tableCount);
    }
    record(static_cast<int32_t>(next.op), label, begin);
    if (!status.ok()) return status;
  }
  return Status();
}

// False when the run was cancelled before any device came to this.
bool Executor::commit() {
  Fate found = Fate::open;
  return run_->fate->compare_exchange_strong(found, Fate::committed) || found == Fate::committed;
}

Operand Executor::operand(const OperandRef& ref) const {
  std::byte* base = bases_[static_cast<size_t>(ref.region)];
  return Operand{base == nullptr ? nullptr : base + ref.begin, ref.view};
}

void Executor::kernel(const Instruction& instruction, const int32_t* table, int tableCount) {
  const Program& program = *run_->program;
  const int n = instruction.inputs + instruction.outputs;
  for (int i = 0; i < n; ++i) {
    operands_[static_cast<size_t>(i)] = operand(program.operands[static_cast<size_t>(instruction.operands + i)]);
  }
  Call call;
  call.in = operands_.data();
  call.out = operands_.data() + instruction.inputs;
  call.inputs = instruction.inputs;
  call.outputs = instruction.outputs;
  call.attrs = program.attrs.data() + instruction.attrs;
  call.attrCount = instruction.attrCount;
  call.floats = program.floats.data();
  call.floatCount = static_cast<int>(program.floats.size());
  call.table = table;
  call.tableCount = tableCount;
  call.pool = &pool_;
  instruction.kernel->run(call);
}

namespace {

// Elements of the whole tensor. Of an exchange with experts: the rows that a rank brings, which are known; what comes to
// it depends on the data.
int64_t trafficOf(const Collective& call) {
  if (call.op == Op::expert_exchange) return (call.back ? call.y : call.x)->count();
  return std::max(call.x->count(), call.y->count());
}

}  // namespace

Status Executor::collective(const Instruction& instruction, const int32_t* table) {
  const Program& program = *run_->program;
  const int32_t* a = program.attrs.data() + instruction.attrs;
  const auto group = static_cast<size_t>(table[a[0]]);
  const auto size = static_cast<int>(program.groups[group].ranks.size());
  Counters::Traffic& traffic = counters_.collectives[{static_cast<int>(instruction.op), size}];
  ++traffic.calls;
  const int tensors = instruction.outputs;
  collectives_.resize(static_cast<size_t>(tensors));
  for (int i = 0; i < tensors; ++i) {
    const OperandRef& x = program.operands[static_cast<size_t>(instruction.operands + i)];
    const OperandRef& y = program.operands[static_cast<size_t>(instruction.operands + instruction.inputs + i)];
    Collective& call = collectives_[static_cast<size_t>(i)];
    call = Collective();
    call.op = instruction.op;
    call.label = program.labelOf(instruction);
    call.in = operand(x).data;
    call.out = operand(y).data;
    call.x = x.view;
    call.y = y.view;
    switch (instruction.op) {
      case Op::all_reduce:
        call.reduction = static_cast<Reduction>(a[attr::all_reduce::kind]);
        break;
      case Op::all_gather:
        call.dim = a[attr::all_gather::dim + 2 * i];
        call.counts = table + a[attr::all_gather::counts + 2 * i];
        break;
      case Op::reduce_scatter:
        call.reduction = static_cast<Reduction>(a[attr::reduce_scatter::kind]);
        call.dim = a[attr::reduce_scatter::dim + 2 * i];
        call.counts = table + a[attr::reduce_scatter::counts + 2 * i];
        break;
      case Op::all_to_all:
        call.dim = a[attr::all_to_all::splitDim];
        call.joinDim = a[attr::all_to_all::joinDim];
        call.counts = table + a[attr::all_to_all::splitCounts];
        call.joinCounts = table + a[attr::all_to_all::joinCounts];
        break;
      case Op::expert_exchange: {
        const OperandRef& counts = program.operands[static_cast<size_t>(instruction.operands) + 1];
        call.rows = reinterpret_cast<const int32_t*>(operand(counts).data);
        call.experts = counts.view->dims[1];
        call.owners = table + a[attr::expert_exchange::owners];
        call.back = a[attr::expert_exchange::back] != 0;
        break;
      }
      default:
        call.root = table[a[attr::broadcast::root]];
        break;
    }
    traffic.bytes += trafficOf(call) * dtypeSize(x.view->dtype);
  }
  return communicator_.run(device_, *run_->groups[group], collectives_, pool_);
}

Status Executor::transfer(const Action& action) {
  const Program& program = *run_->program;
  const std::span<const Transfer> transfers(program.transfers.data() + action.index, static_cast<size_t>(action.count));
  const double begin = now();
  const int first = posted_;
  const auto message = [&](const Transfer& transfer) {
    return Message{"transfer", transfer.peer, transfer.tag, operand(transfer.memory).data,
                   transfer.memory.end - transfer.memory.begin};
  };
  for (const Transfer& transfer : transfers) {
    if (transfer.receive) continue;
    const Message sent = message(transfer);
    communicator_.post(device_, sent);
    ++posted_;
    ++counters_.sends.calls;
    counters_.sends.bytes += sent.bytes;
  }
  for (const Transfer& transfer : transfers) {
    if (!transfer.receive) continue;
    Status status = communicator_.receive(device_, message(transfer), pool_);
    if (!status.ok()) return status;
  }
  for (int i = first; run_->unbuffered && i < posted_; ++i) {
    Status status = communicator_.waitReceived(device_, i, "transfer");
    if (!status.ok()) return status;
  }
  record(0, "transfer", begin);
  return Status();
}

void Executor::copy(const Action& action) {
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

double Executor::now() const {
  if (run_->profile == nullptr) return 0;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - run_->begin).count();
}

void Executor::record(int32_t op, const char* label, double begin) {
  if (run_->profile == nullptr) return;
  run_->profile->push_back(ProfileEvent{device_, op, label, begin, now()});
}

}  // namespace meshwork
