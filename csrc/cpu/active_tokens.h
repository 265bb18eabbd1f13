// The tokens that take part in a backward pass, and the scalars of their gradients.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/token_panels.h"

namespace wavalign::cpu {

// The tokens with a gradient, in the lanes of this pass. With g = dL/dlogp, e = dL/dentropy and
// l = dL/dlse:  dL/dz = (l - g) p + g onehot - e p (log p + entropy).
struct ActiveTokens {
  TokenPanels panels;
  std::vector<int64_t> source;  // lane in the forward pass
  std::vector<int64_t> target;
  std::vector<float> softmax, entropy_grad, top, log_sum, entropy, onehot;
  bool all = false;  // every live token, in the forward's lanes
  bool with_entropy = false;
};

// Columns [T] of a backward pass; a null gradient is 0.
struct TokenColumns {
  const float *grad_logp, *grad_entropy, *grad_lse;
  const float *logp, *entropy;
  const float* norm;  // [2, T]
};

// The live tokens with a gradient that is not 0.
ActiveTokens active_tokens(const TokenPanels& live, const at::Tensor& targets,
                           const TokenColumns& columns);

}  // namespace wavalign::cpu
