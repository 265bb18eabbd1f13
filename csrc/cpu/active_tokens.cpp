#include "cpu/active_tokens.h"

#include <cmath>

namespace wavalign::cpu {

namespace {

float value_or_zero(const float* values, int64_t row) {
  return values == nullptr ? 0.f : values[row];
}

}  // namespace

ActiveTokens active_tokens(const TokenPanels& live, const at::Tensor& targets,
                           const TokenColumns& columns) {
  ActiveTokens active;
  const int64_t rows = targets.size(0);
  const auto* ids = targets.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < live.tokens(); ++n) {
    const int64_t row = live.rows[n];
    const float g = value_or_zero(columns.grad_logp, row),
                e = value_or_zero(columns.grad_entropy, row),
                l = value_or_zero(columns.grad_lse, row);
    if (g == 0.f && e == 0.f && l == 0.f) continue;
    active.panels.rows.push_back(row);
    active.source.push_back(n);
    active.target.push_back(ids[row]);
    active.softmax.push_back(l - g);
    active.entropy_grad.push_back(e);
    active.top.push_back(columns.norm[row]);
    active.log_sum.push_back(columns.norm[rows + row]);
    const float logp = columns.logp[row], entropy = columns.entropy[row];
    active.entropy.push_back(entropy);
    const float p = std::exp(logp);
    const float entropy_term = p > 0.f ? e * p * (logp + entropy) : 0.f;
    // (l - g) p + g, without the cancellation for p near 1.
    active.onehot.push_back(l * p - g * std::expm1(logp) - entropy_term);
    active.with_entropy |= e != 0.f;
  }
  active.all = active.panels.tokens() == live.tokens();
  return active;
}

}  // namespace wavalign::cpu
