// The tokens that take part in a pass, gathered into panels of GEMM lanes.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/row_kernels.h"

namespace wavalign::cpu {

constexpr int64_t kPanelLanes = 256;

// Every panel but the last has kPanelLanes lanes; the last is padded to kLaneAlign only, so a few
// live rows never cost a whole panel. Padding lanes hold zeros.
struct TokenPanels {
  std::vector<int64_t> rows;  // row of `hidden` in each lane, padding excluded

  int64_t tokens() const { return static_cast<int64_t>(rows.size()); }
  int64_t count() const { return (tokens() + kPanelLanes - 1) / kPanelLanes; }
  int64_t lanes() const { return (tokens() + kLaneAlign - 1) / kLaneAlign * kLaneAlign; }
  int64_t begin(int64_t panel) const { return panel * kPanelLanes; }
  int64_t width(int64_t panel) const { return std::min(kPanelLanes, lanes() - begin(panel)); }
};

// hidden^T as the B operand of logits^T = W hidden^T: panel p starts at begin(p) * hidden_size and
// holds [hidden_size / 2][width][2] for bf16, [hidden_size][width] for fp32.
template <typename Stored, typename Operand>
at::Tensor pack_columns(const at::Tensor& hidden, const TokenPanels& panels);

// hidden as the B operand of dW = dlogits^T hidden: panel p starts at begin(p) * hidden_size and
// holds [width / 2][hidden_size][2] for bf16, [width][hidden_size] for fp32.
template <typename Stored, typename Operand>
at::Tensor pack_tokens(const at::Tensor& hidden, const TokenPanels& panels);

}  // namespace wavalign::cpu
