// The backward pass: gradients of hidden, weight and bias, tile by tile of the vocabulary.
#pragma once

#include <ATen/core/Tensor.h>

#include "cpu/active_tokens.h"
#include "cpu/linear_logprob.h"
#include "cpu/operands.h"
#include "cpu/skipping.h"
#include "cpu/token_panels.h"

namespace wavalign::cpu {

struct BackwardPass {
  const Operands& operands;
  at::Tensor bias;                // fp32, or undefined
  const TokenPanels& live;        // the lanes of the forward pass
  const ActiveTokens& active;     // the tokens with a gradient, in the lanes of this pass
  at::Tensor store, prob_buffer;  // from the forward pass, see prob_store.h
  SkipTable skip;
  OperandGrads grads;  // the places of the gradients; undefined where none is needed
};

// Writes the gradients. Those of hidden and bias must be zeros before. At least one token is
// active.
void run_backward(const BackwardPass& pass);

}  // namespace wavalign::cpu
