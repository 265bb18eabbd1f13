#include "cpu/nest.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <atomic>

#include "cpu/recycled.h"

namespace wavalign::cpu {

namespace {

// The memory of the nest that waits.
std::atomic<void*> waiting{nullptr};

void leave(void* memory) { waiting.compare_exchange_strong(memory, nullptr); }

}  // namespace

at::Tensor new_nest(const at::Tensor& weight) {
  if (waiting.load() != nullptr) return at::empty({0}, weight.options());
  const at::Tensor buffer = recycled(weight.sizes(), weight.options());
  void* expected = nullptr;
  if (!waiting.compare_exchange_strong(expected, buffer.data_ptr())) {
    return at::empty({0}, weight.options());
  }
  // Without a backward pass it is left where it is released.
  const auto release = [buffer](void* memory) { leave(memory); };
  return at::from_blob(buffer.data_ptr(), buffer.sizes(), release, buffer.options());
}

void leave_nest(const at::Tensor& nest) { leave(nest.data_ptr()); }

}  // namespace wavalign::cpu
