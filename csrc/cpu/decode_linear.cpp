// The linear layers of a decoded token.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "cpu/decode_checks.h"
#include "cpu/rollout.h"
#include "cpu/rollout_kernels.h"

namespace wavalign::cpu {

namespace {

// Multiply-adds that are worth a thread of their own.
constexpr int64_t kLinearGrain = 1 << 17;

struct Chunk {
  size_t weight;
  int64_t begin, end;
};

int64_t checked_outputs(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                        const c10::List<std::optional<at::Tensor>>& biases) {
  TORCH_CHECK_VALUE(x.dim() == 2 && x.size(1) > 0, "x: got the shape ", x.sizes(),
                    ", want [N, K] with K > 0");
  check_plain("x", x, at::kFloat);
  TORCH_CHECK_VALUE(biases.size() == weights.size(), "biases: got ", biases.size(), ", want ",
                    weights.size(), ", one for each of the weights");
  int64_t outputs = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor& weight = weights[i];
    TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(1) == x.size(1), "weights[", i,
                      "]: got the shape ", weight.sizes(), ", want [F, ", x.size(1), "]");
    check_plain("weights", weight, at::kFloat);
    if (const std::optional<at::Tensor> bias = biases.get(i)) {
      check_shape("biases", *bias, {weight.size(0)});
      check_plain("biases", *bias, at::kFloat);
    }
    outputs += weight.size(0);
  }
  return outputs;
}

}  // namespace

at::Tensor decode_linear(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                         const c10::List<std::optional<at::Tensor>>& biases) {
  const int64_t outputs = checked_outputs(x, weights, biases);
  const int64_t rows = x.size(0), k = x.size(1);
  at::Tensor out = at::empty({rows, outputs}, x.options());
  const LinearKernels& kernels = rollout_kernels().linear;
  const at::Tensor packed = at::empty({kernels.packed_size(rows, k)}, x.options());
  kernels.pack(x.const_data_ptr<float>(), rows, k, packed.mutable_data_ptr<float>());

  std::vector<LinearTask> tasks;
  std::vector<Chunk> chunks;
  int64_t column = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const std::optional<at::Tensor> bias = biases.get(i);
    const int64_t size = weights[i].size(0);
    tasks.push_back({packed.const_data_ptr<float>(), rows, k, size,
                     weights[i].const_data_ptr<float>(),
                     bias ? bias->const_data_ptr<float>() : nullptr,
                     out.mutable_data_ptr<float>() + column, outputs});
    for (int64_t begin = 0; begin < size; begin += kLinearChunk) {
      chunks.push_back({i, begin, std::min(size, begin + kLinearChunk)});
    }
    column += size;
  }
  const int64_t work = kLinearChunk * std::max<int64_t>(1, rows) * k;
  at::parallel_for(0, static_cast<int64_t>(chunks.size()),
                   std::max<int64_t>(1, kLinearGrain / work), [&](int64_t first, int64_t last) {
                     for (int64_t i = first; i < last; ++i) {
                       const Chunk& chunk = chunks[i];
                       kernels.multiply(tasks[chunk.weight], chunk.begin, chunk.end);
                     }
                   });
  return out;
}

}  // namespace wavalign::cpu
