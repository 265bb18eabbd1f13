// Memory that outlives a call: the buffer cache and the probability buffer.
//
// The process has one of each. Both are created at first use, are thread-safe, and are never
// destroyed, because a tensor may be freed after the static objects of this library.
//
// A block of memory is owned by the tensor that cached_buffer() returned, until its last reference
// goes, and by the cache from then on. It leaves the cache when cached_buffer() reuses it or finds
// no block that fits, and on release_cached_buffers().
//
// At most one probability buffer is in use. It is in use from new_prob_buffer() until the backward
// pass has overwritten it with the gradient and calls release_prob_buffer(), or until its tensor is
// freed without a backward pass. Its memory comes from the cache and goes back there.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace wavalign::cpu {

// An uninitialised contiguous tensor of vocabulary size. Memory fresh from the system is zeroed and
// faulted in, and unmapped when it is released: for a 1 GiB gradient this takes a quarter of the
// time of the GEMMs that fill it.
at::Tensor cached_buffer(at::IntArrayRef sizes, const at::TensorOptions& options);

// Returns all cached blocks to the system, and their bytes to the caller.
int64_t release_cached_buffers();

// A gradient of `weight` that can hold probabilities until the backward pass, or an empty tensor
// while another one is in use: several forward passes before one backward pass would hold a
// gradient each.
at::Tensor new_prob_buffer(const at::Tensor& weight);

// The id of the probability buffer in use, unique in this process; 0 for any other tensor. The
// forward pass stores it beside what it writes. Activation checkpointing runs the forward pass
// twice and hands the backward pass the saved tensors of one run, or copies of them, together with
// the probability buffer of the other run; their ids then differ.
int64_t prob_buffer_id(const at::Tensor& prob_buffer);

// Marks the probability buffer as a plain gradient, so that the next call may have one.
void release_prob_buffer(const at::Tensor& prob_buffer);

}  // namespace wavalign::cpu
