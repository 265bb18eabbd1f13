#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "cpu/active_tokens.h"
#include "cpu/backward.h"
#include "cpu/buffers.h"
#include "cpu/linear_logprob.h"

namespace wavalign::cpu {

namespace {

at::Tensor contiguous_f32(const std::optional<at::Tensor>& grad) {
  return grad.has_value() && grad->defined() ? grad->to(at::kFloat).contiguous() : at::Tensor();
}

const float* data_or_null(const at::Tensor& column) {
  return column.defined() ? column.const_data_ptr<float>() : nullptr;
}

// Writes the gradients that are defined.
void write_gradients(const BackwardOperands& of, const OperandGrads& out) {
  const TokenPanels live = live_tokens(of.operands, /*by_target=*/of.saved.skipped.numel() > 0);
  const at::Tensor grad_logp = contiguous_f32(of.grads.logp),
                   grad_entropy = contiguous_f32(of.grads.entropy),
                   grad_lse = contiguous_f32(of.grads.lse);
  const ActiveTokens active = active_tokens(
      live, of.operands.targets,
      {data_or_null(grad_logp), data_or_null(grad_entropy), data_or_null(grad_lse),
       data_or_null(of.saved.logp), data_or_null(of.saved.entropy), data_or_null(of.saved.norm)});
  if (active.panels.tokens() == 0) {
    if (out.weight.defined()) out.weight.zero_();
    return;
  }
  // The tolerance bounds the skipped mass of p. An entropy gradient multiplies p by log p, for
  // which that is no bound, so it skips nothing.
  const SkipTable skip(active.with_entropy ? at::Tensor() : of.saved.skipped);
  run_backward({of.operands, of.operands.bias_f32(), live, active, of.saved.store,
                of.saved.prob_buffer, skip, out});
}

OperandGrads new_gradients(const Operands& operands, const NeededGrads& needed) {
  OperandGrads grads;
  if (needed.hidden) {
    const auto type = needed.wide_hidden ? at::kFloat : operands.hidden.scalar_type();
    grads.hidden = at::zeros(operands.hidden.sizes(), operands.hidden.options().dtype(type));
  }
  if (needed.bias) {
    const at::Tensor& weight = operands.weight;
    grads.bias = at::zeros({weight.size(0)}, weight.options().dtype(at::kFloat));
  }
  return grads;
}

// An op cannot return an undefined tensor, so a missing gradient is empty.
at::Tensor returned(const at::Tensor& grad, const at::Tensor& like) {
  return grad.defined() ? grad : at::empty({0}, like.options());
}

OperandGrads returned(const OperandGrads& grads, const Operands& operands) {
  const at::Tensor& like_bias = operands.bias.value_or(operands.hidden);
  at::Tensor bias = returned(grads.bias, like_bias).to(like_bias.scalar_type());
  return {returned(grads.hidden, operands.hidden), returned(grads.weight, operands.weight), bias};
}

}  // namespace

OperandGrads linear_logprob_backward(const BackwardOperands& of, const NeededGrads& needed) {
  OperandGrads grads = new_gradients(of.operands, needed);
  const at::Tensor& weight = of.operands.weight;
  if (needed.weight) grads.weight = cached_buffer(weight.sizes(), weight.options());
  write_gradients(of, grads);
  return returned(grads, of.operands);
}

OperandGrads linear_logprob_backward_(const BackwardOperands& of, const NeededGrads& needed) {
  OperandGrads grads = new_gradients(of.operands, needed);
  grads.weight = of.saved.prob_buffer;
  write_gradients(of, grads);
  release_prob_buffer(of.saved.prob_buffer);
  return returned(grads, of.operands);
}

}  // namespace wavalign::cpu
