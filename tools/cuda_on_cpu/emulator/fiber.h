// A stack and a place to resume at: a CUDA thread on the CPU.
#pragma once

namespace cuda_on_cpu {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Takes a stack, and makes the next `enter` begin `entry`, which must end in `leave(true)`.
  void begin(void (*entry)());
  // From the scheduler into the fiber, until it leaves.
  void enter();
  // From the fiber back to the scheduler; `last`: it will not be entered again.
  void leave(bool last);
  // Gives the stack back, once the fiber has left for good.
  void end();
  // The first thing on a new fiber's stack.
  void entered();

 private:
  char* stack_ = nullptr;
  void* stack_pointer_ = nullptr;
  void* fake_stack_ = nullptr;  // the address sanitizer's
  void* race_fiber_ = nullptr;  // the thread sanitizer's
};

// Happens-before edges for the thread sanitizer; nothing in other builds. A switch between fibers
// is no edge of its own: only what CUDA orders is ordered.
void happens_before(void* sync);
void happens_after(void* sync);

}  // namespace cuda_on_cpu
