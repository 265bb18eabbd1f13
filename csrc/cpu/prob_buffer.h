// The weight's gradient before it is one: where the forward pass leaves probabilities (TileStore).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace wavalign::cpu {

// A buffer of the weight's shape and type, or an empty one while another probability buffer waits
// for its backward pass: several calls before one backward pass would hold a gradient each.
at::Tensor new_prob_buffer(const at::Tensor& weight);

// A number that no other probability buffer of this process has or had; 0 for a tensor that is no
// probability buffer, or no longer waits. A forward pass notes it beside what it left in the
// probability buffer: autograd may hand a backward pass the saved tensors of another forward pass
// (activation checkpointing runs it twice), or copies of them, but always the probability buffer of
// its own.
int64_t prob_buffer_id(const at::Tensor& prob_buffer);

// The probability buffer has become a gradient; the next call may have one.
void release_prob_buffer(const at::Tensor& prob_buffer);

}  // namespace wavalign::cpu
