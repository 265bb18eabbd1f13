// The backward pass over the vocabulary, tile by tile.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <optional>
#include <vector>

#include "cpu/active_tokens.h"
#include "cpu/prob_store.h"
#include "cpu/schedule.h"
#include "cpu/skipping.h"
#include "cpu/vocab_tiles.h"

namespace wavalign::cpu {

// A gradient of this size is no longer in a cache when its reader comes.
constexpr size_t kBeyondCaches = 32 << 20;

// Buffers of one thread.
template <typename Stored, typename Operand>
struct Workspace {
  explicit Workspace(int64_t lanes)
      : logits(kTileRows * kPanelLanes),
        dlogits(kTileRows * lanes),
        factor(kPanelLanes),
        entropy_grad(kPanelLanes),
        shift(kPanelLanes),
        max(kPanelLanes),
        unused(2 * kPanelLanes) {}

  std::vector<float> logits;     // one tile by one panel; then a block of dW
  std::vector<Operand> dlogits;  // one tile by all lanes, panel after panel
  std::vector<Operand> probs, widened, packed;
  typename TileLogits<Stored, Operand>::Buffers again;
  std::vector<float> factor, entropy_grad, shift, max, unused;
};

template <typename Stored>
void write_rows(const float* in, int64_t rows, int64_t n, int64_t ld_in, Stored* out,
                int64_t ld_out, bool stream) {
  if constexpr (std::is_same_v<Stored, c10::Half>) {
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(in + r * ld_in, n, out + r * ld_out);
    }
  } else {
    row_kernels().tile<Stored>().round_rows(in, rows, n, ld_in, out, ld_out, stream);
  }
}

template <typename Stored, typename Operand>
class Backward {
 public:
  Backward(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
           double temperature, const TokenPanels& live, const ActiveTokens& active,
           const ProbStore<Operand>& store, const SkipTable& skip, at::Tensor& grad_hidden,
           at::Tensor& grad_weight, at::Tensor& grad_bias)
      : tiles_{weight.size(0)},
        hidden_size_(weight.size(1)),
        temperature_(static_cast<float>(temperature)),
        weight_(weight.const_data_ptr<Stored>()),
        live_(live),
        active_(active),
        panels_(active.panels),
        skip_(skip),
        lanes_(skip, tiles_, panels_, active.source),
        store_(store),
        kept_(store_.kept()),
        group_(group_of_tiles()),
        hidden_block_(hidden_size_ < kHiddenBlock * at::get_num_threads() ? 64 : kHiddenBlock),
        grad_weight_(grad_weight.defined() ? grad_weight.data_ptr<Stored>() : nullptr),
        stream_(weight.nbytes() > kBeyondCaches),
        grad_bias_(grad_bias.defined() ? grad_bias.data_ptr<float>() : nullptr),
        hidden_out_(grad_hidden) {
    if (kept_ < tiles_.count()) {
      source_.emplace(hidden, weight, bias, temperature, panels_);
    }
    if (grad_weight_ != nullptr) tokens_ = pack_tokens<Stored, Operand>(hidden, panels_);
    if (hidden_out_.defined()) {
      by_token_ =
          at::empty({TwoStageSchedule::kGroupsInFlight * group_ * kTileRows * panels_.lanes()},
                    operand_type());
      grad_hidden_ = at::zeros({panels_.lanes(), hidden_size_}, at::kFloat);
    }
  }

