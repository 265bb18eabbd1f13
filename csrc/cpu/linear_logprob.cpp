#include "cpu/linear_logprob.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/buffers.h"
#include "cpu/parallel_tasks.h"
#include "cpu/prob_store.h"
#include "cpu/skipping.h"
#include "cpu/vocab_tiles.h"

namespace wavalign::cpu {

namespace {

// Statistics of every tile for every token: three [tiles, lanes] tables.
struct StatsTable {
  StatsTable(int64_t tiles, int64_t lanes)
      : lanes(lanes), data(at::empty({3, tiles, lanes}, at::kFloat)), stride(tiles * lanes) {}

  TileStats at(int64_t tile, int64_t lane) const {
    float* max = data.data_ptr<float>() + tile * lanes + lane;
    return {max, max + stride, max + 2 * stride};
  }

  int64_t lanes;
  at::Tensor data;
  int64_t stride;
};

// What the forward pass says about each row of `hidden`; lse = top + log_sum.
struct TokenResults {
  float *logp, *entropy, *lse, *top, *log_sum;
};

// Merges one token's tiles in vocabulary order, in double: the order and the type are what make
// the result independent of threads and as exact as the tiles themselves. `mass` gets each tile's
// part of the probability.
void merge_token(const StatsTable& stats, int64_t tiles, int64_t lane, float target_logit,
                 const TokenResults& out, int64_t row, std::vector<double>& mass) {
  float &logp = out.logp[row], &entropy = out.entropy[row], &lse = out.lse[row];
  float top = -std::numeric_limits<float>::infinity();
  bool poisoned = false;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const TileStats s = stats.at(tile, lane);
    poisoned |= std::isnan(*s.sum);
    top = std::max(top, *s.max);
  }
  double sum = 0, weighted = 0;
  mass.assign(tiles, 0.0);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const TileStats s = stats.at(tile, lane);
    if (*s.max == -std::numeric_limits<float>::infinity()) continue;
    const double below = static_cast<double>(*s.max) - top, scale = std::exp(below);
    mass[tile] = scale * *s.sum;
    sum += mass[tile];
    weighted += scale * (*s.weighted + below * *s.sum);
  }
  if (poisoned) sum = std::numeric_limits<double>::quiet_NaN();
  const double log_sum = std::log(sum);
  lse = static_cast<float>(top + log_sum);
  // log p <= 0 and entropy >= 0 hold exactly, not only up to rounding. The bound comes second: of a
  // NaN and a number these give the first, and where all ids are banned both are NaN.
  logp = static_cast<float>(std::min(static_cast<double>(target_logit) - top - log_sum, 0.0));
  entropy = static_cast<float>(std::max(log_sum - weighted / sum, 0.0));
  if (poisoned) logp = entropy = lse;
  out.top[row] = top;
  out.log_sum[row] = static_cast<float>(log_sum);
  for (double& part : mass) part /= sum;
}

template <typename Stored, typename Operand>
void forward(const at::Tensor& hidden, const at::Tensor& weight, const int64_t* targets,
             const at::Tensor& bias, double temperature, const TokenPanels& panels,
             const TokenResults& out, const ProbStore<Operand>& store, const SkipTable& skip,
             double skip_tolerance) {
  const VocabTiles tiles{weight.size(0)};
  const TileLogits<Stored, Operand> source(hidden, weight, bias, temperature, panels);
  const StatsTable stats(tiles.count(), panels.lanes());
  std::vector<float> target_logits(panels.tokens());

  parallel_tasks(tiles.count() * panels.count(), [&](const auto& next) {
    const GemmScope scope;
    std::vector<float> logits(kTileRows * kPanelLanes);
    typename TileLogits<Stored, Operand>::Buffers buffers;
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t tile = task / panels.count(), panel = task % panels.count();
      const int64_t rows = tiles.rows(tile), width = panels.width(panel),
                    lane = panels.begin(panel);
      source.compute(tile, panel, logits.data(), buffers);
      Operand* probs = tile < store.kept() ? store.probs(tile, lane) : nullptr;
      const TileStats at = stats.at(tile, lane);
      row_kernels().tile<Operand>().softmax_stats(logits.data(), rows, width, at, probs);
      if (probs != nullptr) std::copy_n(at.max, width, store.max(tile) + lane);
      for (int64_t n = lane; n < std::min(lane + width, panels.tokens()); ++n) {
        const int64_t row = targets[panels.rows[n]] - tiles.begin(tile);
        if (row >= 0 && row < rows) target_logits[n] = logits[row * width + n - lane];
      }
    }
  });

  at::parallel_for(0, panels.tokens(), 16, [&](int64_t first, int64_t last) {
    std::vector<double> mass;
    for (int64_t n = first; n < last; ++n) {
      const int64_t row = panels.rows[n];
      merge_token(stats, tiles.count(), n, target_logits[n], out, row, mass);
      if (skip.used()) skip.choose(n, mass, targets[row] / kTileRows, skip_tolerance);
    }
  });
}

}  // namespace

