// The operands of linear_logprob, forward and backward.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "cpu/token_panels.h"

namespace wavalign::cpu {

// Of log softmax(z) at the targets, with z = cap(hidden weight^T) / temperature + bias, or if
// bias_inside z = cap(hidden weight^T + bias) / temperature.
struct Operands {
  at::Tensor hidden;               // [T, H]
  at::Tensor weight;               // [V, H], in the type of hidden
  at::Tensor targets;              // [T] int64
  std::optional<at::Tensor> bias;  // [V]
  double temperature;
  int64_t ignore_index;  // rows with this target take no part
  double softcap = 0;    // c of cap(x) = c tanh(x / c); 0: cap(x) = x
  bool bias_inside = false;

  // Contiguous, or undefined without a bias.
  at::Tensor bias_f32() const;
};

// The rows whose target is not `ignore_index`, after a check of all operands. They are sorted by
// row, or by target: then the tokens of a modality are neighbours, and the backward pass can skip
// vocabulary tiles for whole groups of lanes.
TokenPanels live_tokens(const Operands& operands, bool by_target);

}  // namespace wavalign::cpu
