// Runs a program on one device: the loop over its actions. host_executor.cc for kernels that are done when they return,
// queue_executor.cc for devices that run beside their host threads.
#pragma once
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "collective/collective.h"
#include "runtime/pool.h"
#include "runtime/program.h"

namespace meshwork {

// What a device has done since it was opened.
struct Counters {
  struct Traffic {
    int64_t calls = 0;
    // of the whole tensor, as the rank sees it: the larger of x and y (expert_exchange: its own rows)
    int64_t bytes = 0;
  };
  int64_t runs = 0;
  std::vector<int64_t> instructions = std::vector<int64_t>(kOpCount);  // by opcode
  std::map<std::pair<int, int>, Traffic> collectives;                  // by opcode and group size
  Traffic sends;
};

// One instruction or wait, seconds since the run began.
struct ProfileEvent {
  int device = 0;
  int32_t op = 0;  // opcode; 0 for a wait between actions: transfer, feed, fetch
  std::string label;
  double begin = 0;
  double end = 0;
};

// Whether a run may still be given up: not once any device writes what outlives the run, so that a run changes all of
// its bound buffers or none.
enum class Fate : int { open, committed, cancelled };

// What an executor keeps of one loaded program from run to run.
struct ProgramState {
  virtual ~ProgramState() = default;
};

// One device's view of a run.
struct DeviceRun {
  const Program* program = nullptr;
  std::span<CommunicatorGroup* const> groups;  // the communicator's, of each of the program's groups
  int knownGroups = 0;                         // how many the communicator had when the program was loaded
  std::unique_ptr<ProgramState>* state = nullptr;
  std::byte* arena = nullptr;
  std::span<std::byte* const> buffers;
  const std::byte* input = nullptr;
  std::byte* output = nullptr;
  std::atomic<Fate>* fate = nullptr;
  bool unbuffered = false;
  int64_t timeoutMs = 0;
  std::chrono::steady_clock::time_point begin;
  std::vector<ProfileEvent>* profile = nullptr;  // null: none wanted
};

// Lives as long as the device's thread, which alone calls run().
class Executor {
 public:
  Executor(int device, Backend& backend, Communicator& communicator, Pool& pool)
      : device_(device), backend_(backend), communicator_(communicator), pool_(pool) {}
  virtual ~Executor() = default;

  // Returns the first failure seen by this device; the communicator knows the run's.
  virtual Status run(const DeviceRun& run) = 0;

  const Counters& counters() const { return counters_; }  // not while a run is on

 protected:
  // Goes through the run's actions, then waits until all that it sent is received.
  Status runActions();
  virtual Status segment(const Action& action) = 0;
  virtual Status transfer(const Action& action) = 0;
  virtual Status wait(const Action& action) = 0;
  virtual void copy(const Action& action) = 0;  // feed and fetch

  // Sets the bases of all regions but slot and input; then those, for a `run` action.
  void start(const DeviceRun& run);
  void moveTo(const Action& action);
  Operand operand(const OperandRef& ref) const;
  // An instruction as its kernel sees it; the operands live until the next call. callOf() counts it too.
  Call shapeOf(const Instruction& instruction, const Action& action);
  Call callOf(const Instruction& instruction, const Action& action);
  // One call for each tensor that the instruction exchanges; they live until the next call.
  std::span<const Collective> collectivesOf(const Instruction& instruction, const Action& action);
  CommunicatorGroup& groupOf(const Instruction& instruction, const Action& action) const;
  Message messageOf(const Transfer& transfer) const;
  // Before an instruction that writes what outlives the run: false when the run was cancelled before any device did.
  bool commit();
  // Counts a send.
  void countSend(const Message& message);

  const int device_;
  Backend& backend_;
  Communicator& communicator_;
  Pool& pool_;
  const DeviceRun* run_ = nullptr;
  std::vector<std::byte*> bases_;  // of every region
  int posted_ = 0;                 // sends of this run

 private:
  Status action(const Action& action);
  size_t groupIndex(const Instruction& instruction, const Action& action) const;

  Counters counters_;
  std::vector<Operand> operands_;        // of the running instruction
  std::vector<Collective> collectives_;  // of the running instruction: one a tensor
};

// What a collective instruction, run with the table from `table` on, says of the tensor with a number: all but memory
// and label.
Collective collectiveAt(const Program& program, const Instruction& instruction, int tensor, int32_t table);

std::unique_ptr<Executor> makeExecutor(int device, Backend& backend, Communicator& communicator, Pool& pool);

}  // namespace meshwork
