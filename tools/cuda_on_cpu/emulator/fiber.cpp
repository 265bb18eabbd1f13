#include "emulator/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Defined by the build for the thread sanitizer. It instruments the kernels and not the emulator,
// whose accesses are not the kernel's.
#if defined(CUDA_ON_CPU_THREAD_SANITIZER)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* sync);
void __tsan_release(void* sync);
}
#define RACES(...) __VA_ARGS__
#else
#define RACES(...)
#endif

#if !defined(__x86_64__)
#error "the context switch is written for x86-64"
#endif

// Saves the registers that a call preserves on the stack, and the stack in *save; then goes on from
// `load`, which was saved the same way.
extern "C" void cuda_on_cpu_switch(void** save, void* load);
asm(R"(
.text
.globl cuda_on_cpu_switch
.type cuda_on_cpu_switch,@function
cuda_on_cpu_switch:
 pushq %rbp
 pushq %rbx
 pushq %r12
 pushq %r13
 pushq %r14
 pushq %r15
 movq %rsp,(%rdi)
 movq %rsi,%rsp
 popq %r15
 popq %r14
 popq %r13
 popq %r12
 popq %rbx
 popq %rbp
 ret
.size cuda_on_cpu_switch,.-cuda_on_cpu_switch
)");

namespace cuda_on_cpu {
namespace {

constexpr size_t kPage = 4096;
constexpr int kSavedRegisters = 6;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 32 * kPage;
#else
constexpr size_t kStackBytes = 8 * kPage;
#endif

struct Scheduler {
  void* stack_pointer = nullptr;
  void* race_fiber = nullptr;
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
};

Scheduler scheduler;

#if defined(CUDA_ON_CPU_THREAD_SANITIZER)
constexpr size_t kMostFinished = 4000;
std::vector<void*> finished;

void destroy_finished() {
  for (void* fiber : finished) __tsan_destroy_fiber(fiber);
  finished.clear();
}
#endif

// Stacks outlive their fibers: mapping one costs more than running a small kernel on it.
std::vector<char*> free_stacks;

char* take_stack() {
  if (!free_stacks.empty()) {
    char* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
  }
  // The page below faults when a kernel overflows its stack.
  void* memory = mmap(nullptr, kPage + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) {
    std::fputs("CUDA on CPU: no memory for stacks\n", stderr);
    std::_Exit(1);
  }
  return static_cast<char*>(memory) + kPage;
}

void give_stack(char* stack) {
  // To the thread sanitizer two fibers on one stack race; it knows fresh memory as such.
  RACES(munmap(stack - kPage, kPage + kStackBytes); return );
  free_stacks.push_back(stack);
}

}  // namespace

void Fiber::end() {
  give_stack(stack_);
  // The sanitizer reuses the numbers of destroyed fibers and takes the old and the new fiber for
  // one. So fibers stay as long as there is room for new ones.
  RACES(finished.push_back(race_fiber_));
  RACES(if (finished.size() > kMostFinished) destroy_finished());
}

void Fiber::begin(void (*entry)()) {
  stack_ = take_stack();
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
  // As if `entry` had no caller and had switched away in its first instruction.
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  stack_pointer_ = top;
  RACES(race_fiber_ = __tsan_create_fiber(0));
}

void Fiber::enter() {
  RACES(scheduler.race_fiber = __tsan_get_current_fiber());
  RACES(__tsan_switch_to_fiber(race_fiber_, 1));
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler.fake_stack, stack_, kStackBytes);
#endif
  cuda_on_cpu_switch(&scheduler.stack_pointer, stack_pointer_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler.fake_stack, nullptr, nullptr);
#endif
}

void Fiber::leave(bool last) {
  (void)last;
  RACES(__tsan_switch_to_fiber(scheduler.race_fiber, 1));
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, scheduler.stack_bottom,
                                 scheduler.stack_size);
#endif
  cuda_on_cpu_switch(&stack_pointer_, scheduler.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &scheduler.stack_bottom, &scheduler.stack_size);
#endif
}

void Fiber::entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack_bottom, &scheduler.stack_size);
#endif
}

void happens_before(void* sync) {
  (void)sync;
  RACES(__tsan_release(sync));
}

void happens_after(void* sync) {
  (void)sync;
  RACES(__tsan_acquire(sync));
}

}  // namespace cuda_on_cpu
