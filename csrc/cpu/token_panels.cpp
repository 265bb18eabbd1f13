#include "cpu/token_panels.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Half.h>

#include <type_traits>

namespace wavalign::cpu {

namespace {

template <typename Operand>
at::Tensor packed_buffer(const TokenPanels& panels, int64_t hidden_size) {
  return at::zeros({panels.lanes() * hidden_size}, c10::CppTypeToScalarType<Operand>::value);
}

}  // namespace

template <typename Stored, typename Operand>
at::Tensor pack_columns(const at::Tensor& hidden, const TokenPanels& panels) {
  // In bf16, a pair along the reduction is one 32-bit element of the transpose.
  constexpr bool kPairs = std::is_same_v<Operand, c10::BFloat16>;
  using Element = std::conditional_t<kPairs, uint32_t, Operand>;
  const int64_t size = hidden.size(1), steps = kPairs ? size / 2 : size;
  at::Tensor packed = packed_buffer<Operand>(panels, size);
  const auto* from = hidden.const_data_ptr<Stored>();
  auto* to = reinterpret_cast<Element*>(packed.data_ptr<Operand>());
  at::parallel_for(0, panels.tokens(), 16, [&](int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
      const int64_t panel = token / kPanelLanes, width = panels.width(panel);
      const auto* row = from + panels.rows[token] * size;
      Element* lane = to + panels.begin(panel) * steps + token % kPanelLanes;
      for (int64_t k = 0; k < steps; ++k) {
        if constexpr (kPairs) {
          lane[k * width] = reinterpret_cast<const uint32_t*>(row)[k];
        } else {
          lane[k * width] = static_cast<Operand>(row[k]);
        }
      }
    }
  });
  return packed;
}

template <typename Stored, typename Operand>
at::Tensor pack_tokens(const at::Tensor& hidden, const TokenPanels& panels) {
  constexpr int64_t kGroup = std::is_same_v<Operand, c10::BFloat16> ? 2 : 1;
  const int64_t size = hidden.size(1);
  at::Tensor packed = packed_buffer<Operand>(panels, size);
  const auto* from = hidden.const_data_ptr<Stored>();
  auto* to = packed.data_ptr<Operand>();
  // A panel starts with a new pair of tokens, so one loop over the tokens packs all panels.
  at::parallel_for(0, panels.tokens(), 16, [&](int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
      const auto* row = from + panels.rows[token] * size;
      Operand* group = to + token / kGroup * kGroup * size + token % kGroup;
      for (int64_t h = 0; h < size; ++h) group[h * kGroup] = static_cast<Operand>(row[h]);
    }
  });
  return packed;
}

#define INSTANTIATE(Stored, Operand)                                                        \
  template at::Tensor pack_columns<Stored, Operand>(const at::Tensor&, const TokenPanels&); \
  template at::Tensor pack_tokens<Stored, Operand>(const at::Tensor&, const TokenPanels&);
INSTANTIATE(float, float)
INSTANTIATE(c10::BFloat16, c10::BFloat16)
INSTANTIATE(c10::BFloat16, float)
INSTANTIATE(c10::Half, float)
#undef INSTANTIATE

}  // namespace wavalign::cpu
