// What all executors share: where operands lie, and instructions as kernels and communicators see them.
#include "runtime/executor.h"

#include <algorithm>

#include "runtime/host_executor.h"
#include "runtime/queue_executor.h"

namespace meshwork {

Status Executor::runActions() {
  for (const Action& next : run_->program->actions) {
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
    case ActionKind::wait:
      return wait(action);
    case ActionKind::feed:
    case ActionKind::fetch:
      copy(action);
      return Status();
  }
  return Status(Code::internal, "unknown action");
}

void Executor::start(const DeviceRun& run) {
  run_ = &run;
  posted_ = 0;
  const Program& program = *run.program;
  bases_.assign(program.bufferBytes.size() + kBuffers, run.arena);
  std::copy(run.buffers.begin(), run.buffers.end(), bases_.begin() + kBuffers);
  operands_.resize(static_cast<size_t>(program.maxOperands));
  ++counters_.runs;
}

void Executor::moveTo(const Action& action) {
  if (run_->arena == nullptr) return;
  for (size_t i = 0; i < kSlots; ++i) bases_[kSlot + i] = run_->arena + action.slots[i];
}

Operand Executor::operand(const OperandRef& ref) const {
  std::byte* base = bases_[static_cast<size_t>(ref.region)];
  return Operand{base == nullptr ? nullptr : base + ref.begin, ref.view};
}

Call Executor::callOf(const Instruction& instruction, const Action& action) {
  ++counters_.instructions[static_cast<size_t>(instruction.op)];
  return shapeOf(instruction, action);
}

Call Executor::shapeOf(const Instruction& instruction, const Action& action) {
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
  call.table = program.table.data() + action.table;
  call.tableCount = static_cast<int>(program.table.size()) - action.table;
  call.pool = &pool_;
  return call;
}

size_t Executor::groupIndex(const Instruction& instruction, const Action& action) const {
  const Program& program = *run_->program;
  const int32_t attr = program.attrs[static_cast<size_t>(instruction.attrs)];
  return static_cast<size_t>(program.table[static_cast<size_t>(action.table + attr)]);
}

CommunicatorGroup& Executor::groupOf(const Instruction& instruction, const Action& action) const {
  return *run_->groups[groupIndex(instruction, action)];
}

namespace {

// Elements of the whole tensor. Of an exchange with experts: the rows that a rank brings, which are known; what comes
// to it depends on the data.
int64_t trafficOf(const Collective& call) {
  if (call.op == Op::expert_exchange) return (call.back ? call.y : call.x)->count();
  return std::max(call.x->count(), call.y->count());
}

}  // namespace

std::span<const Collective> Executor::collectivesOf(const Instruction& instruction, const Action& action) {
  const Program& program = *run_->program;
  const auto size = static_cast<int>(program.groups[groupIndex(instruction, action)].ranks.size());
  ++counters_.instructions[static_cast<size_t>(instruction.op)];
  Counters::Traffic& traffic = counters_.collectives[{static_cast<int>(instruction.op), size}];
  ++traffic.calls;
  std::byte* scratch = run_->arena == nullptr ? nullptr : run_->arena + program.scratchBegin();
  collectives_.clear();
  for (int i = 0; i < instruction.outputs; ++i) {
    const OperandRef& x = program.operands[static_cast<size_t>(instruction.operands + i)];
    const OperandRef& y = program.operands[static_cast<size_t>(instruction.operands + instruction.inputs + i)];
    Collective& call = collectives_.emplace_back(collectiveAt(program, instruction, i, action.table));
    call.label = program.labelOf(instruction);
    call.in = operand(x).data;
    call.out = operand(y).data;
    call.scratch = scratch;
    if (scratch != nullptr) scratch += communicator_.scratchBytes(call);
    if (instruction.op == Op::expert_exchange) {
      const OperandRef& counts = program.operands[static_cast<size_t>(instruction.operands) + 1];
      call.rows = reinterpret_cast<const int32_t*>(operand(counts).data);
    }
    traffic.bytes += trafficOf(call) * dtypeSize(x.view->dtype);
  }
  return collectives_;
}

bool Executor::commit() {
  Fate found = Fate::open;
  return run_->fate->compare_exchange_strong(found, Fate::committed) || found == Fate::committed;
}

Message Executor::messageOf(const Transfer& transfer) const {
  return Message{"transfer", transfer.peer, transfer.tag, operand(transfer.memory).data,
                 transfer.memory.end - transfer.memory.begin};
}

void Executor::countSend(const Message& message) {
  ++posted_;
  ++counters_.sends.calls;
  counters_.sends.bytes += message.bytes;
}

std::unique_ptr<Executor> makeExecutor(int device, Backend& backend, Communicator& communicator, Pool& pool) {
  if (DeviceQueue* queue = backend.queue(device)) {
    return std::make_unique<QueueExecutor>(device, backend, communicator, pool, *queue);
  }
  return std::make_unique<HostExecutor>(device, backend, communicator, pool);
}

Collective collectiveAt(const Program& program, const Instruction& instruction, int tensor, int32_t base) {
  const int32_t* a = program.attrs.data() + instruction.attrs;
  const int32_t* table = program.table.data() + base;
  Collective call;
  call.op = instruction.op;
  call.x = program.operands[static_cast<size_t>(instruction.operands + tensor)].view;
  call.y = program.operands[static_cast<size_t>(instruction.operands + instruction.inputs + tensor)].view;
  switch (instruction.op) {
    case Op::all_reduce:
      call.reduction = static_cast<Reduction>(a[attr::all_reduce::kind]);
      break;
    case Op::all_gather:
      call.dim = a[attr::all_gather::dim + 2 * tensor];
      call.counts = table + a[attr::all_gather::counts + 2 * tensor];
      break;
    case Op::reduce_scatter:
      call.reduction = static_cast<Reduction>(a[attr::reduce_scatter::kind]);
      call.dim = a[attr::reduce_scatter::dim + 2 * tensor];
      call.counts = table + a[attr::reduce_scatter::counts + 2 * tensor];
      break;
    case Op::all_to_all:
      call.dim = a[attr::all_to_all::splitDim];
      call.joinDim = a[attr::all_to_all::joinDim];
      call.counts = table + a[attr::all_to_all::splitCounts];
      call.joinCounts = table + a[attr::all_to_all::joinCounts];
      break;
    case Op::broadcast:
      call.root = table[a[attr::broadcast::root]];
      break;
    case Op::expert_exchange: {
      const View& counts = *program.operands[static_cast<size_t>(instruction.operands) + 1].view;
      const int32_t* most = table + a[attr::expert_exchange::most];
      call.ranks = static_cast<int>(counts.dims[0]);
      call.experts = counts.dims[1];
      call.owners = table + a[attr::expert_exchange::owners];
      call.most = call.ranks == 0 ? 0 : *std::max_element(most, most + call.ranks);
      call.back = a[attr::expert_exchange::back] != 0;
      break;
    }
    default:
      break;
  }
  return call;
}

}  // namespace meshwork