  void run() {
    const int64_t blocks =
        hidden_out_.defined() ? (hidden_size_ + hidden_block_ - 1) / hidden_block_ : 0;
    TwoStageSchedule schedule(tiles_.count(), group_, blocks);
    at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
      const GemmScope scope;
      Workspace<Stored, Operand> work(panels_.lanes());
      schedule.work([&](const TwoStageSchedule::Step& step) {
        if (step.second_stage) {
          add_hidden(step.group, step.index * hidden_block_, work);
        } else {
          tile(step.index, work);
        }
      });
    });
    if (hidden_out_.defined()) scatter_hidden();
  }

 private:
  // Large groups add to dH less often; small ones leave room in the caches, and every thread wants
  // a tile.
  int64_t group_of_tiles() const {
    constexpr int64_t kBytes = 2 << 20, kMost = 8, kLeast = 2;
    const int64_t threads = at::get_num_threads(),
                  tile = kTileRows * panels_.lanes() * static_cast<int64_t>(sizeof(Operand));
    const int64_t tiles =
        std::clamp(kBytes / tile, std::max(kLeast, threads), std::max(kMost, threads));
    return std::min(tiles, tiles_.count());
  }

  static constexpr at::ScalarType operand_type() {
    return c10::CppTypeToScalarType<Operand>::value;
  }
  static const TileKernels<Operand>& kernels() { return row_kernels().tile<Operand>(); }

  // Everything of a tile but its part of dH.
  void tile(int64_t tile, Workspace<Stored, Operand>& work) const {
    if (lanes_.none(tile)) {
      if (grad_weight_ != nullptr) no_weight_rows(tile);
      return;
    }
    dlogits(tile, work);
    if (hidden_out_.defined()) turn(tile, work);
    if (grad_bias_ != nullptr) sum_bias(tile, work);
    if (grad_weight_ != nullptr) weight_rows(tile, work);
  }

  // exp(z - max) of a tile in this pass's lanes, and `max` into work.max: kept by the forward pass,
  // or made again with the same operations on the same numbers, which gives the same bits.
  const Operand* probs(int64_t tile, int64_t panel, Workspace<Stored, Operand>& work) const {
    const int64_t lane = panels_.begin(panel), width = panels_.width(panel);
    const int64_t tokens = std::min(width, panels_.tokens() - lane), rows = tiles_.rows(tile);
    if (tile >= kept_) {
      source_->compute(tile, panel, work.logits.data(), work.again);
      work.probs.resize(kTileRows * width);
      const TileStats stats{work.max.data(), work.unused.data(), work.unused.data() + kPanelLanes};
      kernels().softmax_stats(work.logits.data(), rows, width, stats, work.probs.data());
      return work.probs.data();
    }
    for (int64_t n = 0; n < tokens; ++n) {
      work.max[n] = store_.max(tile)[active_.source[lane + n]];
    }
    if (active_.all) return store_.probs(tile, lane);
    work.probs.assign(kTileRows * width, Operand(0.f));
    for (int64_t n = 0; n < tokens; ++n) {
      const int64_t from = active_.source[lane + n], base = live_.begin(from / kPanelLanes);
      const int64_t stride = live_.width(from / kPanelLanes);
      const Operand* column = store_.probs(tile, base) + from - base;
      for (int64_t v = 0; v < rows; ++v) work.probs[v * width + n] = column[v * stride];
    }
    return work.probs.data();
  }

  // What exp(z - max) of a tile is multiplied with, token by token; 0 in padding and where skipped.
  void token_factors(int64_t tile, int64_t panel, Workspace<Stored, Operand>& work) const {
    const int64_t lane = panels_.begin(panel), width = panels_.width(panel);
    const int64_t tokens = std::min(width, panels_.tokens() - lane);
    for (int64_t n = 0; n < width; ++n) {
      work.factor[n] = work.entropy_grad[n] = work.shift[n] = 0.f;
      if (n >= tokens || skip_.skipped(tile, active_.source[lane + n])) continue;
      // Not max - lse: far from 0 the rounding of lse is a factor on the whole gradient.
      const float shift = work.max[n] - active_.top[lane + n] - active_.log_sum[lane + n];
      const float share = std::exp(shift) / temperature_;
      work.factor[n] = share * active_.softmax[lane + n];
      work.entropy_grad[n] = share * active_.entropy_grad[lane + n];
      // A tile of banned ids has no probability to multiply, and must not make 0 * inf of it.
      work.shift[n] = share == 0.f ? 0.f : shift + active_.entropy[lane + n];
    }
  }

  // dL/d(W h): the temperature's factor is in it.
  void dlogits(int64_t tile, Workspace<Stored, Operand>& work) const {
    const int64_t rows = tiles_.rows(tile);
    const float scale = 1.f / temperature_;
    for (int64_t panel = 0; panel < panels_.count(); ++panel) {
      const int64_t lane = panels_.begin(panel), width = panels_.width(panel);
      const int64_t tokens = std::min(width, panels_.tokens() - lane);
      if (lanes_.at(tile, panel).size() == 0) continue;
      Operand* out = work.dlogits.data() + lane * kTileRows;
      const Operand* tile_probs = probs(tile, panel, work);
      token_factors(tile, panel, work);
      if (active_.with_entropy) {
        const TokenGrads grads{work.factor.data(), work.entropy_grad.data(), work.shift.data()};
        kernels().entropy_grad_from_probs(tile_probs, rows, width, grads, out);
      } else {
        kernels().grad_from_probs(tile_probs, rows, width, work.factor.data(), out);
      }
      for (int64_t n = 0; n < tokens; ++n) {
        const int64_t row = active_.target[lane + n] - tiles_.begin(tile);
        if (row >= 0 && row < rows)
          out[row * width + n] = Operand(scale * active_.onehot[lane + n]);
      }
    }
  }

  // The tile by token, as the left operand of dH = dlogits W: [panel][width][kTileRows]. The groups
  // under way have a place each.
  Operand* turned(int64_t tile, int64_t panel) const {
    const int64_t place = tile % (TwoStageSchedule::kGroupsInFlight * group_);
    return by_token_.data_ptr<Operand>() +
           (place * panels_.lanes() + panels_.begin(panel)) * kTileRows;
  }

  void turn(int64_t tile, const Workspace<Stored, Operand>& work) const {
    const int64_t rows = tiles_.rows(tile);
    for (int64_t panel = 0; panel < panels_.count(); ++panel) {
      if (lanes_.at(tile, panel).size() == 0) continue;
      const int64_t width = panels_.width(panel);
      Operand* out = turned(tile, panel);
      kernels().transpose(work.dlogits.data() + panels_.begin(panel) * kTileRows, rows, width, out,
                          kTileRows);
      // The pair of an odd last row.
      if (rows % 2 != 0) {
        for (int64_t n = 0; n < width; ++n) out[n * kTileRows + rows] = Operand(0.f);
      }
    }
  }

  void sum_bias(int64_t tile, const Workspace<Stored, Operand>& work) const {
    for (int64_t v = 0; v < tiles_.rows(tile); ++v) {
      float sum = 0.f;
      for (int64_t panel = 0; panel < panels_.count(); ++panel) {
        const Operand* row =
            work.dlogits.data() + panels_.begin(panel) * kTileRows + v * panels_.width(panel);
        const LaneRange range = lanes_.at(tile, panel);
        for (int64_t n = range.first; n < range.last; ++n) sum += static_cast<float>(row[n]);
      }
      grad_bias_[tiles_.begin(tile) + v] = sum * temperature_;
    }
  }

  // These rows of dW from all tokens at once: accumulated in fp32 in cache, rounded and written
  // once.
  void weight_rows(int64_t tile, Workspace<Stored, Operand>& work) const {
    const int64_t rows = tiles_.rows(tile);
    const auto* tokens = tokens_.template const_data_ptr<Operand>();
    constexpr int64_t kPair = std::is_same_v<Operand, c10::BFloat16> ? 2 : 1;
    for (int64_t h = 0; h < hidden_size_; h += kHiddenBlock) {
      const int64_t n = std::min(kHiddenBlock, hidden_size_ - h);
      bool accumulate = false;
      for (int64_t panel = 0; panel < panels_.count(); ++panel) {
        const LaneRange range = lanes_.at(tile, panel);
        if (range.size() == 0) continue;
        const int64_t lane = panels_.begin(panel);
        gemm(rows, n, range.size(), work.dlogits.data() + lane * kTileRows + range.first,
             panels_.width(panel), tokens + (lane + range.first) * hidden_size_ + h * kPair,
             hidden_size_, work.logits.data(), n, accumulate);
        accumulate = true;
      }
      write_rows(work.logits.data(), rows, n, n,
                 grad_weight_ + tiles_.begin(tile) * hidden_size_ + h, hidden_size_, stream_);
    }
  }

  void no_weight_rows(int64_t tile) const {
    const int64_t elements = tiles_.rows(tile) * hidden_size_;
    std::fill_n(grad_weight_ + tiles_.begin(tile) * hidden_size_, elements, Stored(0.f));
  }

  // Columns [h, h + hidden_block_) of dH += dlogits W over a group of tiles. The groups come in
  // order, so the sum has one order whatever the number of threads.
  void add_hidden(int64_t group, int64_t h, Workspace<Stored, Operand>& work) {
    const int64_t n = std::min(hidden_block_, hidden_size_ - h);
    float* out = grad_hidden_.data_ptr<float>();
    work.packed.resize(kTileRows * hidden_block_);
    const int64_t first = group * group_, last = std::min(first + group_, tiles_.count());
    for (int64_t tile = first; tile < last; ++tile) {
      if (lanes_.none(tile)) continue;
      const int64_t rows = tiles_.rows(tile);
      int64_t ld = 0;
      const Operand* rows_of_w = weight_block<Stored, Operand>(
          weight_, hidden_size_, tiles_.begin(tile), rows, h, n, work.widened, ld);
      kernels().pack_rows(rows_of_w, rows, n, ld, work.packed.data());
      const int64_t depth = std::is_same_v<Operand, c10::BFloat16> ? (rows + 1) / 2 * 2 : rows;
      for (int64_t panel = 0; panel < panels_.count(); ++panel) {
        const LaneRange range = lanes_.at(tile, panel);
        if (range.size() == 0) continue;
        const Operand* tokens = turned(tile, panel) + range.first * kTileRows;
        gemm(range.size(), n, depth, tokens, kTileRows, work.packed.data(), n,
             out + (panels_.begin(panel) + range.first) * hidden_size_ + h, hidden_size_, true);
      }
    }
  }

  void scatter_hidden() const {
    const float* from = grad_hidden_.const_data_ptr<float>();
    Stored* to = hidden_out_.data_ptr<Stored>();
    at::parallel_for(0, panels_.tokens(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        write_rows(from + n * hidden_size_, 1, hidden_size_, hidden_size_,
                   to + panels_.rows[n] * hidden_size_, hidden_size_, /*stream=*/false);
      }
    });
  }

  VocabTiles tiles_;
  int64_t hidden_size_;
  float temperature_;
  const Stored* weight_;
  const TokenPanels& live_;
  const ActiveTokens& active_;
  const TokenPanels& panels_;
  SkipTable skip_;
  ActiveLanes lanes_;
  ProbStore<Operand> store_;
  int64_t kept_;
  int64_t group_;         // tiles between two additions to dH
  int64_t hidden_block_;  // columns of dH to a task
  Stored* grad_weight_;
  bool stream_;  // dW past the caches
  float* grad_bias_;
  at::Tensor hidden_out_;
  std::optional<TileLogits<Stored, Operand>> source_;
  at::Tensor tokens_, by_token_, grad_hidden_;
};

}  // namespace wavalign::cpu
