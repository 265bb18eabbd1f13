// Loads and stores of 16 bytes per thread, between memory and fp32 registers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/dtypes.cuh"

namespace wavalign::cuda {

constexpr int kVectorBytes = 16;

inline bool on_vector(const void* p) { return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0; }

template <typename T>
constexpr int kVectorItems = kVectorBytes / static_cast<int>(sizeof(T));

// 16 bytes of T. A union, so that reading the items moves no register.
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

// Loads p[0, n) into `values` and sets the rest to 0. If n >= count, loads whole vectors; p must
// then be aligned to 16 bytes.
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

// Stores the first n of `values`, in whole vectors if n >= count.
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

}  // namespace wavalign::cuda
