#include "cpu/backward.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <optional>
#include <vector>

#include "cpu/prob_store.h"
#include "cpu/schedule.h"
#include "cpu/vocab_tiles.h"

namespace wavalign::cpu {

namespace {

// A weight gradient of this size is evicted from every cache before anyone reads it.
constexpr size_t kBeyondCaches = 32 << 20;

// Scratch memory of one thread.
template <typename Stored, typename Operand>
struct Workspace {
  Workspace(int64_t lanes, bool capped)
      : logits(kTileRows * kPanelLanes),
        dlogits(kTileRows * lanes),
        slope(capped ? kTileRows * lanes : 0),
        factor(kPanelLanes),
        entropy_grad(kPanelLanes),
        shift(kPanelLanes),
        max(kPanelLanes),
        unused(2 * kPanelLanes) {}

  std::vector<float> logits;     // a tile by a panel; later a block of dW
  std::vector<Operand> dlogits;  // a tile by all lanes, panel after panel
  std::vector<float> slope;      // of the soft cap, in the places of dlogits
  std::vector<Operand> probs, widened, packed;
  typename TileLogits<Stored, Operand>::Buffers recomputed;
  std::vector<float> factor, entropy_grad, shift, max;
  std::vector<float> unused;  // statistics that the forward pass has already merged
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

template <typename T>
T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr<T>() : nullptr;
}

template <typename Stored, typename Operand>
class Backward {
 public:
  explicit Backward(const BackwardPass& pass)
      : live_(pass.live),
        active_(pass.active),
        panels_(pass.active.panels),
        tiles_{pass.operands.weight.size(0)},
        hidden_size_(pass.operands.weight.size(1)),
        temperature_(static_cast<float>(pass.operands.temperature)),
        capped_(pass.operands.softcap > 0),
        bias_inside_(pass.operands.bias_inside),
        weight_(pass.operands.weight.const_data_ptr<Stored>()),
        skip_(pass.skip),
        lanes_(pass.skip, tiles_, panels_, active_.source),
        store_(readable_store<Operand>(pass.store, pass.prob_buffer, live_, tiles_)),
        kept_(store_.kept()),
        group_size_(tiles_in_group()),
        hidden_block_(hidden_size_ < kHiddenBlock * at::get_num_threads() ? 64 : kHiddenBlock),
        grad_hidden_(pass.grads.hidden),
        grad_weight_(data_or_null<Stored>(pass.grads.weight)),
        grad_bias_(data_or_null<float>(pass.grads.bias)),
        stream_(pass.operands.weight.nbytes() > kBeyondCaches) {
    const Operands& operands = pass.operands;
    if (kept_ < tiles_.count()) {
      logits_.emplace(operands, pass.bias, panels_);
    }
    if (grad_weight_ != nullptr) tokens_ = pack_tokens<Stored, Operand>(operands.hidden, panels_);
    if (grad_hidden_.defined()) {
      const int64_t tiles = TwoStageSchedule::kGroupsInFlight * group_size_;
      transposed_ = at::empty({tiles * kTileRows * panels_.lanes()},
                              c10::CppTypeToScalarType<Operand>::value);
      hidden_sums_ = at::zeros({panels_.lanes(), hidden_size_}, at::kFloat);
    }
  }

  void run() {
    const int64_t blocks =
        grad_hidden_.defined() ? (hidden_size_ + hidden_block_ - 1) / hidden_block_ : 0;
    TwoStageSchedule schedule(tiles_.count(), group_size_, blocks);
    at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
      const GemmScope scope;
      Workspace<Stored, Operand> work(panels_.lanes(), capped_);
      schedule.work([&](const TwoStageSchedule::Step& step) {
        if (step.second_stage) {
          add_to_hidden_sums(step.group, step.index * hidden_block_, work);
        } else {
          process_tile(step.index, work);
        }
      });
    });
    if (grad_hidden_.defined()) scatter_hidden_sums();
  }

 private:
  // A large group means fewer additions to dH, a small one stays in the caches, and each thread
  // needs a tile to work on.
  int64_t tiles_in_group() const {
    constexpr int64_t kBytes = 2 << 20, kMost = 8, kLeast = 2;
    const int64_t threads = at::get_num_threads(),
                  tile = kTileRows * panels_.lanes() * static_cast<int64_t>(sizeof(Operand));
    const int64_t tiles =
        std::clamp(kBytes / tile, std::max(kLeast, threads), std::max(kMost, threads));
    return std::min(tiles, tiles_.count());
  }

  static const TileKernels<Operand>& kernels() { return row_kernels().tile<Operand>(); }

