#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "cpu/backward_pass.h"
#include "cpu/buffers.h"
#include "cpu/linear_logprob.h"

namespace wavalign::cpu {

namespace {

const float* data_of(const std::optional<at::Tensor>& grad, at::Tensor& contiguous) {
  if (!grad.has_value() || !grad->defined()) return nullptr;
  contiguous = grad->to(at::kFloat).contiguous();
  return contiguous.const_data_ptr<float>();
}

// Everything of a call but its gradients' places.
struct Operands {
  const std::optional<at::Tensor>&grad_logp, &grad_entropy, &grad_lse;
  const at::Tensor &hidden, &weight, &targets;
  const std::optional<at::Tensor>& bias;
  double temperature;
  int64_t ignore_index;
  const at::Tensor &logp, &entropy, &norm, &store, &skipped, &prob_buffer;
};

// Writes the gradients that are defined.
void gradients(const Operands& of, at::Tensor& grad_hidden, at::Tensor& grad_weight,
               at::Tensor& grad_bias) {
  const TokenPanels live = live_tokens(of.hidden, of.weight, of.targets, of.bias, of.temperature,
                                       of.ignore_index, of.skipped.numel() > 0);
  at::Tensor logp_grad, entropy_grad, lse_grad;
  const ActiveTokens active = active_tokens(
      live, of.targets, data_of(of.grad_logp, logp_grad), data_of(of.grad_entropy, entropy_grad),
      data_of(of.grad_lse, lse_grad), of.logp.const_data_ptr<float>(),
      of.entropy.const_data_ptr<float>(), of.norm.const_data_ptr<float>());
  if (active.panels.tokens() == 0) {
    if (grad_weight.defined()) grad_weight.zero_();
    return;
  }
  const at::Tensor bias_f32 =
      of.bias.has_value() ? of.bias->to(at::kFloat).contiguous() : at::Tensor();
  // Its bound is one on p; an entropy's gradient weighs p with its own logarithm.
  const SkipTable skip(active.with_entropy ? at::Tensor() : of.skipped);
  with_operand_types(of.weight, [&](auto stored, auto operand) {
    const auto store = readable_store<decltype(operand)>(of.store, of.prob_buffer, live,
                                                         VocabTiles{of.weight.size(0)});
    Backward<decltype(stored), decltype(operand)>(of.hidden, of.weight, bias_f32, of.temperature,
                                                  live, active, store, skip, grad_hidden,
                                                  grad_weight, grad_bias)
        .run();
  });
}

at::Tensor hidden_gradient(const at::Tensor& hidden, bool needed) {
  return needed ? at::zeros_like(hidden) : at::Tensor();
}

at::Tensor bias_gradient(const at::Tensor& weight, bool needed) {
  if (!needed) return at::Tensor();
  return at::zeros({weight.size(0)}, weight.options().dtype(at::kFloat));
}

// An op returns tensors, needed or not.
at::Tensor present(const at::Tensor& grad, const at::Tensor& like) {
  return grad.defined() ? grad.to(like.scalar_type()) : at::empty({0}, like.options());
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_logprob_backward(
    const std::optional<at::Tensor>& grad_logp, const std::optional<at::Tensor>& grad_entropy,
    const std::optional<at::Tensor>& grad_lse, const at::Tensor& hidden, const at::Tensor& weight,
    const at::Tensor& targets, const std::optional<at::Tensor>& bias, double temperature,
    int64_t ignore_index, const at::Tensor& logp, const at::Tensor& entropy, const at::Tensor& norm,
    const at::Tensor& store, const at::Tensor& skipped, const at::Tensor& prob_buffer,
    bool need_hidden, bool need_weight, bool need_bias) {
  at::Tensor grad_hidden = hidden_gradient(hidden, need_hidden),
             grad_bias = bias_gradient(weight, need_bias), grad_weight;
  if (need_weight) grad_weight = cached_buffer(weight.sizes(), weight.options());
  gradients({grad_logp, grad_entropy, grad_lse, hidden, weight, targets, bias, temperature,
             ignore_index, logp, entropy, norm, store, skipped, prob_buffer},
            grad_hidden, grad_weight, grad_bias);
  return {present(grad_hidden, hidden), present(grad_weight, weight),
          present(grad_bias, bias.value_or(hidden))};
}

std::tuple<at::Tensor, at::Tensor> linear_logprob_backward_(
    const std::optional<at::Tensor>& grad_logp, const std::optional<at::Tensor>& grad_entropy,
    const std::optional<at::Tensor>& grad_lse, const at::Tensor& hidden, const at::Tensor& weight,
    const at::Tensor& targets, const std::optional<at::Tensor>& bias, double temperature,
    int64_t ignore_index, const at::Tensor& logp, const at::Tensor& entropy, const at::Tensor& norm,
    const at::Tensor& store, const at::Tensor& skipped, at::Tensor prob_buffer, bool need_hidden,
    bool need_bias) {
  at::Tensor grad_hidden = hidden_gradient(hidden, need_hidden),
             grad_bias = bias_gradient(weight, need_bias);
  gradients({grad_logp, grad_entropy, grad_lse, hidden, weight, targets, bias, temperature,
             ignore_index, logp, entropy, norm, store, skipped, prob_buffer},
            grad_hidden, prob_buffer, grad_bias);
  release_prob_buffer(prob_buffer);
  return {present(grad_hidden, hidden), present(grad_bias, bias.value_or(hidden))};
}

}  // namespace wavalign::cpu