TokenPanels live_tokens(const at::Tensor& hidden, const at::Tensor& weight,
                        const at::Tensor& targets, const std::optional<at::Tensor>& bias,
                        double temperature, int64_t ignore_index, bool by_target) {
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
                    "bias: want shape [", weight.size(0), "]");
  TORCH_CHECK_VALUE(temperature > 0, "temperature must be positive, got ", temperature);
  TokenPanels panels;
  const int64_t vocab = weight.size(0);
  const auto* ids = targets.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < targets.size(0); ++row) {
    if (ids[row] == ignore_index) continue;
    TORCH_CHECK_VALUE(ids[row] >= 0 && ids[row] < vocab, "targets[", row, "] = ", ids[row],
                      " is outside [0, ", vocab, ") and is not ignore_index ", ignore_index);
    panels.rows.push_back(row);
  }
  if (by_target) {
    std::stable_sort(panels.rows.begin(), panels.rows.end(),
                     [&](int64_t a, int64_t b) { return ids[a] < ids[b]; });
  }
  return panels;
}

ForwardResults linear_logprob(const at::Tensor& hidden, const at::Tensor& weight,
                              const at::Tensor& targets, const std::optional<at::Tensor>& bias,
                              double temperature, int64_t ignore_index, int64_t store_bytes,
                              double skip_tolerance, bool want_prob_buffer) {
  const bool skipping = skip_tolerance > 0;
  const TokenPanels panels =
      live_tokens(hidden, weight, targets, bias, temperature, ignore_index, skipping);
  const auto options = hidden.options().dtype(at::kFloat);
  at::Tensor logp = at::zeros({hidden.size(0)}, options), entropy = at::zeros_like(logp),
             lse = at::zeros_like(logp), norm = at::zeros({2, hidden.size(0)}, options);
  at::Tensor store = cached_buffer({store_bytes}, hidden.options().dtype(at::kByte));
  std::vector<int64_t> skip_shape{0};
  if (skipping) skip_shape = {VocabTiles{weight.size(0)}.count(), hidden.size(0)};
  const at::Tensor skipped = at::zeros(skip_shape, store.options());
  at::Tensor prob_buffer = at::empty({0}, weight.options());
  if (panels.tokens() == 0) return {logp, entropy, lse, norm, store, skipped, prob_buffer};
  if (want_prob_buffer && store_bytes > 0) prob_buffer = new_prob_buffer(weight);
  const at::Tensor bias_f32 = bias.has_value() ? bias->to(at::kFloat).contiguous() : at::Tensor();
  with_operand_types(weight, [&](auto stored, auto operand) {
    const ProbStore<decltype(operand)> kept(store, prob_buffer, panels, VocabTiles{weight.size(0)});
    kept.write_header(prob_buffer_id(prob_buffer));
    forward<decltype(stored), decltype(operand)>(
        hidden, weight, targets.const_data_ptr<int64_t>(), bias_f32, temperature, panels,
        TokenResults{logp.data_ptr<float>(), entropy.data_ptr<float>(), lse.data_ptr<float>(),
                     norm.data_ptr<float>(), norm.data_ptr<float>() + hidden.size(0)},
        kept, SkipTable(skipped), skip_tolerance);
  });
  return {logp, entropy, lse, norm, store, skipped, prob_buffer};
}

}  // namespace wavalign::cpu
