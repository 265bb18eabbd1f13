// Indices of threads, lanes and warps, and reductions over a warp.
#pragma once

#include <cuda_runtime.h>

namespace wavalign::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarpLanes = 32;

__device__ __forceinline__ int thread_in_block() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int threads_of_block() { return static_cast<int>(blockDim.x); }
__device__ __forceinline__ int lane_of_warp() { return thread_in_block() % kWarpLanes; }
__device__ __forceinline__ int warp_of_block() { return thread_in_block() / kWarpLanes; }

// Reduces `value` over all lanes and returns the result in every lane. `combine` must be
// commutative, or lanes would get different results.
template <typename T, typename Combine>
__device__ __forceinline__ T warp_combined(T value, Combine combine) {
#pragma unroll
  for (int offset = kWarpLanes / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  return warp_combined(value, [](T a, T b) { return a + b; });
}

}  // namespace wavalign::cuda
