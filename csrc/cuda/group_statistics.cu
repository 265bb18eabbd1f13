// Advantages of groups of rewards, and the mixing weight λ. losses/advantage.py and losses/gate.py
// define them. A step has a few thousand rewards at most, so one block computes all, in double.
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/token_math.h"
#include "cuda/warps.cuh"

namespace wavalign::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kSums = 6;
constexpr int kMeans = kSums - 1;

struct GroupScratch {
  double sums[kWarps][kSums];
};

struct Group {
  double valid;  // rewards that are not missing
  double mean;
  double variance;  // population
  float top;
  float low;
};

// Statistics of the rewards of a group that are not missing. Every lane of the warp gets them.
__device__ Group group_of(const float* rewards, int64_t size) {
  double valid = 0, sum = 0, squares = 0;
  float top = -INFINITY, low = INFINITY;
  for (int64_t i = lane_of_warp(); i < size; i += kWarpLanes) {
    const float reward = rewards[i];
    if (isnan(reward)) continue;
    valid += 1;
    sum += reward;
    top = fmaxf(top, reward);
    low = fminf(low, reward);
  }
  valid = warp_sum(valid);
  const double divisor = fmax(valid, 1.0);
  const double mean = warp_sum(sum) / divisor;
  for (int64_t i = lane_of_warp(); i < size; i += kWarpLanes) {
    const double deviation = rewards[i] - mean;
    if (!isnan(rewards[i])) squares += deviation * deviation;
  }
  return {valid, mean, warp_sum(squares) / divisor,
          warp_combined(top, [](float a, float b) { return fmaxf(a, b); }),
          warp_combined(low, [](float a, float b) { return fminf(a, b); })};
}

__device__ void write_advantages(const GroupStatistics& params, int64_t group, const Group& stats) {
  const float* rewards = params.rewards + group * params.size;
  float* advantages = params.advantages + group * params.size;
  const double correction = params.sample_std ? stats.valid / fmax(stats.valid - 1, 1.0) : 1.0;
  // Rounds before adding eps, as torch.std does: the released advantages, bit for bit.
  const float mean = static_cast<float>(stats.mean);
  const float deviation = static_cast<float>(sqrt(stats.variance * correction));
  const float divisor = deviation + static_cast<float>(params.eps);
  // Detects equal rewards by their range: the rounding error of a mean is not an advantage.
  const bool informative = stats.valid > 1 && stats.top > stats.low;
  for (int64_t i = lane_of_warp(); i < params.size; i += kWarpLanes) {
    const float reward = rewards[i];
    advantages[i] = informative && !isnan(reward) ? (reward - mean) / divisor : 0.f;
  }
}

// Adds one group's terms to the sums. One thread calls this.
__device__ void add_gate(const GroupStatistics& params, const Group& stats, double* sums) {
  if (!(stats.valid > 0)) return;
  const double gate = 1.0 / (1.0 + exp(-params.slope * (stats.top - params.threshold)));
  const double info = at_most(at_least(stats.variance / params.variance_scale, 0.0), 1.0);
  sums[0] += params.lambda_max * gate * info;
  sums[1] += gate;
  sums[2] += info;
  sums[3] += stats.top;
  sums[4] += stats.variance;
  sums[5] += 1.0;
}

__global__ void __launch_bounds__(kThreads, 1) group_statistics_kernel(GroupStatistics params) {
  WAVALIGN_SHARED(GroupScratch, scratch);
  double* sums = scratch.sums[warp_of_block()];  // only lane 0 writes them
  if (lane_of_warp() == 0) {
    for (int s = 0; s < kSums; ++s) sums[s] = 0;
  }
  for (int64_t group = warp_of_block(); group < params.groups; group += kWarps) {
    const Group stats = group_of(params.rewards + group * params.size, params.size);
    write_advantages(params, group, stats);
    if (lane_of_warp() == 0) add_gate(params, stats, sums);
  }
  __syncthreads();
  if (thread_in_block() < kSums) {
    double total = 0;
    for (int warp = 0; warp < kWarps; ++warp) total += scratch.sums[warp][thread_in_block()];
    params.sums[thread_in_block()] = static_cast<float>(total);
  }
}

__global__ void mix_kernel(Mix params) {
  const float groups = params.sums[kMeans];
  float means[kMeans];
  for (int s = 0; s < kMeans; ++s) {
    means[s] = params.sums[s] / at_least(groups, 1.f);
    params.parts[s] = means[s];
  }
  const float raw = means[0];
  const bool has_previous = *params.has_previous != 0;
  const float before = has_previous ? *params.previous : raw;
  const float smoothed =
      static_cast<float>(1.0 - params.ema) * raw + static_cast<float>(params.ema) * before;
  const float clamped = at_most(at_least(smoothed, 0.f), static_cast<float>(params.lambda_max));
  *params.rl_weight = groups > 0 ? (has_previous ? clamped : raw) : before;
}

}  // namespace

Status group_statistics(const GroupStatistics& params, void* stream) {
  if (params.groups < 0 || params.size < 0) return cudaErrorInvalidValue;
  return launch(group_statistics_kernel, {1, kThreads}, stream, params);
}

Status mix(const Mix& params, void* stream) { return launch(mix_kernel, {1, 1}, stream, params); }

}  // namespace wavalign::cuda
