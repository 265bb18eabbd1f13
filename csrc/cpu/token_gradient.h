// The hybrid loss's derivatives by the log-probs of its tokens; the schema is in bindings.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace wavalign::cpu {

at::Tensor token_gradient(const at::Tensor& logp, const at::Tensor& policy_coef,
                          const at::Tensor& advantage, const at::Tensor& kl_coef,
                          const at::Tensor& anchor_coef, const std::optional<at::Tensor>& old_logp,
                          const std::optional<at::Tensor>& ref_logp, double clip_low,
                          double clip_high);

}  // namespace wavalign::cpu
