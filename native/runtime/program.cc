// Decodes a program's words. What the decoded parts mean together is checked in verify.cc.
#include "runtime/program.h"

#include <algorithm>
#include <cstring>

#include "backend/backend.h"
#include "runtime/verify.h"
#include "runtime/words.h"

namespace meshwork {
namespace {

constexpr int32_t kMagic = 0x4d575052;
constexpr int32_t kVersion = 1;
constexpr int64_t kAlign = 64;

class Decoder {
 public:
  Decoder(std::span<const int32_t> words, const ProgramLimits& limits, const Backend& backend, Program& program)
      : words_(words), limits_(limits), backend_(backend), program_(program) {}

  Status decode() {
    program_.rank = limits_.rank;
    header();
    buffers();
    views();
    floats();
    table();
    groups();
    labels();
    segments();
    actions();
    if (words_.failed()) return Status(Code::invalidProgram, words_.error());
    if (words_.left() != 0) {
      return Status(Code::invalidProgram, std::to_string(words_.left()) + " words follow the program's end");
    }
    return missing_;
  }

 private:
  // An offset in units of 64 bytes, as bytes.
  int64_t offset(const char* what) { return kAlign * words_.inRange(what, 0, INT32_MAX); }

  void header() {
    if (words_.word("the magic number") != kMagic) return words_.fail("not a program: wrong magic number");
    const int32_t version = words_.word("the version");
    if (version != kVersion) return words_.fail("program version " + std::to_string(version) + " is not known");
    if (static_cast<uint32_t>(words_.word("the op table hash")) != kOpTableHash) {
      return words_.fail("the program was made for another table of ops than the addon's");
    }
    program_.arenaBytes = words_.size("the arena's size");
  }

  void buffers() {
    const int32_t n = words_.count("the number of buffers", 2);
    program_.bufferBytes.resize(static_cast<size_t>(n));
    for (int64_t& bytes : program_.bufferBytes) bytes = words_.size("a buffer's size");
  }

  void views() {
    const int32_t n = words_.count("the number of views", 4);
    program_.views.resize(static_cast<size_t>(n));
    offsets_.resize(static_cast<size_t>(n));
    extents_.resize(static_cast<size_t>(n));
    for (size_t i = 0; i < program_.views.size() && !words_.failed(); ++i) view(i);
  }

  void view(size_t i) {
    View& view = program_.views[i];
    view.dtype = static_cast<DType>(words_.inRange("a view's dtype", 0, kDTypeCount - 1));
    view.rank = words_.inRange("a view's rank", 0, kMaxRank);
    const int64_t first = words_.size("a view's offset");
    int64_t product = 1, last = 0;
    bool empty = false, fits = true;
    for (int d = 0; d < view.rank; ++d) {
      view.dims[d] = words_.size("a view's dim");
      empty |= view.dims[d] == 0;
      fits &= !__builtin_mul_overflow(product, std::max<int64_t>(view.dims[d], 1), &product) &&
              product <= Words::kLargest / 8;
    }
    for (int d = 0; d < view.rank; ++d) {
      view.strides[d] = words_.size("a view's stride");
      int64_t reach = 0;
      fits &= !__builtin_mul_overflow(view.strides[d], std::max<int64_t>(view.dims[d] - 1, 0), &reach) &&
              !__builtin_add_overflow(last, reach, &last) && last <= Words::kLargest / 8;
    }
    if (!fits || first > Words::kLargest / 8) return words_.fail("a view is too large");
    const int64_t size = dtypeSize(view.dtype);
    offsets_[i] = empty ? 0 : first * size;
    extents_[i] = empty ? 0 : (last + 1) * size;
  }

  void floats() {
    const int32_t n = words_.count("the number of floats", 2);
    program_.floats.resize(static_cast<size_t>(n));
    for (double& value : program_.floats) value = words_.float64("a float");
  }

  void table() {
    const int32_t n = words_.count("the table's size", 1);
    const std::span<const int32_t> words = words_.take("the table", static_cast<size_t>(n));
    program_.table.assign(words.begin(), words.end());
  }

