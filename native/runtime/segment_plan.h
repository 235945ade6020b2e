// How a segment is queued on a device: runs of kernels, collectives, and where the compute stream must wait for them.
#pragma once
#include <array>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "backend/queue.h"
#include "runtime/executor.h"

namespace meshwork {

struct Step {
  enum class Kind {
    kernels,     // instructions [begin, end), on the compute stream
    collective,  // instruction `begin`, on the communication stream, after all kernels before it
    join         // the compute stream waits for the collective that is instruction `begin`, and for those before it
  };
  Kind kind = Kind::kernels;
  int begin = 0, end = 0;
  bool keeps = false;                    // writes what outlives the run
  int runs = 0;                          // of kernels: how often they ran one by one
  std::unique_ptr<Recording> recording;  // of kernels: made after kWarmRuns runs
};

struct SegmentPlan {
  std::vector<Step> steps;
};

// `bases` are the addresses of the program's regions in this run. A collective's result is waited for where the first
// kernel reads it or writes to its operands, else at the segment's end, so that it runs beside the kernels between.
SegmentPlan planSegment(const Program& program, const Segment& segment, const std::vector<std::byte*>& bases);

// What the queue executor keeps of a program: valid for one set of addresses.
struct QueueState final : ProgramState {
  using Key = std::tuple<int32_t, std::array<int64_t, kSlots>, int32_t>;  // a run action: segment, slots, table
  bool prepared = false;
  std::vector<std::byte*> bases;  // of the arena and the buffers
  std::map<Key, SegmentPlan> segments;
};

}  // namespace meshwork
