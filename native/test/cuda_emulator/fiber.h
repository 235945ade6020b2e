// Fibers: stacks that one thread of the operating system switches between, for the emulator's CUDA threads.
#pragma once
#include <cstddef>

namespace meshwork::emulator {

// A fiber runs its body again and again: each resume() goes on until the body calls pause() or returns. Never destroyed
// while its body is half way, unless whatever the body holds may be forgotten.
class Fiber {
 public:
  using Body = void (*)(void* context);
  static constexpr size_t kStackBytes = size_t{256} << 10;

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next resume() start `body` from its beginning; what the last one had not finished is forgotten.
  void start(Body body, void* context);
  // Called by the scheduler: runs the fiber until it pauses or its body returns.
  void resume();
  // Called inside of the fiber: back to the scheduler.
  void pause();
  bool finished() const { return finished_; }

 private:
  [[noreturn]] static void enter(Fiber* fiber);
  void switchTo(bool intoFiber);

  char* stack_ = nullptr;  // the lowest address; below it a page that may not be touched
  size_t mapped_ = 0;
  void* context_[2] = {};  // saved state: of the fiber, of its scheduler
  Body body_ = nullptr;
  void* argument_ = nullptr;
  bool finished_ = true;
  bool fresh_ = true;
  bool idle_ = true;  // the last body had returned when this one was given
  void* sanitizer_[4] = {};
};

}  // namespace meshwork::emulator
