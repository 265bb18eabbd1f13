#include "cuda/row_gradient.cuh"

namespace wavalign::cuda {
namespace {

__device__ __forceinline__ float or_zero(const float* values, int64_t row) {
  return values == nullptr ? 0.f : values[row];
}

template <typename In, typename Out>
__global__ void __launch_bounds__(kMostRowThreads, kRowBlocks)
    row_gradient_kernel(RowGradient params) {
  const RowChunk& chunk = params.chunk;
  const int64_t row = blockIdx.x;
  const int vocab = static_cast<int>(chunk.vocab);
  const Target target = target_of(chunk, row);
  In* logits = row_start<In>(chunk, row);
  Out* result = reinterpret_cast<Out*>(logits);
  const RowGrads<float> grads = {or_zero(params.grad_logp, row), or_zero(params.grad_entropy, row),
                                 or_zero(params.grad_lse, row)};
  if (!target.valid || !any(grads)) {
    write_zeros(result, 0, vocab);
    return;
  }
  const RowSummary<float> stats = {params.top[row], params.log_sum[row], params.logp[row],
                                   params.entropy[row]};
  write_gradient<true>(logits, result, scaling_of(chunk), 0, vocab,
                       GradientOfRow{stats, grads, target.id});
}

}  // namespace

Status row_gradient(const RowGradient& params, void* stream) {
  const RowChunk& chunk = params.chunk;
  if (chunk.rows == 0) return cudaSuccess;
  if (!well_formed(chunk)) return cudaErrorInvalidValue;
  const Grid grid = {chunk.rows, row_threads(chunk.vocab)};
  return with_row_dtypes(chunk.dtype, params.out_dtype, [&](auto in, auto out) {
    return launch(row_gradient_kernel<decltype(in), decltype(out)>, grid, stream, params);
  });
}

}  // namespace wavalign::cuda