  void groups() {
    const int32_t n = words_.count("the number of groups", 2);
    program_.groups.resize(static_cast<size_t>(n));
    for (Group& group : program_.groups) {
      if (words_.failed()) return;
      group.ranks.resize(static_cast<size_t>(words_.inRange("a group's size", 1, limits_.devices)));
      int32_t least = 0;
      for (size_t i = 0; i < group.ranks.size(); ++i) {
        group.ranks[i] = words_.inRange("a group's rank", least, limits_.devices - 1);
        least = group.ranks[i] + 1;
        if (group.ranks[i] == limits_.rank) group.index = static_cast<int>(i);
      }
    }
  }

  void labels() {
    const int32_t n = words_.count("the number of labels", 1);
    program_.labels.resize(static_cast<size_t>(n));
    for (std::string& label : program_.labels) {
      const auto bytes = static_cast<size_t>(words_.inRange("a label's length", 0, 1 << 16));
      const std::span<const int32_t> text = words_.take("a label", (bytes + 3) / 4);
      if (words_.failed()) return;
      label.assign(bytes, ' ');
      if (bytes > 0) std::memcpy(label.data(), text.data(), bytes);
      std::replace(label.begin(), label.end(), '\0', ' ');
    }
  }

  void segments() {
    const int32_t n = words_.count("the number of segments", 1);
    program_.segments.resize(static_cast<size_t>(n));
    for (Segment& segment : program_.segments) {
      const size_t length = static_cast<size_t>(words_.count("a segment's length", 1));
      const size_t end = words_.position() + length;
      segment.begin = static_cast<int>(program_.instructions.size());
      while (!words_.failed() && words_.position() < end) instruction();
      segment.end = static_cast<int>(program_.instructions.size());
      if (!words_.failed() && words_.position() != end) words_.fail("an instruction runs past its segment's end");
    }
  }

  void instruction() {
    Instruction in;
    in.op = static_cast<Op>(words_.inRange("an opcode", 1, kOpCount - 1));
    if (words_.failed()) return;
    const OpInfo& info = kOpInfo[static_cast<int>(in.op)];
    in.inputs = words_.inRange("the number of inputs", info.minInputs, info.maxInputs < 0 ? 1 << 16 : info.maxInputs);
    in.outputs =
        words_.inRange("the number of outputs", info.minOutputs, info.maxOutputs < 0 ? 1 << 16 : info.maxOutputs);
    in.attrCount = words_.inRange("the number of attribute words", 0, INT32_MAX);
    in.label = words_.inRange("a label's index", -1, static_cast<int64_t>(program_.labels.size()) - 1);
    in.operands = static_cast<int>(program_.operands.size());
    in.attrs = static_cast<int>(program_.attrs.size());
    for (int i = 0; i < in.inputs + in.outputs && !words_.failed(); ++i) program_.operands.push_back(operand());
    const std::span<const int32_t> attrs =
        words_.take("an instruction's attributes", static_cast<size_t>(in.attrCount));
    program_.attrs.insert(program_.attrs.end(), attrs.begin(), attrs.end());
    program_.maxOperands = std::max(program_.maxOperands, in.inputs + in.outputs);
    for (size_t i = static_cast<size_t>(in.operands + in.inputs); i < program_.operands.size(); ++i) {
      in.keeps = in.keeps || program_.operands[i].region >= kBuffers;
    }
    if (!isCollective(in.op)) {
      in.kernel = backend_.findKernel(in.op);
      if (in.kernel == nullptr && missing_.ok()) {
        missing_ = Status(Code::unsupported,
                          std::string("the ") + backend_.name() + " backend has no kernel for " + info.name);
      }
    }
    program_.instructions.push_back(in);
  }

  OperandRef operand() {
    const auto regions = static_cast<int64_t>(program_.bufferBytes.size()) + kBuffers;
    const int32_t region = words_.inRange("an operand's region", 0, regions - 1);
    return memory(region, offset("an operand's offset"));
  }

