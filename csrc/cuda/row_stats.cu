#include "cuda/row_stats.cuh"

namespace wavalign::cuda {
namespace {

struct RowScratch {
  SoftmaxSums<float> of_warps[kMostRowWarps];
};

template <typename In>
__global__ void __launch_bounds__(kMostRowThreads, kRowBlocks) row_stats_kernel(RowStats params) {
  WAVALIGN_SHARED(RowScratch, scratch);
  const RowChunk& chunk = params.chunk;
  const int64_t row = blockIdx.x;
  const Target target = target_of(chunk, row);
  if (!target.valid) {
    if (thread_in_block() == 0) write_summary(params.out, row, invalid_summary(target));
    return;
  }
  const In* logits = row_start<In>(chunk, row);
  const SoftmaxSums<float> sums = block_merged(
      thread_sums(logits, scaling_of(chunk), 0, static_cast<int>(chunk.vocab), KeepNothing()),
      scratch.of_warps);
  if (thread_in_block() == 0) {
    const float at_target = scaling_of(chunk).z(widened(logits[target.id]), target.id);
    write_summary(params.out, row, summary(sums, at_target));
  }
}

}  // namespace

Status row_stats(const RowStats& params, void* stream) {
  const RowChunk& chunk = params.chunk;
  if (chunk.rows == 0) return cudaSuccess;
  if (!well_formed(chunk)) return cudaErrorInvalidValue;
  const Grid grid = {chunk.rows, row_threads(chunk.vocab)};
  if (chunk.dtype == Dtype::kFloat32) return launch(row_stats_kernel<float>, grid, stream, params);
  return launch(row_stats_kernel<__nv_bfloat16>, grid, stream, params);
}

}  // namespace wavalign::cuda
