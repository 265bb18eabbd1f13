// The weight's gradient before it is one: where the forward pass leaves probabilities (TileStore).
#pragma once

#include <ATen/core/Tensor.h>

namespace wavalign::cpu {

// A buffer of the weight's shape and type, or an empty one while another nest waits for its
// backward pass: several calls before one backward pass would hold a gradient each.
at::Tensor new_nest(const at::Tensor& weight);

// The nest has become a gradient; the next call may have one.
void leave_nest(const at::Tensor& nest);

}  // namespace wavalign::cpu
