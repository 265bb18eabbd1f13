#include "cpu/linear_logprob.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

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

// Softmax statistics of each token over each tile: three tables [tiles, lanes].
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

// The results of each row of `hidden`; lse = top + log_sum.
struct TokenResults {
  float *logp, *entropy, *lse, *top, *log_sum;
};

// Merges the statistics of a token over its tiles, and writes the probability of each tile to
// `mass`. The vocabulary order makes the result independent of the number of threads; double makes
// it as accurate as the statistics of the tiles.
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
  // Rounding must not make log p positive or the entropy negative. std::min and std::max return a
  // NaN in their first argument, which is NaN if all ids are banned.
  logp = static_cast<float>(std::min(static_cast<double>(target_logit) - top - log_sum, 0.0));
  entropy = static_cast<float>(std::max(log_sum - weighted / sum, 0.0));
  if (poisoned) logp = entropy = lse;
  out.top[row] = top;
  out.log_sum[row] = static_cast<float>(log_sum);
  for (double& part : mass) part /= sum;
}

template <typename Stored, typename Operand>
void forward(const Operands& operands, const TokenPanels& panels, const TokenResults& out,
             const ProbStore<Operand>& store, const SkipTable& skip, double skip_tolerance) {
  const VocabTiles tiles{operands.weight.size(0)};
  const auto* targets = operands.targets.const_data_ptr<int64_t>();
  const at::Tensor bias = operands.bias_f32();
  const TileLogits<Stored, Operand> source(operands, bias, panels);
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

ForwardResults linear_logprob(const Operands& operands, const ForwardOptions& options) {
  // The gradient needs the logits themselves, which the probabilities that are kept do not give.
  TORCH_CHECK_VALUE(operands.softcap == 0 || options.store_bytes == 0, "store_bytes: got ",
                    options.store_bytes, " with a softcap, want 0");
  const bool skipping = options.skip_tolerance > 0;
  const TokenPanels panels = live_tokens(operands, /*by_target=*/skipping);
  const at::Tensor &hidden = operands.hidden, &weight = operands.weight;
  const VocabTiles tiles{weight.size(0)};
  const int64_t rows = hidden.size(0);
  const auto f32 = hidden.options().dtype(at::kFloat), bytes = hidden.options().dtype(at::kByte);
  std::vector<int64_t> skip_shape{0};
  if (skipping) skip_shape = {tiles.count(), rows};
  ForwardResults results{at::zeros({rows}, f32),
                         at::zeros({rows}, f32),
                         at::zeros({rows}, f32),
                         at::zeros({2, rows}, f32),
                         cached_buffer({options.store_bytes}, bytes),
                         at::zeros(skip_shape, bytes),
                         at::empty({0}, weight.options())};
  if (panels.tokens() == 0) return results;
  if (options.want_prob_buffer && options.store_bytes > 0) {
    results.prob_buffer = new_prob_buffer(weight);
  }
  auto* norm = results.norm.data_ptr<float>();
  with_operand_types(weight, [&](auto stored, auto operand) {
    const ProbStore<decltype(operand)> store(results.store, results.prob_buffer, panels, tiles);
    store.write_header(prob_buffer_id(results.prob_buffer));
    forward<decltype(stored), decltype(operand)>(
        operands, panels,
        TokenResults{results.logp.data_ptr<float>(), results.entropy.data_ptr<float>(),
                     results.lse.data_ptr<float>(), norm, norm + rows},
        store, SkipTable(results.skipped), options.skip_tolerance);
  });
  return results;
}

}  // namespace wavalign::cpu
