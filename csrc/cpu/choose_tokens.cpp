#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/rollout.h"
#include "cpu/rollout_kernels.h"

namespace wavalign::cpu {

namespace {

constexpr int64_t kNoToken = -1;
// Logits that are worth a thread of their own.
constexpr int64_t kLogitGrain = 1 << 14;

struct Choice {
  int64_t id;
  double logp;
};

// Eight sums, in an order that the compiler can keep in vectors.
double sum(const float* values, int64_t n) {
  constexpr int64_t kLanes = 8;
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += static_cast<double>(values[i + j]);
  }
  for (; i < n; ++i) lanes[i % kLanes] += static_cast<double>(values[i]);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

// The first value above 0 at which the running sum exceeds `target`, or, if rounding keeps the sum
// below it, the last value above 0. On return `target` lacks the sum of the values before it.
template <typename Number>
int64_t first_above(const Number* values, int64_t n, double& target) {
  int64_t last = 0;
  double before = 0, before_last = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double value = static_cast<double>(values[i]);
    if (!(value > 0)) continue;
    last = i;
    before_last = before;
    before += value;
    if (before > target) break;
  }
  target = std::max(0.0, target - before_last);
  return last;
}

template <typename T>
Choice choose(const T* logits, int64_t n, double uniform, float temperature,
              std::vector<double>& sums) {
  const DecodeKernels<T>& kernels = rollout_kernels().of<T>();
  const float top = kernels.max(logits, n);
  float probs[kSampleBlock];
  const auto block = [&](int64_t b) {
    const int64_t begin = b * kSampleBlock, size = std::min(kSampleBlock, n - begin);
    kernels.exp(logits + begin, size, top, temperature, probs);
    return size;
  };
  double total = 0;
  for (size_t b = 0; b < sums.size(); ++b) {
    sums[b] = sum(probs, block(static_cast<int64_t>(b)));
    total += sums[b];
  }
  if (!std::isfinite(total)) return {kNoToken, 0};
  double target = uniform * total;
  const int64_t found = first_above(sums.data(), static_cast<int64_t>(sums.size()), target);
  const int64_t id = found * kSampleBlock + first_above(probs, block(found), target);
  return {id, static_cast<double>((static_cast<float>(logits[id]) - top) / temperature) -
                  std::log(total)};
}

template <typename T>
void run(const at::Tensor& logits, const double* uniform, float temperature, int64_t* ids,
         float* logps) {
  const int64_t rows = logits.size(0), n = logits.size(1);
  const T* data = logits.const_data_ptr<T>();
  at::parallel_for(0, rows, std::max<int64_t>(1, kLogitGrain / n), [&](int64_t begin, int64_t end) {
    std::vector<double> sums((n + kSampleBlock - 1) / kSampleBlock);
    for (int64_t r = begin; r < end; ++r) {
      const Choice choice = choose(data + r * logits.stride(0), n, uniform[r], temperature, sums);
      ids[r] = choice.id;
      logps[r] = static_cast<float>(choice.logp);
    }
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> choose_tokens(const at::Tensor& logits,
                                                 const at::Tensor& uniform, double temperature) {
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.size(1) > 0, "logits: got the shape ",
                    logits.sizes(), ", want [N, V] with V > 0");
  const auto dtype = logits.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16, "logits: got ", dtype,
                   ", want float32 or bfloat16");
  TORCH_CHECK_VALUE(uniform.sizes() == at::IntArrayRef({logits.size(0)}), "uniform: got the shape ",
                    uniform.sizes(), ", want [", logits.size(0), "]");
  TORCH_CHECK_TYPE(uniform.scalar_type() == at::kDouble, "uniform: got ", uniform.scalar_type(),
                   ", want float64");
  TORCH_CHECK_VALUE(temperature > 0, "temperature: got ", temperature, ", want more than 0");
  const at::Tensor rows = logits.stride(1) == 1 ? logits : logits.contiguous();
  const at::Tensor numbers = uniform.contiguous();
  at::Tensor ids = at::empty({rows.size(0)}, numbers.options().dtype(at::kLong));
  at::Tensor logps = at::empty({rows.size(0)}, numbers.options().dtype(at::kFloat));
  const auto divisor = static_cast<float>(temperature);
  (dtype == at::kFloat ? run<float> : run<c10::BFloat16>)(rows, numbers.const_data_ptr<double>(),
                                                          divisor, ids.mutable_data_ptr<int64_t>(),
                                                          logps.mutable_data_ptr<float>());
  return {ids, logps};
}

}  // namespace wavalign::cpu
