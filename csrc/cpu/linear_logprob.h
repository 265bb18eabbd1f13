// The two ops behind `linear_logprob`; schemas and documentation are in bindings.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "cpu/token_panels.h"

namespace wavalign::cpu {

using ForwardResults =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

ForwardResults linear_logprob(const at::Tensor& hidden, const at::Tensor& weight,
                              const at::Tensor& targets, const std::optional<at::Tensor>& bias,
                              double temperature, int64_t ignore_index, int64_t store_bytes,
                              double skip_tolerance, bool want_prob_buffer);

std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_logprob_backward(
    const std::optional<at::Tensor>& grad_logp, const std::optional<at::Tensor>& grad_entropy,
    const std::optional<at::Tensor>& grad_lse, const at::Tensor& hidden, const at::Tensor& weight,
    const at::Tensor& targets, const std::optional<at::Tensor>& bias, double temperature,
    int64_t ignore_index, const at::Tensor& logp, const at::Tensor& entropy, const at::Tensor& norm,
    const at::Tensor& store, const at::Tensor& skipped, const at::Tensor& prob_buffer,
    bool need_hidden, bool need_weight, bool need_bias);

std::tuple<at::Tensor, at::Tensor> linear_logprob_backward_(
    const std::optional<at::Tensor>& grad_logp, const std::optional<at::Tensor>& grad_entropy,
    const std::optional<at::Tensor>& grad_lse, const at::Tensor& hidden, const at::Tensor& weight,
    const at::Tensor& targets, const std::optional<at::Tensor>& bias, double temperature,
    int64_t ignore_index, const at::Tensor& logp, const at::Tensor& entropy, const at::Tensor& norm,
    const at::Tensor& store, const at::Tensor& skipped, at::Tensor prob_buffer, bool need_hidden,
    bool need_bias);

// The rows whose target is not `ignore_index`, after a check of everything the caller can get
// wrong. By target id instead of by row, so that tokens of one modality are neighbours, where the
// gradients skip what only some of the tokens need.
TokenPanels live_tokens(const at::Tensor& hidden, const at::Tensor& weight,
                        const at::Tensor& targets, const std::optional<at::Tensor>& bias,
                        double temperature, int64_t ignore_index, bool by_target);

}  // namespace wavalign::cpu
