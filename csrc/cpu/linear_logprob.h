// linear_logprob and its derivatives. bindings.cpp has the schemas of the ops and documents them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "cpu/operands.h"

namespace wavalign::cpu {

struct ForwardOptions {
  int64_t store_bytes;
  double skip_tolerance;
  bool want_prob_buffer;
};

struct ForwardResults {
  at::Tensor logp, entropy, lse, norm, store, skipped, prob_buffer;
};

ForwardResults linear_logprob(const Operands& operands, const ForwardOptions& options);

// Derivatives of the loss by the results of the forward pass, each [T]; none or undefined is 0.
struct ResultGrads {
  std::optional<at::Tensor> logp, entropy, lse;
};

// What the forward pass returned.
struct SavedResults {
  at::Tensor logp, entropy, norm, store, skipped, prob_buffer;
};

struct BackwardOperands {
  ResultGrads grads;
  Operands operands;
  SavedResults saved;
};

struct NeededGrads {
  bool hidden, weight, bias;
  // The gradient of hidden in fp32, for a caller that still adds to it.
  bool wide_hidden;
};

// Derivatives of the loss by hidden, weight and bias.
struct OperandGrads {
  at::Tensor hidden, weight, bias;
};

// The gradients that are not needed are empty.
OperandGrads linear_logprob_backward(const BackwardOperands& of, const NeededGrads& needed);

// Overwrites the probability buffer with the gradient of the weight, which is always needed.
OperandGrads linear_logprob_backward_(const BackwardOperands& of, const NeededGrads& needed);

}  // namespace wavalign::cpu
