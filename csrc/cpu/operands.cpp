#include "cpu/operands.h"

#include <algorithm>

namespace wavalign::cpu {

namespace {

void check_operands(const Operands& operands) {
  const at::Tensor &hidden = operands.hidden, &weight = operands.weight,
                   &targets = operands.targets;
  const std::optional<at::Tensor>& bias = operands.bias;
  TORCH_CHECK_VALUE(hidden.dim() == 2 && hidden.is_contiguous(), "hidden: want a contiguous [T, H]",
                    " tensor, got shape ", hidden.sizes());
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.is_contiguous() && weight.size(0) > 0,
                    "weight: want a contiguous [V, H] tensor with V > 0, got shape ",
                    weight.sizes());
  TORCH_CHECK_VALUE(hidden.size(1) == weight.size(1), "hidden has H = ", hidden.size(1),
                    " but weight has H = ", weight.size(1));
  TORCH_CHECK_VALUE(hidden.scalar_type() == weight.scalar_type(), "hidden is ",
                    hidden.scalar_type(), " but weight is ", weight.scalar_type());
  TORCH_CHECK_VALUE(hidden.scalar_type() == at::kFloat || hidden.scalar_type() == at::kBFloat16 ||
                        hidden.scalar_type() == at::kHalf,
                    "the cpu backend takes float32, bfloat16 or float16, got ",
                    hidden.scalar_type());
  TORCH_CHECK_VALUE(targets.dim() == 1 && targets.scalar_type() == at::kLong &&
                        targets.is_contiguous() && targets.size(0) == hidden.size(0),
                    "targets: want contiguous int64 [", hidden.size(0), "], got ",
                    targets.scalar_type(), " of shape ", targets.sizes());
  TORCH_CHECK_VALUE(!bias.has_value() || (bias->dim() == 1 && bias->size(0) == weight.size(0)),
                    "bias: want shape [", weight.size(0), "], got ", bias->sizes());
  TORCH_CHECK_VALUE(operands.temperature > 0, "temperature must be positive, got ",
                    operands.temperature);
  TORCH_CHECK_VALUE(operands.softcap > 0 || !operands.bias_inside,
                    "bias_inside: got true without a softcap to be inside of, want false");
  TORCH_CHECK_VALUE(operands.softcap >= 0, "softcap must be positive, got ", operands.softcap);
}

}  // namespace

at::Tensor Operands::bias_f32() const {
  return bias.has_value() ? bias->to(at::kFloat).contiguous() : at::Tensor();
}

TokenPanels live_tokens(const Operands& operands, bool by_target) {
  check_operands(operands);
  TokenPanels panels;
  const int64_t vocab = operands.weight.size(0);
  const auto* ids = operands.targets.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < operands.targets.size(0); ++row) {
    if (ids[row] == operands.ignore_index) continue;
    TORCH_CHECK_VALUE(ids[row] >= 0 && ids[row] < vocab, "targets[", row, "] = ", ids[row],
                      " is outside [0, ", vocab, ") and is not ignore_index ",
                      operands.ignore_index);
    panels.rows.push_back(row);
  }
  if (by_target) {
    std::stable_sort(panels.rows.begin(), panels.rows.end(),
                     [&](int64_t a, int64_t b) { return ids[a] < ids[b]; });
  }
  return panels;
}

}  // namespace wavalign::cpu
