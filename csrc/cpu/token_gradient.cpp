#include "cpu/token_gradient.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>

#include "common/token_math.h"

namespace wavalign::cpu {

namespace {

const double* column(const char* name, const at::Tensor& table, const at::Tensor& logp) {
  TORCH_CHECK_VALUE(table.scalar_type() == at::kDouble && table.is_contiguous() &&
                        table.sizes() == logp.sizes() && table.dim() == 1,
                    name, ": want contiguous float64 ", logp.sizes(), ", got ", table.scalar_type(),
                    " of shape ", table.sizes());
  return table.const_data_ptr<double>();
}

const double* column(const char* name, const std::optional<at::Tensor>& table,
                     const at::Tensor& logp) {
  return table.has_value() ? column(name, *table, logp) : nullptr;
}

}  // namespace

at::Tensor token_gradient(const at::Tensor& logp, const at::Tensor& policy_coef,
                          const at::Tensor& advantage, const at::Tensor& kl_coef,
                          const at::Tensor& anchor_coef, const std::optional<at::Tensor>& old_logp,
                          const std::optional<at::Tensor>& ref_logp, double clip_low,
                          double clip_high) {
  const double *of_token = column("logp", logp, logp),
               *policy = column("policy_coef", policy_coef, logp),
               *gain = column("advantage", advantage, logp), *kl = column("kl_coef", kl_coef, logp),
               *anchor = column("anchor_coef", anchor_coef, logp),
               *old = column("old_logp", old_logp, logp), *ref = column("ref_logp", ref_logp, logp);
  at::Tensor gradient = at::empty_like(logp);
  auto* out = gradient.data_ptr<double>();
  const ClipBounds<double> clip{clip_low, clip_high};
  at::parallel_for(0, logp.numel(), 4096, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      const TokenTerms<double> terms{policy[n],
                                     gain[n],
                                     kl[n],
                                     anchor[n],
                                     old == nullptr ? 0.0 : old[n],
                                     ref == nullptr ? 0.0 : ref[n],
                                     old != nullptr,
                                     ref != nullptr};
      out[n] = wavalign::token_gradient(of_token[n], terms, clip);
    }
  });
  return gradient;
}

}  // namespace wavalign::cpu
