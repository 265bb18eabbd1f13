// The tokens of a pass, gathered into panels of GEMM lanes.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/row_kernels.h"

namespace wavalign::cpu {

constexpr int64_t kPanelLanes = 256;

// Each panel has kPanelLanes lanes. The last one has as many as its tokens need, padded to a
// multiple of kLaneAlign, so that a few live rows do not cost a whole panel. Padding is zero.
struct TokenPanels {
  std::vector<int64_t> rows;  // the row of `hidden` in each lane, without padding

  int64_t tokens() const { return static_cast<int64_t>(rows.size()); }
  int64_t count() const { return (tokens() + kPanelLanes - 1) / kPanelLanes; }
  int64_t lanes() const { return (tokens() + kLaneAlign - 1) / kLaneAlign * kLaneAlign; }
  int64_t begin(int64_t panel) const { return panel * kPanelLanes; }
  int64_t width(int64_t panel) const { return std::min(kPanelLanes, lanes() - begin(panel)); }
};

// hidden^T as the B operand of logits^T = W hidden^T. Panel p starts at begin(p) * hidden_size and
// has the shape [hidden_size / 2][width][2] in bf16, [hidden_size][width] in fp32.
template <typename Stored, typename Operand>
at::Tensor pack_columns(const at::Tensor& hidden, const TokenPanels& panels);

// hidden as the B operand of dW = dlogits^T hidden. Panel p starts at begin(p) * hidden_size and
// has the shape [width / 2][hidden_size][2] in bf16, [width][hidden_size] in fp32.
template <typename Stored, typename Operand>
at::Tensor pack_tokens(const at::Tensor& hidden, const TokenPanels& panels);

}  // namespace wavalign::cpu
