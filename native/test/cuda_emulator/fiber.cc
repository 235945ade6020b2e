// Switching fibers: a dozen instructions on x86-64 (a block has hundreds of threads, each switched at every barrier),
// ucontext elsewhere. The sanitizers are told of every switch.
#include "test/cuda_emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace meshwork::emulator {
namespace {

#if defined(__x86_64__)
// Saves the registers a call must keep and the stack pointer in *from, takes those of `to`.
extern "C" void meshwork_fiber_switch(void** from, void* to);
// Where a new fiber begins: calls r13 with r12 as its argument.
extern "C" void meshwork_fiber_begin();
asm(R"(
.text
.globl meshwork_fiber_switch
.hidden meshwork_fiber_switch
.type meshwork_fiber_switch,@function
meshwork_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size meshwork_fiber_switch,.-meshwork_fiber_switch
.globl meshwork_fiber_begin
.hidden meshwork_fiber_begin
.type meshwork_fiber_begin,@function
meshwork_fiber_begin:
  movq %r12, %rdi
  callq *%r13
  ud2
.size meshwork_fiber_begin,.-meshwork_fiber_begin
)");
#endif

}  // namespace

Fiber::Fiber() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  mapped_ = kStackBytes + page;
  void* base = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    std::fprintf(stderr, "cuda emulator: no memory for a fiber's stack\n");
    std::abort();
  }
  mprotect(base, page, PROT_NONE);
  stack_ = static_cast<char*>(base) + page;
#if !defined(__x86_64__)
  context_[0] = std::malloc(sizeof(ucontext_t));
  context_[1] = std::malloc(sizeof(ucontext_t));
#endif
#if defined(__SANITIZE_THREAD__)
  sanitizer_[0] = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if !defined(__x86_64__)
  std::free(context_[0]);
  std::free(context_[1]);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_destroy_fiber(sanitizer_[0]);
#endif
  munmap(stack_ + kStackBytes - mapped_, mapped_);
}

void Fiber::start(Body body, void* context) {
  body_ = body;
  argument_ = context;
  idle_ = finished_;
  finished_ = false;
  if (!fresh_ && idle_) return;  // enter() waits between two bodies and takes the new one
  fresh_ = false;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
#if defined(__x86_64__)
  auto* top = reinterpret_cast<void**>(stack_ + kStackBytes);
  *--top = nullptr;
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(meshwork_fiber_begin);  // returned to with the stack aligned to 16 bytes
  *--top = nullptr;                                        // rbp
  *--top = nullptr;                                        // rbx
  *--top = this;                                           // r12
  *--top = reinterpret_cast<void*>(&Fiber::enter);         // r13
  *--top = nullptr;                                        // r14
  *--top = nullptr;                                        // r15
  context_[0] = top;
#else
  auto* state = static_cast<ucontext_t*>(context_[0]);
  getcontext(state);
  state->uc_stack.ss_sp = stack_;
  state->uc_stack.ss_size = kStackBytes;
  state->uc_link = nullptr;
  const auto address = reinterpret_cast<uintptr_t>(this);
  const auto entry =
      +[](unsigned high, unsigned low) { enter(reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low)); };
  makecontext(state, reinterpret_cast<void (*)()>(entry), 2, static_cast<unsigned>(address >> 32),
              static_cast<unsigned>(address));
#endif
}

void Fiber::enter(Fiber* fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, const_cast<const void**>(&fiber->sanitizer_[2]),
                                  reinterpret_cast<size_t*>(&fiber->sanitizer_[3]));
#endif
  for (;;) {
    fiber->body_(fiber->argument_);
    fiber->finished_ = true;
    fiber->switchTo(false);
  }
}

void Fiber::switchTo(bool intoFiber) {
#if defined(__SANITIZE_ADDRESS__)
  void** save = &sanitizer_[intoFiber ? 0 : 1];
  if (intoFiber) {
    __sanitizer_start_switch_fiber(save, stack_, kStackBytes);
  } else {
    __sanitizer_start_switch_fiber(save, sanitizer_[2], reinterpret_cast<size_t>(sanitizer_[3]));
  }
#endif
#if defined(__SANITIZE_THREAD__)
  if (intoFiber) sanitizer_[1] = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(sanitizer_[intoFiber ? 0 : 1], 0);
#endif
#if defined(__x86_64__)
  meshwork_fiber_switch(&context_[intoFiber ? 1 : 0], context_[intoFiber ? 0 : 1]);
#else
  swapcontext(static_cast<ucontext_t*>(context_[intoFiber ? 1 : 0]),
              static_cast<ucontext_t*>(context_[intoFiber ? 0 : 1]));
#endif
#if defined(__SANITIZE_ADDRESS__)
  if (intoFiber) {
    __sanitizer_finish_switch_fiber(*save, nullptr, nullptr);
  } else {
    __sanitizer_finish_switch_fiber(*save, const_cast<const void**>(&sanitizer_[2]),
                                    reinterpret_cast<size_t*>(&sanitizer_[3]));
  }
#endif
}

void Fiber::resume() { switchTo(true); }
void Fiber::pause() { switchTo(false); }

}  // namespace meshwork::emulator
