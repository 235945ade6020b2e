// Load-time checks of a decoded program: extents, attributes, kernels, collectives, copies.
#include "runtime/verify.h"

#include <algorithm>
#include <cstring>

namespace meshwork {
namespace {

// The furthest bases any `run` action gives a segment, and each base in the table.
struct Uses {
  int64_t slots[kSlots] = {};
  int32_t table = 0;
  std::vector<int32_t> tables;
};

class Verifier {
 public:
  Verifier(const Program& program, const ProgramLimits& limits) : program_(program), limits_(limits) {}

  Status verify() {
    collectUses();
    for (segment_ = 0; segment_ < program_.segments.size(); ++segment_) {
      const Segment& segment = program_.segments[segment_];
      for (index_ = segment.begin; index_ < segment.end; ++index_) {
        Status status = instruction(program_.instructions[static_cast<size_t>(index_)]);
        if (!status.ok()) return status;
      }
    }
    for (const Action& action : program_.actions) {
      Status status = copies(action);
      if (!status.ok()) return status;
    }
    return Status();
  }

 private:
  void collectUses() {
    uses_.resize(program_.segments.size());
    for (const Action& action : program_.actions) {
      if (action.kind != ActionKind::run) continue;
      Uses& uses = uses_[static_cast<size_t>(action.index)];
      for (size_t i = 0; i < kSlots; ++i) uses.slots[i] = std::max(uses.slots[i], action.slots[i]);
      uses.table = std::max(uses.table, action.table);
      uses.tables.push_back(action.table);
    }
    for (Uses& uses : uses_) {
      std::sort(uses.tables.begin(), uses.tables.end());
      uses.tables.erase(std::unique(uses.tables.begin(), uses.tables.end()), uses.tables.end());
    }
  }

  Status refuse(const std::string& what, Code code = Code::invalidProgram) const {
    const Instruction& in = program_.instructions[static_cast<size_t>(index_)];
    const char* name = kOpInfo[static_cast<int>(in.op)].name;
    std::string where = "segment " + std::to_string(segment_) + ", instruction " +
                        std::to_string(index_ - program_.segments[segment_].begin) + " (" + name;
    if (in.label >= 0) where += std::string(" of ") + program_.labelOf(in);
    return Status(code, where + "): " + what);
  }

  static bool isSlot(int32_t region) { return region >= kSlot && region < kBuffers; }

  int64_t regionBytes(int32_t region) const {
    return region < kBuffers ? program_.arenaBytes : program_.bufferBytes[static_cast<size_t>(region - kBuffers)];
  }

  Status instruction(const Instruction& in) {
    const Uses& uses = uses_[segment_];
    for (int i = 0; i < in.inputs + in.outputs; ++i) {
      const OperandRef& operand = program_.operands[static_cast<size_t>(in.operands + i)];
      const int64_t base = isSlot(operand.region) ? uses.slots[operand.region - kSlot] : 0;
      if (operand.end > 0 && base + operand.end > regionBytes(operand.region)) {
        return refuse((i < in.inputs ? "input " + std::to_string(i) : "output " + std::to_string(i - in.inputs)) +
                      " ends at byte " + std::to_string(base + operand.end) + " of region " +
                      std::to_string(operand.region) + ", which has " + std::to_string(regionBytes(operand.region)));
      }
    }
    Status status = attributes(in, uses);
    if (!status.ok()) return status;
    return in.kernel != nullptr ? kernel(in, uses) : collective(in, uses);
  }

  const int32_t* attrs(const Instruction& in) const { return program_.attrs.data() + in.attrs; }

  Status attributes(const Instruction& in, const Uses& uses) const {
    const char* kinds = kOpInfo[static_cast<int>(in.op)].attrs;
    const int length = static_cast<int>(std::strlen(kinds));
    const bool rest = length > 0 && kinds[length - 1] == '*';
    const int named = rest ? length - 2 : length;
    if (in.attrCount < named || (!rest && in.attrCount > named)) {
      return refuse(std::to_string(in.attrCount) + " attribute words, expected " + std::to_string(named));
    }
    const auto floats = static_cast<int64_t>(program_.floats.size());
    const int64_t words = static_cast<int64_t>(program_.table.size()) - uses.table;
    for (int i = 0; i < in.attrCount; ++i) {
      const char kind = i < named ? kinds[i] : kinds[named];
      const int64_t value = attrs(in)[i];
      if ((kind == 'f' && (value < 0 || value >= floats)) || (kind == 't' && (value < 0 || value >= words))) {
        return refuse("attribute " + std::to_string(i) + " is " + std::to_string(value) + ", beyond the " +
                      (kind == 'f' ? "floats" : "table"));
      }
    }
    return Status();
  }

