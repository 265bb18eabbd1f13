// Kernels with one fault each, which the emulator and the sanitizers must name, and one without.
// The mode says which: the same numbers stand in test_emulator.py.
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/warps.cuh"
#include "wrong_kernels.h"

namespace wrong {
namespace {

using namespace wavalign::cuda;

constexpr int kThreads = 64;

struct Scratch {
  float values[kThreads];
};

// out[block] = sum of the block's values, through shared memory: right, unless the mode says else.
__global__ void sums_kernel(Params params) {
  WAVALIGN_SHARED(Scratch, scratch);
  const int t = thread_in_block(), block = static_cast<int>(blockIdx.x);
  const bool neighbour = params.mode == kIndexOverrun;
  if (params.mode != kUnwrittenShared || t != 5) {
    scratch.values[t + (neighbour ? 1 : 0)] = params.values[block * kThreads + t];
  }
  if (params.mode == kDivergentBarrier && t >= 40) {
    __syncthreads();
  } else if (params.mode == kBarrierAfterExit && t >= 40) {
    return;
  } else if (params.mode != kNoBarrier) {
    __syncthreads();
  }
  float sum = scratch.values[(t + kWarpLanes) % kThreads] + scratch.values[t];
  if (params.mode == kLaneExits && lane_of_warp() == 8) return;
  if (params.mode == kMaskWithoutMe) sum = __shfl_down_sync(0xfu, sum, 1);
  if (params.mode == kDivergentShuffle && lane_of_warp() < 16) {
    __syncthreads();
  } else {
    sum = warp_sum(sum);
  }
  if (t == 0) params.out[params.mode == kBlocksRace ? 0 : block] = sum;
}

// out[block] = values[0] of the next block of the cluster, through its shared memory.
__global__ void neighbours_kernel(Params params) {
  WAVALIGN_SHARED(Scratch, scratch);
  const int t = thread_in_block(), block = static_cast<int>(blockIdx.x);
  if (t == 0) scratch.values[0] = params.values[block * kThreads];
  cluster_arrive();
  if (params.mode != kNoClusterWait) cluster_wait();
  const int next = (cluster_rank() + 1) % cluster_size();
  if (t == 0) params.out[block] = *shared_of(&scratch.values[0], next);
  if (params.mode == kNoClusterWait) cluster_wait();
  if (params.mode == kEndsEarly) return;
  cluster_arrive();
  if (params.mode != kArrivesOnly) cluster_wait();
}

__global__ void vectors_kernel(Params params) {
  const int shift = params.mode == kMisaligned ? 1 : params.mode == kReadsBeyond ? kThreads : 0;
  const auto* vectors = reinterpret_cast<const uint4*>(params.values + shift);
  const uint4 bits = vectors[thread_in_block() % (kThreads / 4)];
  params.out[thread_in_block()] = static_cast<float>(bits.x);
}

__global__ void spinning_kernel(Params params) {
  const auto* word = reinterpret_cast<const uint64_t*>(params.values);
  while (load_relaxed(word) != 1) {
  }
}

}  // namespace

Status run(const Params& params, void* stream) {
  switch (params.mode) {
    case kClusterRight:
    case kNoClusterWait:
    case kEndsEarly:
    case kArrivesOnly:
      return launch(neighbours_kernel, {params.blocks, kThreads, 2}, stream, params);
    case kMisaligned:
    case kReadsBeyond:
      return launch(vectors_kernel, {1, kThreads}, stream, params);
    case kSpins:
      return launch(spinning_kernel, {1, kThreads}, stream, params);
    case kTooManyThreads:
      return launch(sums_kernel, {params.blocks, 2048}, stream, params);
    case kTooMuchShared:
      return launch(sums_kernel, {params.blocks, kThreads, 1, 300 * 1024}, stream, params);
    default:
      return launch(sums_kernel, {params.blocks, kThreads}, stream, params);
  }
}

}  // namespace wrong
