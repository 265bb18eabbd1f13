// The vocabulary, cut into tiles, and the logits of a tile.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/gemm.h"
#include "cpu/operands.h"
#include "cpu/token_panels.h"

namespace wavalign::cpu {

constexpr int64_t kTileRows = 256;
// Columns of one GEMM, so that both operand blocks and the result fit into the L2 cache.
constexpr int64_t kHiddenBlock = 256;
// Columns of the reduction in one GEMM. In fp32, each block is summed separately: the rounding
// errors of one chain of additions over the hidden size would dominate all others. In bf16, the
// blocks accumulate: these errors are far smaller than those of the operands.
template <typename Operand>
constexpr int64_t kReductionBlock = std::is_same_v<Operand, float> ? 128 : 512;

struct VocabTiles {
  int64_t vocab;

  int64_t count() const { return (vocab + kTileRows - 1) / kTileRows; }
  int64_t begin(int64_t tile) const { return tile * kTileRows; }
  int64_t rows(int64_t tile) const { return std::min(kTileRows, vocab - begin(tile)); }
};

// Rows [first, first + rows) and columns [column, column + n) of the weight in the operand type.
// Copies them into `widened` only if the weight has another type.
template <typename Stored, typename Operand>
const Operand* weight_block(const Stored* weight, int64_t hidden_size, int64_t first, int64_t rows,
                            int64_t column, int64_t n, std::vector<Operand>& widened, int64_t& ld) {
  const Stored* from = weight + first * hidden_size + column;
  if constexpr (std::is_same_v<Stored, Operand>) {
    ld = hidden_size;
    return from;
  } else {
    ld = n;
    widened.resize(rows * n);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < n; ++h) {
        widened[r * n + h] = static_cast<Operand>(from[r * hidden_size + h]);
      }
    }
    return widened.data();
  }
}

// logits^T of the operands: W hidden^T / temperature + bias, or that with a soft cap, for a tile of
// the vocabulary and a panel of tokens at a time. The weight is the left operand, which needs no
// packing.
template <typename Stored, typename Operand>
class TileLogits {
 public:
  // `bias` is that of the operands in fp32, or undefined.
  TileLogits(const Operands& operands, const at::Tensor& bias, const TokenPanels& panels)
      : panels_(panels),
        tiles_{operands.weight.size(0)},
        hidden_size_(operands.weight.size(1)),
        weight_(operands.weight.const_data_ptr<Stored>()),
        bias_(bias.defined() ? bias.const_data_ptr<float>() : nullptr),
        scale_(static_cast<float>(1.0 / operands.temperature)),
        softcap_(static_cast<float>(operands.softcap)),
        bias_inside_(operands.bias_inside),
        columns_(pack_columns<Stored, Operand>(operands.hidden, panels)) {}

  // Scratch memory of one thread.
  struct Buffers {
    std::vector<Operand> widened;
    std::vector<float> part;
  };

  // [rows(tile), width(panel)]. With a soft cap, `slope` receives its derivative unless it is null.
  void compute(int64_t tile, int64_t panel, float* logits, Buffers& buffers,
               float* slope = nullptr) const {
    const int64_t rows = tiles_.rows(tile), width = panels_.width(panel);
    const Operand* columns =
        columns_.template const_data_ptr<Operand>() + panels_.begin(panel) * hidden_size_;
    for (int64_t k = 0; k < hidden_size_; k += kReductionBlock<Operand>) {
      const int64_t depth = std::min(kReductionBlock<Operand>, hidden_size_ - k);
      int64_t ld = 0;
      const Operand* block = weight_block<Stored, Operand>(
          weight_, hidden_size_, tiles_.begin(tile), rows, k, depth, buffers.widened, ld);
      const bool separate = std::is_same_v<Operand, float> && k > 0;
      if (separate) buffers.part.resize(kTileRows * kPanelLanes);
      float* sums = separate ? buffers.part.data() : logits;
      gemm(rows, width, depth, block, ld, columns + k * width, width, sums, width,
           /*accumulate=*/k > 0 && !separate);
      if (separate) row_kernels().tile<Operand>().add(sums, rows * width, logits);
    }
    const float* bias = bias_ == nullptr ? nullptr : bias_ + tiles_.begin(tile);
    if (softcap_ > 0) {
      const float* inside = bias_inside_ ? bias : nullptr;
      row_kernels().f32.cap_logits(logits, rows, width, softcap_, inside, slope);
      if (bias_inside_) bias = nullptr;
    }
    if (scale_ != 1.f || bias != nullptr) {
      row_kernels().f32.scale_logits(logits, rows, width, scale_, bias);
    }
  }

 private:
  const TokenPanels& panels_;
  VocabTiles tiles_;
  int64_t hidden_size_;
  const Stored* weight_;
  const float* bias_;
  float scale_;
  float softcap_;  // 0: none
  bool bias_inside_;
  at::Tensor columns_;
};

// Calls `pass(Stored{}, Operand{})` with the operand type that is fastest on this processor.
template <typename Pass>
auto with_operand_types(const at::Tensor& weight, Pass&& pass) {
  switch (weight.scalar_type()) {
    case at::kFloat:
      return pass(float{}, float{});
    case at::kHalf:
      return pass(c10::Half{}, float{});
    default:
      break;
  }
  // bf16 GEMMs read pairs along the hidden dimension.
  if (brgemm_available(at::kBFloat16) && weight.size(1) % 2 == 0) {
    return pass(c10::BFloat16{}, c10::BFloat16{});
  }
  return pass(c10::BFloat16{}, float{});
}

}  // namespace wavalign::cpu
