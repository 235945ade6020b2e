// A decoded and validated program: what one device does in one run. The format is docs/PROGRAM.md's.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/kernel.h"
#include "core/opcodes.h"
#include "core/status.h"
#include "core/view.h"

namespace meshwork {

class Backend;

// Memory regions that operands name: the arena, slots whose bases a `run` gives, and (kBuffers + k) the k-th bound
// buffer.
enum Region : int32_t { kArena = 0, kSlot = 1, kBuffers = 4 };
inline constexpr int kSlots = kBuffers - kSlot;

struct OperandRef {
  int32_t region = 0;
  int64_t begin = 0;  // bytes from the region's base to the first element
  int64_t end = 0;    // bytes from the region's base to behind the last element; equals begin when empty
  const View* view = nullptr;
};

struct Instruction {
  Op op = Op::copy;
  int inputs = 0;
  int outputs = 0;
  int operands = 0;  // index of the first in Program::operands, inputs then outputs
  int attrs = 0;     // index of the first in Program::attrs
  int attrCount = 0;
  int label = -1;                  // index in Program::labels, or -1
  bool keeps = false;              // writes a bound buffer, which outlives the run
  const Kernel* kernel = nullptr;  // null for collectives
};

struct Segment {
  int begin = 0;  // instructions [begin, end)
  int end = 0;
};

struct Transfer {
  bool receive = false;
  int peer = 0;
  int32_t tag = 0;
  OperandRef memory;  // in the arena, contiguous
};

enum class ActionKind : int32_t { run = 1, transfer = 2, wait = 3, feed = 4, fetch = 5 };

struct Action {
  ActionKind kind = ActionKind::run;
  int32_t index = 0;           // run: segment; transfer: first of Program::transfers; wait: number of the send
  int32_t count = 0;           // transfer: how many
  int64_t slots[kSlots] = {};  // run: bytes
  int32_t table = 0;           // run: base in the table
  int32_t region = kArena;     // feed, fetch
  int64_t offset = 0;          // feed, fetch: bytes in the region
  int64_t staging = 0;         // feed, fetch: bytes in the run's input or output
  int64_t bytes = 0;           // feed, fetch
};

struct Group {
  std::vector<int32_t> ranks;  // ascending ranks in the engine
  int index = -1;              // of this device among them, or -1
};

struct Program {
  int rank = 0;
  int64_t arenaBytes = 0;
  std::vector<int64_t> bufferBytes;  // smallest size of each bound buffer
  std::vector<View> views;
  std::vector<double> floats;
  std::vector<int32_t> table;
  std::vector<Group> groups;
  std::vector<std::string> labels;
  std::vector<Instruction> instructions;
  std::vector<OperandRef> operands;
  std::vector<int32_t> attrs;
  std::vector<Segment> segments;
  std::vector<Action> actions;
  std::vector<Transfer> transfers;
  int sends = 0;  // of one run
  int maxOperands = 0;

  // Where what collectives need besides begins in the arena.
  int64_t scratchBegin() const { return (arenaBytes + 255) / 256 * 256; }

  // The instruction's label, or its op's name.
  const char* labelOf(const Instruction& instruction) const;
};

// What a program is held against.
struct ProgramLimits {
  int rank = 0;
  int devices = 1;
  int64_t inputBytes = 0;   // of the run's input staging
  int64_t outputBytes = 0;  // of the run's output staging
};

// Decodes `words` and checks every index, extent and count, and every instruction against its kernel's check().
// The words may be anything at all. Fails with invalidProgram, or with unsupported where no kernel takes the operands.
Status decodeProgram(std::span<const int32_t> words, const ProgramLimits& limits, const Backend& backend,
                     std::unique_ptr<Program>* program);

}  // namespace meshwork
