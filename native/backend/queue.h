// The order of work on a device that runs beside its host thread: two streams, events between them, copies, and graphs.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/status.h"
#include "core/view.h"

namespace meshwork {

enum class Stream : int { compute = 0, communication = 1 };
constexpr int kStreams = 2;

// A point in the order of a stream; any rank's queue of the same backend may wait for it. It lasts until its queue
// begins its next run. Null stands for a point that was always reached.
using Event = void*;

// Runs of bytes moved from one layout to another: `to` + i * toPitch[0] + j * toPitch[1] gets the `bytes` bytes at
// `from` + i * fromPitch[0] + j * fromPitch[1], for i < counts[0] and j < counts[1]. Source and target do not overlap.
struct BlockCopy {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;
  int64_t bytes = 0;
  int64_t counts[2] = {1, 1};
  int64_t toPitch[2] = {0, 0};
  int64_t fromPitch[2] = {0, 0};

  bool empty() const { return bytes == 0 || counts[0] == 0 || counts[1] == 0; }
};

// Element j of row i of every output becomes the reduction of that element of all sources, in their order; f32, f64,
// i32, or bf16 and f16 by way of f32. Outputs may be among the sources, element for element.
struct BlockReduce {
  DType dtype = DType::f32;
  int32_t kind = 0;  // 0 sum, 1 max, 2 min
  std::span<const std::byte* const> sources;
  std::span<std::byte* const> outputs;
  int64_t rows = 1;
  int64_t count = 0;                         // elements of a row
  int64_t sourcePitch = 0, outputPitch = 0;  // elements from row to row
};

// One rank's part in the exchange of rows with the ranks of their experts (expert_exchange in opcodes.h), whose counts
// lie on the device and may hold anything.
struct RowExchange {
  const int32_t* counts = nullptr;  // on the device: [ranks, experts]
  std::byte* plan = nullptr;        // on the device: planBytes(), aligned to 8, for what planRows() finds
  std::span<const int32_t> owners;  // how many experts each rank has, in order
  int64_t experts = 0;
  int me = 0;
  bool back = false;
  int64_t width = 0;  // bytes of a row

  static int64_t planBytes(int64_t ranks, int64_t experts) { return (2 * ranks * experts + ranks + 1) * 8; }
};
// So many rows in a device's memory.
struct Rows {
  std::byte* data = nullptr;
  int64_t count = 0;
};
// Where a rank's rows come from: all that the other rank has, or, `packed`, only what it has for this one.
struct RowSource {
  const std::byte* data = nullptr;
  int64_t count = 0;
  bool packed = false;
};

// A recorded part of the compute stream, to be started as a whole.
struct Recording {
  virtual ~Recording() = default;
};

// Of one rank, used by its thread (which begin() binds to the device). Nothing here waits for the device but
// finish-like functions that say so. Failures do not show at once: status() tells the first one.
class DeviceQueue {
 public:
  virtual ~DeviceQueue() = default;

  // Which GPU this is: ranks with the same number share one.
  virtual int gpu() const = 0;
  // Whether kernels and copies of this device may use the memory of the other's.
  virtual bool reaches(const DeviceQueue& other) const = 0;
  // Call::device of its kernels.
  virtual void* device() = 0;
  // The stream as the backend's own libraries know it (cudaStream_t).
  virtual void* native(Stream stream) = 0;

  // Starts a run, when all work of the last one is done: binds the calling thread to the device, takes staging memory
  // for so many bytes of feeds and fetches, and gives back what was freed meanwhile.
  virtual Status begin(int64_t feedBytes, int64_t fetchBytes) = 0;
  // Ends it, begun well or not: fills the fetches' host memory, unless anything failed. All work must be done.
  virtual void end() = 0;

  // From host memory, which may go when the call returns, and to host memory, which end() fills; on the compute stream.
  virtual void feed(std::byte* to, const std::byte* from, int64_t bytes) = 0;
  virtual void fetch(std::byte* to, const std::byte* from, int64_t bytes) = 0;

  // `timed` events can be asked for seconds().
  virtual Event record(Stream stream, bool timed = false) = 0;
  virtual void wait(Stream stream, Event event) = 0;
  // Whether an event was reached; true after a failure too, which status() then tells.
  virtual bool reached(Event event) = 0;
  // From one reached timed event to another.
  virtual double seconds(Event from, Event to) = 0;

  // Between any two devices of the backend, in reach or not.
  virtual void move(Stream stream, std::byte* to, const std::byte* from, int64_t bytes) = 0;
  virtual void copy(Stream stream, std::span<const BlockCopy> blocks) = 0;
  virtual void reduce(Stream stream, const BlockReduce& blocks) = 0;
  // Finds where each rank's rows begin, for the other two.
  virtual void planRows(Stream stream, const RowExchange& exchange) = 0;
  // Slot r, with room for so many, gets this rank's rows for rank r, in their order (none where it is null); what lies
  // behind them stays.
  virtual void packRows(Stream stream, const RowExchange& exchange, const Rows& own, std::span<std::byte* const> slots,
                        int64_t room) = 0;
  // `to` gets the rows for this rank, in their order, zeros in place of those that their source has no room for, and
  // zeros behind the last.
  virtual void takeRows(Stream stream, const RowExchange& exchange, std::span<const RowSource> sources,
                        const Rows& to) = 0;

  // What is queued on the compute stream between the two is recorded, not run; null when that failed.
  virtual void beginRecording() = 0;
  virtual std::unique_ptr<Recording> endRecording() = 0;
  virtual void replay(Recording& recording) = 0;

  // The first failure of anything queued since the run began, or of the device, which it does not outlive.
  virtual Status status() const = 0;
  // Gives the device up, which does not answer: every later begin() fails with this status.
  virtual void abandon(const Status& status) = 0;
};

}  // namespace meshwork
