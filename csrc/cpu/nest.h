// The weight's gradient before it is one: where the forward pass leaves probabilities (TileStore).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace wavalign::cpu {

// A buffer of the weight's shape and type, or an empty one while another nest waits for its
// backward pass: several calls before one backward pass would hold a gradient each.
at::Tensor new_nest(const at::Tensor& weight);

// A number that no other nest of this process has or had; 0 for a tensor that is no nest, or no
// longer waits. A forward pass notes it beside what it left in the nest: autograd may hand a
// backward pass the saved tensors of another forward pass (activation checkpointing runs it twice),
// or copies of them, but always the nest of its own.
int64_t nest_number(const at::Tensor& nest);

// The nest has become a gradient; the next call may have one.
void leave_nest(const at::Tensor& nest);

}  // namespace wavalign::cpu