  // A view at an offset in a region. The view's end in the region is checked later, when all bases are known.
  OperandRef memory(int32_t region, int64_t base) {
    OperandRef ref;
    ref.region = region;
    const int32_t index = words_.inRange("a view's index", 0, static_cast<int64_t>(program_.views.size()) - 1);
    if (words_.failed()) return ref;
    const auto i = static_cast<size_t>(index);
    ref.view = &program_.views[i];
    const bool empty = extents_[i] == 0;  // an empty operand has no memory, wherever it says it lies
    ref.begin = empty ? 0 : base + offsets_[i];
    ref.end = ref.begin + extents_[i];
    return ref;
  }

  void actions() {
    const size_t length = static_cast<size_t>(words_.count("the actions' length", 1));
    const size_t end = words_.position() + length;
    while (!words_.failed() && words_.position() < end) action();
    if (!words_.failed() && words_.position() != end) words_.fail("an action runs past the actions' end");
  }

  void action() {
    Action action;
    action.kind = static_cast<ActionKind>(words_.inRange("an action", 1, 5));
    if (words_.failed()) return;
    switch (action.kind) {
      case ActionKind::run:
        action.index = words_.inRange("a segment's index", 0, static_cast<int64_t>(program_.segments.size()) - 1);
        for (int64_t& slot : action.slots) slot = offset("a slot's offset");
        action.table = words_.inRange("a table base", 0, static_cast<int64_t>(program_.table.size()));
        break;
      case ActionKind::transfer:
        transfers(action);
        break;
      case ActionKind::wait:
        action.index = words_.inRange("a send's number", 0, static_cast<int64_t>(program_.sends) - 1);
        break;
      case ActionKind::feed:
        action.staging = words_.size("a staging offset");
        action.offset = offset("a feed's offset");
        action.bytes = words_.size("a feed's size");
        break;
      case ActionKind::fetch:
        action.region =
            words_.inRange("a fetch's region", 0, static_cast<int64_t>(program_.bufferBytes.size()) + kBuffers - 1);
        action.offset = offset("a fetch's offset");
        action.staging = words_.size("a staging offset");
        action.bytes = words_.size("a fetch's size");
        break;
    }
    program_.actions.push_back(action);
  }

  void transfers(Action& action) {
    action.index = static_cast<int32_t>(program_.transfers.size());
    action.count = words_.count("the number of transfers", 5);
    for (int32_t i = 0; i < action.count && !words_.failed(); ++i) {
      Transfer transfer;
      transfer.receive = words_.inRange("a transfer's direction", 0, 1) == 1;
      transfer.peer = words_.inRange("a transfer's peer", 0, limits_.devices - 1);
      if (!words_.failed() && transfer.peer == limits_.rank) words_.fail("a device sends to itself");
      transfer.tag = words_.word("a transfer's tag");
      transfer.memory = memory(kArena, offset("a transfer's offset"));
      if (!transfer.receive) ++program_.sends;
      program_.transfers.push_back(transfer);
    }
  }

  Words words_;
  const ProgramLimits& limits_;
  const Backend& backend_;
  Program& program_;
  std::vector<int64_t> offsets_;  // of each view, bytes
  std::vector<int64_t> extents_;  // of each view, bytes from its first to behind its last element; 0 when empty
  Status missing_;                // the first op without a kernel
};

}  // namespace

const char* Program::labelOf(const Instruction& instruction) const {
  if (instruction.label < 0) return kOpInfo[static_cast<int>(instruction.op)].name;
  return labels[static_cast<size_t>(instruction.label)].c_str();
}

Status decodeProgram(std::span<const int32_t> words, const ProgramLimits& limits, const Backend& backend,
                     std::unique_ptr<Program>* program) {
  auto decoded = std::make_unique<Program>();
  Status status = Decoder(words, limits, backend, *decoded).decode();
  if (status.ok()) status = verifyProgram(*decoded, limits);
  if (status.ok()) *program = std::move(decoded);
  return status;
}

}  // namespace meshwork
