// The tokens of a backward pass and the scalar factors of their gradients.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/token_panels.h"

namespace wavalign::cpu {

// The tokens with a gradient, one in each lane of the backward pass. With g = dL/dlogp,
// e = dL/dentropy and l = dL/dlse:  dL/dz = (l - g) p + g onehot - e p (log p + entropy).
struct ActiveTokens {
  TokenPanels panels;
  std::vector<int64_t> source;      // lane in the forward pass
  std::vector<int64_t> target;      // vocabulary id
  std::vector<float> softmax;       // l - g, the factor of p
  std::vector<float> entropy_grad;  // e
  std::vector<float> top, log_sum;  // lse = top + log_sum
  std::vector<float> entropy;
  std::vector<float> onehot;  // dL/dz of the target's logit
  bool all = false;           // all live tokens are active, in the forward pass's lanes
  bool with_entropy = false;  // an entropy gradient is not 0
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