  Status kernel(const Instruction& in, const Uses& uses) {
    operands_.resize(static_cast<size_t>(in.inputs + in.outputs));
    for (size_t i = 0; i < operands_.size(); ++i) {
      operands_[i] = Operand{nullptr, program_.operands[static_cast<size_t>(in.operands) + i].view};
    }
    Call call;
    call.in = operands_.data();
    call.out = operands_.data() + in.inputs;
    call.inputs = in.inputs;
    call.outputs = in.outputs;
    call.attrs = attrs(in);
    call.attrCount = in.attrCount;
    call.floats = program_.floats.data();
    call.floatCount = static_cast<int>(program_.floats.size());
    call.tableCount = static_cast<int>(program_.table.size()) - uses.table;
    const Status status = in.kernel->check(call);
    return status.ok() ? status : refuse(status.message(), status.code());
  }

  const View& view(const Instruction& in, int operand) const {
    return *program_.operands[static_cast<size_t>(in.operands + operand)].view;
  }

  // Attribute words of a tensor beyond the first: dim and counts of those that are split.
  static int wordsOfMore(Op op) { return op == Op::all_gather || op == Op::reduce_scatter ? 2 : 0; }

  // An exchange with experts reads its counts besides the rows.
  static int tensorsOf(const Instruction& in) { return in.op == Op::expert_exchange ? 1 : in.inputs; }

  // The checks of a collective that need no table.
  Status collective(const Instruction& in, const Uses& uses) const {
    static_assert(attr::all_gather::counts == attr::all_gather::dim + 1 &&
                  attr::reduce_scatter::counts == attr::reduce_scatter::dim + 1);
    const int tensors = tensorsOf(in);
    if (tensors != in.outputs) return refuse("as many outputs as inputs are expected");
    const int named = static_cast<int>(std::strcspn(kOpInfo[static_cast<int>(in.op)].attrs, "*"));
    const int words = wordsOfMore(in.op);
    if (in.attrCount != named - (words > 0 ? 1 : 0) + words * (tensors - 1)) {
      return refuse("each further tensor takes " + std::to_string(words) + " attribute words");
    }
    const bool reduces = in.op == Op::all_reduce || in.op == Op::reduce_scatter;
    for (int i = 0; i < tensors; ++i) {
      const View &x = view(in, i), &y = view(in, in.inputs + i);
      if (!x.contiguous() || !y.contiguous()) return refuse("a collective's operands are contiguous");
      if (x.dtype != y.dtype || x.rank != y.rank) return refuse("x and y differ in dtype or rank");
      if (reduces && x.dtype == DType::boolean) return refuse("no reduction for bool", Code::unsupported);
    }
    if (reduces) {
      const int32_t kind = attrs(in)[in.op == Op::all_reduce ? attr::all_reduce::kind : attr::reduce_scatter::kind];
      if (kind < 0 || kind > 2) return refuse("reduction kind " + std::to_string(kind) + " is not known");
    }
    for (const int32_t base : uses.tables) {
      Status status = withTable(in, base);
      if (!status.ok()) return status;
    }
    return Status();
  }

  Status withTable(const Instruction& in, int32_t base) const {
    static_assert(attr::all_reduce::group == 0 && attr::all_gather::group == 0 && attr::reduce_scatter::group == 0 &&
                  attr::all_to_all::group == 0 && attr::broadcast::group == 0 && attr::expert_exchange::group == 0);
    const int32_t id = program_.table[static_cast<size_t>(base + attrs(in)[0])];
    if (id < 0 || static_cast<size_t>(id) >= program_.groups.size()) {
      return refuse("group " + std::to_string(id) + " is not known");
    }
    const Group& group = program_.groups[static_cast<size_t>(id)];
    if (group.index < 0) {
      return refuse("rank " + std::to_string(program_.rank) + " is not in group " + std::to_string(id));
    }
    for (int i = 0; i < tensorsOf(in); ++i) {
      Status status = tensor(in, i, group, base);
      if (!status.ok()) return status;
    }
    return Status();
  }

  Status tensor(const Instruction& in, int i, const Group& group, int32_t base) const {
    const View &x = view(in, i), &y = view(in, in.inputs + i);
    const int32_t* a = attrs(in);
    const int more = wordsOfMore(in.op) * i;
    switch (in.op) {
      case Op::all_gather:
        return joined(group, base, a[attr::all_gather::counts + more], a[attr::all_gather::dim + more], y, x);
      case Op::reduce_scatter:
        return joined(group, base, a[attr::reduce_scatter::counts + more], a[attr::reduce_scatter::dim + more], x, y);
      case Op::all_to_all:
        return exchanged(group, base, a, x, y);
      case Op::expert_exchange:
        return routed(group, base, a, x, view(in, 1), y);
      case Op::broadcast: {
        const int32_t root = program_.table[static_cast<size_t>(base + a[attr::broadcast::root])];
        if (root < 0 || static_cast<size_t>(root) >= group.ranks.size()) return refuse("the root is not in the group");
        break;
      }
      default:
        break;
    }
    return sameDims(x, y, -1, -1);
  }

