// Finds, for every collective of a segment, the first kernel that must not run beside it.
#include "runtime/segment_plan.h"

#include <algorithm>

namespace meshwork {
namespace {

struct Range {
  const std::byte* begin = nullptr;
  const std::byte* end = nullptr;
  bool meets(const Range& other) const { return begin < other.end && other.begin < end; }
};

struct Pending {
  int instruction = 0;
  std::vector<Range> read, written;  // of each tensor
};

class Planner {
 public:
  Planner(const Program& program, const std::vector<std::byte*>& bases) : program_(program), bases_(bases) {}

  SegmentPlan plan(const Segment& segment) {
    for (int i = segment.begin; i < segment.end; ++i) {
      const Instruction& next = program_.instructions[static_cast<size_t>(i)];
      if (next.kernel != nullptr) {
        join(firstFree(next));
        kernel(i);
      } else {
        add(Step::Kind::collective, i);
        Pending& pending = pending_.emplace_back();
        pending.instruction = i;
        for (int t = 0; t < next.inputs; ++t) pending.read.push_back(range(next, t));
        for (int t = 0; t < next.outputs; ++t) pending.written.push_back(range(next, next.inputs + t));
      }
    }
    join(pending_.size());
    return SegmentPlan{std::move(steps_)};
  }

 private:
  Range range(const Instruction& instruction, int operand) const {
    const OperandRef& ref = program_.operands[static_cast<size_t>(instruction.operands + operand)];
    const std::byte* base = bases_[static_cast<size_t>(ref.region)];
    return {base + ref.begin, base + ref.end};
  }

  // How many of the pending collectives, from the first on, a kernel must come after.
  size_t firstFree(const Instruction& instruction) const {
    for (size_t p = pending_.size(); p > 0; --p) {
      if (conflicts(instruction, pending_[p - 1])) return p;
    }
    return 0;
  }

  static bool meetsAny(const Range& range, const std::vector<Range>& others) {
    return std::any_of(others.begin(), others.end(), [&](const Range& other) { return range.meets(other); });
  }

  bool conflicts(const Instruction& instruction, const Pending& pending) const {
    for (int i = 0; i < instruction.inputs + instruction.outputs; ++i) {
      const Range touched = range(instruction, i);
      if (meetsAny(touched, pending.written)) return true;
      if (i >= instruction.inputs && meetsAny(touched, pending.read)) return true;
    }
    return false;
  }

  void join(size_t count) {
    if (count == 0) return;
    const int last = pending_[count - 1].instruction;
    Step& step = steps_.emplace_back();
    step.kind = Step::Kind::join;
    step.begin = last;
    step.end = last + 1;
    pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(count));
  }

  void kernel(int i) {
    const bool keeps = program_.instructions[static_cast<size_t>(i)].keeps;
    const bool goesOn = !steps_.empty() && steps_.back().kind == Step::Kind::kernels && steps_.back().end == i;
    // A run may be cancelled up to the first kernel that writes what outlives it, which therefore begins a step.
    if (goesOn && steps_.back().keeps == keeps) {
      ++steps_.back().end;
    } else {
      add(Step::Kind::kernels, i);
    }
  }

  void add(Step::Kind kind, int i) {
    Step& step = steps_.emplace_back();
    step.kind = kind;
    step.begin = i;
    step.end = i + 1;
    step.keeps = program_.instructions[static_cast<size_t>(i)].keeps;
  }

  const Program& program_;
  const std::vector<std::byte*>& bases_;
  std::vector<Step> steps_;
  std::vector<Pending> pending_;
};

}  // namespace

SegmentPlan planSegment(const Program& program, const Segment& segment, const std::vector<std::byte*>& bases) {
  return Planner(program, bases).plan(segment);
}

}  // namespace meshwork
