// Runs a program on one device: the loop over its actions.
#pragma once
#include <atomic>
#include <chrono>
#include <map>
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
    int64_t bytes = 0;  // of the whole tensor, as the rank sees it: the larger of x and y (expert_exchange: its own rows)
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

// One device's view of a run.
struct DeviceRun {
  const Program* program = nullptr;
  std::span<CommunicatorGroup* const> groups;  // the communicator's, of each of the program's groups
  std::byte* arena = nullptr;
  std::span<std::byte* const> buffers;
  const std::byte* input = nullptr;
  std::byte* output = nullptr;
  std::atomic<Fate>* fate = nullptr;
  bool unbuffered = false;
  std::chrono::steady_clock::time_point begin;
  std::vector<ProfileEvent>* profile = nullptr;  // null: none wanted
};

// Lives as long as the device's thread.
class Executor {
 public:
  Executor(int device, Backend& backend, Communicator& communicator, Pool& pool)
      : device_(device), backend_(backend), communicator_(communicator), pool_(pool) {}

  // Returns the first failure seen by this device; the communicator knows the run's.
  Status run(const DeviceRun& run);

  const Counters& counters() const { return counters_; }  // not while a run is on

 private:
  Status action(const Action& action);
  Status segment(const Action& action);
  bool commit();
  void kernel(const Instruction& instruction, const int32_t* table, int tableCount);
  Status collective(const Instruction& instruction, const int32_t* table);
  Status transfer(const Action& action);
  void copy(const Action& action);
  Operand operand(const OperandRef& ref) const;
  double now() const;
  void record(int32_t op, const char* label, double begin);

  const int device_;
  Backend& backend_;
  Communicator& communicator_;
  Pool& pool_;
  Counters counters_;
  const DeviceRun* run_ = nullptr;
  std::vector<std::byte*> bases_;  // of every region
  std::vector<Operand> operands_;        // of the running instruction
  std::vector<Collective> collectives_;  // of the running instruction: one a tensor
  int posted_ = 0;                 // sends of this run
};

}  // namespace meshwork
