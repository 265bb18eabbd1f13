// The C++ type of each Dtype, and its conversion to and from fp32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/kernels.h"

namespace wavalign::cuda {

// Calls `function` with a value whose C++ type is that of `dtype`.
template <typename Function>
Status with_dtype(Dtype dtype, Function function) {
  switch (dtype) {
    case Dtype::kFloat32:
      return function(float());
    case Dtype::kBFloat16:
      return function(__nv_bfloat16());
    case Dtype::kFloat16:
      return function(__half());
  }
  return cudaErrorInvalidValue;
}

__device__ __forceinline__ float widened(float value) { return value; }
__device__ __forceinline__ float widened(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float widened(__half value) { return __half2float(value); }

template <typename T>
__device__ __forceinline__ T narrowed(float value);
template <>
__device__ __forceinline__ float narrowed<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrowed<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ __half narrowed<__half>(float value) {
  return __float2half_rn(value);
}

}  // namespace wavalign::cuda
