#include "cuda/row_gradient.cuh"

namespace wavalign::cuda {
namespace {

struct RowScratch {
  SoftmaxSums<float> of_warps[kMostRowWarps];
  SoftmaxSums<float> of_block;
  RowSummary<float> row;
  float grad_logp;
};

// Shared memory that the system reserves for each block, in addition to what the block requests.
constexpr int64_t kSystemBytes = 1024;
static_assert(sizeof(RowScratch) <= 512, "the plan counts 512 bytes of scratch");
constexpr int64_t kScratchBytes = 512;

__device__ __forceinline__ TokenTerms<float> terms_of(const TokenTable& table, int64_t row) {
  const bool has_old = table.old_logp != nullptr, has_ref = table.ref_logp != nullptr;
  return {table.policy_coef[row],
          table.advantage[row],
          table.kl_coef[row],
          table.anchor_coef[row],
          has_old ? table.old_logp[row] : 0.f,
          has_ref ? table.ref_logp[row] : 0.f,
          has_old,
          has_ref};
}

__device__ __forceinline__ void write_invalid(const HybridRows& params, int64_t row,
                                              const Target& target) {
  const RowSummary<float> invalid = invalid_summary(target);
  write_summary(params.out, row, invalid);
  const ClipBounds<float> clip = {params.clip_low, params.clip_high};
  params.grad_logp[row] =
      target.dead ? 0.f : token_gradient(invalid.logp, terms_of(params.table, row), clip);
}

// Each cluster takes one row and each of its blocks `slice` logits of it. kHeld: the slice stays in
// shared memory between statistics and gradient. Otherwise it is read twice.
template <typename In, typename Out, bool kHeld>
__global__ void __launch_bounds__(kMostRowThreads, kRowBlocks)
    hybrid_rows_kernel(HybridRows params, int slice) {
  WAVALIGN_DYNAMIC_SHARED(dynamic);
  WAVALIGN_SHARED(RowScratch, scratch);
  const RowChunk& chunk = params.chunk;
  const int rank = cluster_rank(), blocks = cluster_size();
  const int64_t row = blockIdx.x / static_cast<unsigned>(blocks);
  const int vocab = static_cast<int>(chunk.vocab);
  const int begin = min(rank * slice, vocab), end = min(begin + slice, vocab);
  const Scaling scaling = scaling_of(chunk);
  In* logits = row_start<In>(chunk, row);
  Out* result = reinterpret_cast<Out*>(logits);
  const Target target = target_of(chunk, row);
  if (!target.valid) {
    if (rank == 0 && thread_in_block() == 0) write_invalid(params, row, target);
    write_zeros(result, begin, end);
    return;
  }
  In* held = reinterpret_cast<In*>(dynamic);
  SoftmaxSums<float> sums;
  if constexpr (kHeld) {
    sums = thread_sums(logits, scaling, begin, end, KeepIn<In>{held});
  } else {
    sums = thread_sums(logits, scaling, begin, end, KeepNothing());
  }
  sums = block_merged(sums, scratch.of_warps);
  float at_target = 0.f;
  TokenTerms<float> terms = {};
  if (thread_in_block() == 0) {
    scratch.of_block = sums;
    // Read the target's logit before arriving at the barrier: no block writes to the row until all
    // have arrived. The latency of these loads then overlaps with the wait.
    at_target = scaling.z(widened(logits[target.id]), target.id);
    terms = terms_of(params.table, row);
  }
  cluster_arrive();
  cluster_wait();
  if (warp_of_block() == 0) {
    const int lane = lane_of_warp();
    sums = warp_merged(lane < blocks ? *shared_of(&scratch.of_block, lane) : no_logits<float>());
    if (lane == 0) {
      // Every block computes this itself, in the same order and so with the same bits.
      scratch.row = summary(sums, at_target);
      scratch.grad_logp =
          token_gradient(scratch.row.logp, terms, {params.clip_low, params.clip_high});
      if (rank == 0) {
        write_summary(params.out, row, scratch.row);
        params.grad_logp[row] = scratch.grad_logp;
      }
    }
  }
  cluster_arrive();  // this block has read the shared memory of the others
  __syncthreads();
  const RowGrads<float> grads = {scratch.grad_logp, 0.f, 0.f};
  if (any(grads)) {
    write_gradient<!kHeld>(kHeld ? held : logits + begin, result, scaling, begin, end,
                           GradientOfRow{scratch.row, grads, target.id});
  } else {
    write_zeros(result, begin, end);
  }
  cluster_wait();  // a block's shared memory is gone when it exits
}

int64_t slice_items(int64_t vocab, int cluster) {
  const int64_t units = (vocab + kUnit - 1) / kUnit;
  return (units + cluster - 1) / cluster * kUnit;
}

template <typename In, typename Out>
Status launch_plan(const HybridRows& params, const RowPlan& plan, void* stream) {
  const int64_t slice = slice_items(params.chunk.vocab, plan.cluster);
  const Grid grid = {params.chunk.rows * plan.cluster, row_threads(slice), plan.cluster,
                     plan.shared_bytes};
  const auto kernel = plan.strategy == RowStrategy::kShared ? hybrid_rows_kernel<In, Out, true>
                                                            : hybrid_rows_kernel<In, Out, false>;
  return launch(kernel, grid, stream, params, static_cast<int>(slice));
}

constexpr RowPlan kStreamedPlan = {RowStrategy::kStreamed, 1, 0};

}  // namespace

RowPlan plan_hybrid_rows(int arch, int64_t vocab, Dtype dtype, int64_t shared_limit) {
  // Prefer two blocks on a multiprocessor, even if that takes a larger cluster: one block reads its
  // row while the other writes.
  const int most = arch >= 90 ? 8 : 1;
  for (const int resident : {2, 1}) {
    const int64_t share = (shared_limit + kSystemBytes) / resident - kSystemBytes - kScratchBytes;
    for (int cluster = 1; cluster <= most; cluster *= 2) {
      const int64_t bytes = slice_items(vocab, cluster) * item_bytes(dtype);
      if (bytes <= share) return {RowStrategy::kShared, cluster, bytes};
    }
  }
  return kStreamedPlan;
}

Status hybrid_rows(const HybridRows& params, void* stream) {
  const RowChunk& chunk = params.chunk;
  if (chunk.rows == 0) return cudaSuccess;
  if (!well_formed(chunk)) return cudaErrorInvalidValue;
  DeviceLimits limits;
  const Status status = device_limits(limits);
  if (status != cudaSuccess) return status;
  const RowPlan plan = plan_hybrid_rows(limits.arch, chunk.vocab, chunk.dtype, limits.shared_bytes);
  return with_row_dtypes(chunk.dtype, params.out_dtype, [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    const Status launched = launch_plan<In, Out>(params, plan, stream);
    // A MIG slice may have no room for a cluster that fits on the whole device.
    if (launched == cudaSuccess || plan.cluster == 1) return launched;
    return launch_plan<In, Out>(params, kStreamedPlan, stream);
  });
}

}  // namespace wavalign::cuda
