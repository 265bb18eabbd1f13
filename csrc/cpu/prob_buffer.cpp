#include "cpu/prob_buffer.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <mutex>

#include "cpu/buffer_cache.h"

namespace wavalign::cpu {

namespace {

std::mutex mutex;
// Memory of the probability buffer that waits.
void* waiting = nullptr;
// Of the newest probability buffer.
int64_t number = 0;

bool take(void* memory) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (waiting != nullptr) return false;
  waiting = memory;
  ++number;
  return true;
}

void leave(void* memory) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (waiting == memory) waiting = nullptr;
}

bool taken() {
  const std::lock_guard<std::mutex> lock(mutex);
  return waiting != nullptr;
}

}  // namespace

at::Tensor new_prob_buffer(const at::Tensor& weight) {
  if (taken()) return at::empty({0}, weight.options());
  const at::Tensor buffer = cached_buffer(weight.sizes(), weight.options());
  if (!take(buffer.data_ptr())) return at::empty({0}, weight.options());
  // Without a backward pass it is left where it is released.
  const auto release = [buffer](void* memory) { leave(memory); };
  return at::from_blob(buffer.data_ptr(), buffer.sizes(), release, buffer.options());
}

int64_t prob_buffer_id(const at::Tensor& prob_buffer) {
  if (prob_buffer.numel() == 0) return 0;
  const std::lock_guard<std::mutex> lock(mutex);
  return prob_buffer.data_ptr() == waiting ? number : 0;
}

void release_prob_buffer(const at::Tensor& prob_buffer) { leave(prob_buffer.data_ptr()); }

}  // namespace wavalign::cpu
