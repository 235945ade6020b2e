// The executor of devices that run beside their host threads: it queues a whole run, then waits for it.
#pragma once
#include <vector>

#include "runtime/executor.h"
#include "runtime/segment_plan.h"

namespace meshwork {

// Kernels and copies go to the compute stream in the program's order. Collectives and messages go to the communication
// stream, after the kernels before them; what needs their results waits by an event. Nothing waits for the device on
// the host until the end of the run; ranks do wait for each other to have queued what they share.
class QueueExecutor final : public Executor {
 public:
  QueueExecutor(int device, Backend& backend, Communicator& communicator, Pool& pool, DeviceQueue& queue);
  Status run(const DeviceRun& run) override;

 private:
  static constexpr int kWarmRuns = 2;           // before a run of kernels becomes a recording
  static constexpr int kShortestRecording = 4;  // kernels
  static constexpr int kGraceMs = 10000;        // for a device to come to its end after a failure

  // Up to where the device has got, for errors: the instructions queued before an event.
  struct Mark {
    Event event = nullptr;
    int first = -1, last = -1;  // instructions; -1: something between actions
    const char* what = "";
  };
  struct Span {
    int32_t op = 0;
    const char* label = "";
    Event begin = nullptr, end = nullptr;
  };

  Status queueAll();
  void prepare();
  Status segment(const Action& action) override;
  Status kernels(const Action& action, Step& step);
  void runKernels(const Action& action, const Step& step);
  Status collective(const Action& action, int index);
  Status transfer(const Action& action) override;
  Status wait(const Action& action) override;
  void copy(const Action& action) override;

  // Makes a stream wait for what the other holds now.
  void order(Stream first, Stream then);
  void mark(Event event, int first, int last, const char* what);
  // What was measured when profiling: begin() before, end() after something is queued on a stream.
  Event beginSpan(Stream stream);
  void endSpan(Stream stream, Event begin, int32_t op, const char* label);
  void collectSpans();

  Status drain();
  Status failedAt(const Mark& mark, const Status& status) const;
  std::string describe(const Mark& mark) const;
  const char* labelOf(const Mark& mark) const;
  Status checkQueue(int first, int last);

  DeviceQueue& queue_;
  const bool recording_;  // whether runs of kernels become recordings (MESHWORK_CUDA_GRAPHS=0: not)
  QueueState* state_ = nullptr;
  Event beginning_ = nullptr;
  std::vector<Event> joins_;  // of each instruction that is a collective: when it is done
  std::vector<Event> sends_;  // of each send of this run: when the transfer is queued
  std::vector<Mark> marks_;
  std::vector<Span> spans_;
};

}  // namespace meshwork
