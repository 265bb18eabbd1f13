// Vocabulary-sized buffers that go from one call to the next instead of back to the system.
#pragma once

#include <ATen/core/Tensor.h>

namespace wavalign::cpu {

// An uninitialised contiguous tensor. A buffer of this size would come fresh from the kernel at
// every call and go back when it is released: zeroing, faults and unmapping of a 1 GiB gradient
// take a quarter of the time of the products that fill it. So a released buffer waits here for
// the next call that wants one of its size; one that fits nothing asked for is given back.
at::Tensor cached_buffer(at::IntArrayRef sizes, const at::TensorOptions& options);

// Gives all waiting buffers back to the system; returns their bytes.
int64_t release_cached_buffers();

}  // namespace wavalign::cpu