  // `whole` has the group's parts along dim, `part` this rank's.
  Status joined(const Group& group, int32_t base, int32_t counts, int32_t dim, const View& whole,
                const View& part) const {
    if (dim < 0 || dim >= whole.rank) return refuse("dim " + std::to_string(dim) + " is not a dim of its operands");
    int64_t sum = 0;
    Status status = total(group, base, counts, &sum);
    if (!status.ok()) return status;
    if (sum != whole.dims[dim]) return refuse("the counts do not sum to the joined dim");
    if (part.dims[dim] != count(group, base, counts)) return refuse("this rank's count is not its part's dim");
    return sameDims(whole, part, dim, dim);
  }

  Status exchanged(const Group& group, int32_t base, const int32_t* a, const View& x, const View& y) const {
    const int32_t split = a[attr::all_to_all::splitDim], join = a[attr::all_to_all::joinDim];
    if (split < 0 || split >= x.rank || join < 0 || join >= x.rank) return refuse("a dim is not one of its operands'");
    int64_t sent = 0, received = 0;
    Status status = total(group, base, a[attr::all_to_all::splitCounts], &sent);
    if (status.ok()) status = total(group, base, a[attr::all_to_all::joinCounts], &received);
    if (!status.ok()) return status;
    if (sent != x.dims[split]) return refuse("the split counts do not sum to the split dim");
    if (received != y.dims[join]) return refuse("the join counts do not sum to the joined dim");
    if (split != join && (y.dims[split] != count(group, base, a[attr::all_to_all::splitCounts]) ||
                          x.dims[join] != count(group, base, a[attr::all_to_all::joinCounts]))) {
      return refuse("this rank's counts are not its operands' dims");
    }
    return sameDims(x, y, split, join);
  }

  // Rows that go where the data say: what they say is held against both sides when it is done.
  Status routed(const Group& group, int32_t base, const int32_t* a, const View& x, const View& counts,
                const View& y) const {
    const int32_t back = a[attr::expert_exchange::back];
    if (back != 0 && back != 1) return refuse("back is 0 or 1");
    if (x.rank != 2 || x.dims[1] != y.dims[1]) return refuse("x and y are rows of one width");
    if (counts.dtype != DType::i32 || counts.rank != 2 || !counts.contiguous() ||
        counts.dims[0] != static_cast<int64_t>(group.ranks.size())) {
      return refuse("counts are i32 [ranks, experts], contiguous");
    }
    int64_t experts = 0, most = 0;
    Status status = total(group, base, a[attr::expert_exchange::owners], &experts);
    if (status.ok()) status = total(group, base, a[attr::expert_exchange::most], &most);
    if (!status.ok()) return status;
    if (most > (back != 0 ? x : y).dims[0]) return refuse("more rows may come than there is room for");
    return experts == counts.dims[1] ? Status() : refuse("the ranks' experts do not sum to the counts' dim");
  }

  int64_t count(const Group& group, int32_t base, int32_t counts) const {
    return program_.table[static_cast<size_t>(base + counts + group.index)];
  }

  Status total(const Group& group, int32_t base, int32_t counts, int64_t* sum) const {
    const int64_t begin = int64_t{base} + counts;
    const int64_t end = begin + static_cast<int64_t>(group.ranks.size());
    if (counts < 0 || end > static_cast<int64_t>(program_.table.size()))
      return refuse("the counts lie beyond the table");
    for (int64_t i = begin; i < end; ++i) {
      const int32_t value = program_.table[static_cast<size_t>(i)];
      if (value < 0) return refuse("a count is negative");
      *sum += value;
    }
    return Status();
  }

  Status sameDims(const View& x, const View& y, int except, int exceptToo) const {
    for (int d = 0; d < x.rank; ++d) {
      if (d != except && d != exceptToo && x.dims[d] != y.dims[d]) {
        return refuse("dim " + std::to_string(d) + " of x and y differ");
      }
    }
    return Status();
  }

  Status copies(const Action& action) const {
    const auto bad = [](const char* what) { return Status(Code::invalidProgram, what); };
    if (action.kind == ActionKind::feed || action.kind == ActionKind::fetch) {
      const bool feed = action.kind == ActionKind::feed;
      int64_t bytes = regionBytes(action.region);
      if (isSlot(action.region)) return bad("a fetch reads the arena or a buffer");
      if (action.offset + action.bytes > bytes) return bad("a feed or fetch leaves its region");
      if (action.staging + action.bytes > (feed ? limits_.inputBytes : limits_.outputBytes)) {
        return bad("a feed or fetch leaves the run's staging");
      }
    }
    if (action.kind == ActionKind::transfer) {
      for (int32_t i = 0; i < action.count; ++i) {
        const Transfer& transfer = program_.transfers[static_cast<size_t>(action.index + i)];
        if (!transfer.memory.view->contiguous()) return bad("a transfer's view is contiguous");
        if (transfer.memory.end > program_.arenaBytes) return bad("a transfer leaves the arena");
      }
    }
    return Status();
  }

  const Program& program_;
  const ProgramLimits& limits_;
  std::vector<Uses> uses_;
  std::vector<Operand> operands_;
  size_t segment_ = 0;
  int index_ = 0;
};

}  // namespace

Status verifyProgram(const Program& program, const ProgramLimits& limits) { return Verifier(program, limits).verify(); }

}  // namespace meshwork
