// Numbers in memory as fp32 in registers, 16 bytes at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels.h"

namespace wavalign::cuda {

constexpr int kVectorBytes = 16;

inline bool on_vector(const void* p) { return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0; }

template <typename T>
constexpr int kVectorItems = kVectorBytes / static_cast<int>(sizeof(T));

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

// 16 bytes of T; a union, so that registers are only renamed.
template <typename T>
union Vector {
  uint4 bits;
  T items[kVectorItems<T>];
  __device__ __forceinline__ Vector() : bits{} {}
};

template <typename T>
__device__ __forceinline__ Vector<T> load_vector(const T* p) {
  Vector<T> vector;
  vector.bits = *reinterpret_cast<const uint4*>(p);
  return vector;
}

template <typename T>
__device__ __forceinline__ void store_vector(T* p, const Vector<T>& vector) {
  *reinterpret_cast<uint4*>(p) = vector.bits;
}

// `n` numbers of T, `count` of them in whole vectors; past n: 0.
template <int count, typename T>
__device__ __forceinline__ void load_items(const T* p, int n, float (&values)[count]) {
  static_assert(count % kVectorItems<T> == 0, "whole vectors");
  if (n >= count) {
#pragma unroll
    for (int first = 0; first < count; first += kVectorItems<T>) {
      const Vector<T> vector = load_vector(p + first);
#pragma unroll
      for (int j = 0; j < kVectorItems<T>; ++j) values[first + j] = widened(vector.items[j]);
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < count; ++j) values[j] = j < n ? widened(p[j]) : 0.f;
}

// The first n of `values`.
template <int count, typename T>
__device__ __forceinline__ void store_items(T* p, int n, const float (&values)[count]) {
  static_assert(count % kVectorItems<T> == 0, "whole vectors");
  if (n >= count) {
#pragma unroll
    for (int first = 0; first < count; first += kVectorItems<T>) {
      Vector<T> vector;
#pragma unroll
      for (int j = 0; j < kVectorItems<T>; ++j) vector.items[j] = narrowed<T>(values[first + j]);
      store_vector(p + first, vector);
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < count; ++j) {
    if (j < n) p[j] = narrowed<T>(values[j]);
  }
}

// Calls `function` with a value of the C++ type of `dtype`.
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

}  // namespace wavalign::cuda