  // First stage: dlogits of a tile, and its rows of dW and db.
  void process_tile(int64_t tile, Workspace<Stored, Operand>& work) const {
    if (lanes_.none(tile)) {
      if (grad_weight_ != nullptr) zero_grad_weight(tile);
      return;
    }
    compute_dlogits(tile, work);
    if (grad_bias_ != nullptr && !bias_inside_) write_grad_bias(tile, temperature_, work);
    if (capped_) multiply_by_slope(tile, work);
    if (grad_hidden_.defined()) transpose_dlogits(tile, work);
    if (grad_bias_ != nullptr && bias_inside_) write_grad_bias(tile, 1.f, work);
    if (grad_weight_ != nullptr) write_grad_weight(tile, work);
  }

  // exp(z - max) of a tile in the lanes of this pass, with the max in work.max. The forward pass
  // has kept them, or they are recomputed by the same operations on the same numbers, which gives
  // the same bits.
  const Operand* probs(int64_t tile, int64_t panel, Workspace<Stored, Operand>& work) const {
    if (tile >= kept_) return recomputed_probs(tile, panel, work);
    const int64_t lane = panels_.begin(panel), width = panels_.width(panel);
    const int64_t tokens = std::min(width, panels_.tokens() - lane), rows = tiles_.rows(tile);
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

  const Operand* recomputed_probs(int64_t tile, int64_t panel,
                                  Workspace<Stored, Operand>& work) const {
    const int64_t width = panels_.width(panel);
    float* slope = capped_ ? work.slope.data() + panels_.begin(panel) * kTileRows : nullptr;
    logits_->compute(tile, panel, work.logits.data(), work.recomputed, slope);
    work.probs.resize(kTileRows * width);
    const TileStats stats{work.max.data(), work.unused.data(), work.unused.data() + kPanelLanes};
    kernels().softmax_stats(work.logits.data(), tiles_.rows(tile), width, stats, work.probs.data());
    return work.probs.data();
  }

  // The factors of exp(z - max) in dL/dz, token by token; 0 in padding lanes and skipped tiles.
  void token_factors(int64_t tile, int64_t panel, Workspace<Stored, Operand>& work) const {
    const int64_t lane = panels_.begin(panel), width = panels_.width(panel);
    const int64_t tokens = std::min(width, panels_.tokens() - lane);
    for (int64_t n = 0; n < width; ++n) {
      work.factor[n] = work.entropy_grad[n] = work.shift[n] = 0.f;
      if (n >= tokens || skip_.skipped(tile, active_.source[lane + n])) continue;
      // Not max - lse: if logits are far from 0, the rounding error of lse scales the gradient.
      const float shift = work.max[n] - active_.top[lane + n] - active_.log_sum[lane + n];
      const float share = std::exp(shift) / temperature_;
      work.factor[n] = share * active_.softmax[lane + n];
      work.entropy_grad[n] = share * active_.entropy_grad[lane + n];
      // In a tile of banned ids `shift` is -inf and all probabilities are 0: avoid 0 * inf.
      work.shift[n] = share == 0.f ? 0.f : shift + active_.entropy[lane + n];
    }
  }

  // The derivative before the division by the temperature: dL/d(weight hidden), or behind a soft
  // cap that by the capped logits.
  void compute_dlogits(int64_t tile, Workspace<Stored, Operand>& work) const {
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

  void multiply_by_slope(int64_t tile, Workspace<Stored, Operand>& work) const {
    const int64_t rows = tiles_.rows(tile);
    for (int64_t panel = 0; panel < panels_.count(); ++panel) {
      if (lanes_.at(tile, panel).size() == 0) continue;
      const int64_t at = panels_.begin(panel) * kTileRows;
      kernels().multiply(work.slope.data() + at, rows * panels_.width(panel),
                         work.dlogits.data() + at);
    }
  }

  // dlogits of a tile as the left operand of dH = dlogits W: [panel][width][kTileRows]. Each group
  // in flight has its own slots.
  Operand* transposed(int64_t tile, int64_t panel) const {
    const int64_t slot = tile % (TwoStageSchedule::kGroupsInFlight * group_size_);
    return transposed_.data_ptr<Operand>() +
           (slot * panels_.lanes() + panels_.begin(panel)) * kTileRows;
  }

  void transpose_dlogits(int64_t tile, const Workspace<Stored, Operand>& work) const {
    const int64_t rows = tiles_.rows(tile);
    for (int64_t panel = 0; panel < panels_.count(); ++panel) {
      if (lanes_.at(tile, panel).size() == 0) continue;
      const int64_t width = panels_.width(panel);
      Operand* out = transposed(tile, panel);
      kernels().transpose(work.dlogits.data() + panels_.begin(panel) * kTileRows, rows, width, out,
                          kTileRows);
      // bf16 GEMMs read pairs: complete the last one.
      if (rows % 2 != 0) {
        for (int64_t n = 0; n < width; ++n) out[n * kTileRows + rows] = Operand(0.f);
      }
    }
  }

  void write_grad_bias(int64_t tile, float factor, const Workspace<Stored, Operand>& work) const {
    for (int64_t v = 0; v < tiles_.rows(tile); ++v) {
      float sum = 0.f;
      for (int64_t panel = 0; panel < panels_.count(); ++panel) {
        const Operand* row =
            work.dlogits.data() + panels_.begin(panel) * kTileRows + v * panels_.width(panel);
        const LaneRange range = lanes_.at(tile, panel);
        for (int64_t n = range.first; n < range.last; ++n) sum += static_cast<float>(row[n]);
      }
      grad_bias_[tiles_.begin(tile) + v] = sum * factor;
    }
  }

  // The tile's rows of dW, from all tokens: accumulated in fp32 in the cache, rounded and written
  // once.
  void write_grad_weight(int64_t tile, Workspace<Stored, Operand>& work) const {
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

  void zero_grad_weight(int64_t tile) const {
    const int64_t elements = tiles_.rows(tile) * hidden_size_;
    std::fill_n(grad_weight_ + tiles_.begin(tile) * hidden_size_, elements, Stored(0.f));
  }

  // Second stage: columns [h, h + hidden_block_) of dH += dlogits W over a group of tiles. The
  // groups come in order, so the order of summation does not depend on the number of threads.
  void add_to_hidden_sums(int64_t group, int64_t h, Workspace<Stored, Operand>& work) {
    const int64_t n = std::min(hidden_block_, hidden_size_ - h);
    float* out = hidden_sums_.data_ptr<float>();
    work.packed.resize(kTileRows * hidden_block_);
    const int64_t first = group * group_size_, last = std::min(first + group_size_, tiles_.count());
    for (int64_t tile = first; tile < last; ++tile) {
      if (lanes_.none(tile)) continue;
      const int64_t rows = tiles_.rows(tile);
      int64_t ld = 0;
      const Operand* block = weight_block<Stored, Operand>(
          weight_, hidden_size_, tiles_.begin(tile), rows, h, n, work.widened, ld);
      kernels().pack_rows(block, rows, n, ld, work.packed.data());
      const int64_t depth = std::is_same_v<Operand, c10::BFloat16> ? (rows + 1) / 2 * 2 : rows;
      for (int64_t panel = 0; panel < panels_.count(); ++panel) {
        const LaneRange range = lanes_.at(tile, panel);
        if (range.size() == 0) continue;
        const Operand* tokens = transposed(tile, panel) + range.first * kTileRows;
        gemm(range.size(), n, depth, tokens, kTileRows, work.packed.data(), n,
             out + (panels_.begin(panel) + range.first) * hidden_size_ + h, hidden_size_, true);
      }
    }
  }

  void scatter_hidden_sums() const {
    if (grad_hidden_.scalar_type() == at::kFloat) {
      scatter_hidden_sums_as<float>();
    } else {
      scatter_hidden_sums_as<Stored>();
    }
  }

  template <typename To>
  void scatter_hidden_sums_as() const {
    const float* from = hidden_sums_.const_data_ptr<float>();
    To* to = grad_hidden_.data_ptr<To>();
    at::parallel_for(0, panels_.tokens(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        write_rows(from + n * hidden_size_, 1, hidden_size_, hidden_size_,
                   to + panels_.rows[n] * hidden_size_, hidden_size_, /*stream=*/false);
      }
    });
  }

  const TokenPanels& live_;
  const ActiveTokens& active_;
  const TokenPanels& panels_;
  VocabTiles tiles_;
  int64_t hidden_size_;
  float temperature_;
  bool capped_;
  bool bias_inside_;
  const Stored* weight_;
  SkipTable skip_;
  ActiveLanes lanes_;
  ProbStore<Operand> store_;
  int64_t kept_;
  int64_t group_size_;    // tiles between two additions to dH
  int64_t hidden_block_;  // columns of dH in a task
  at::Tensor grad_hidden_;
  Stored* grad_weight_;
  float* grad_bias_;
  bool stream_;                                        // write dW with non-temporal stores
  std::optional<TileLogits<Stored, Operand>> logits_;  // to recompute tiles that were not kept
  at::Tensor tokens_;       // hidden as the right operand of dW, see pack_tokens()
  at::Tensor transposed_;   // dlogits of the groups in flight, see transposed()
  at::Tensor hidden_sums_;  // dH of the active tokens in fp32, [lanes, H]
};

}  // namespace

void run_backward(const BackwardPass& pass) {
  with_operand_types(pass.operands.weight, [&](auto stored, auto operand) {
    Backward<decltype(stored), decltype(operand)>(pass).run();
  });
}

}  // namespace wavalign::cpu
