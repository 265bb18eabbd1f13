// Instructions that CUDA C++ does not expose, and declarations of shared memory. Each has a second
// version for the CUDA-on-CPU tests, which emulate blocks and their shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#if defined(WAVALIGN_CUDA_ON_CPU)

#define WAVALIGN_SHARED(type, name) \
  type& name = *static_cast<type*>(cuda_on_cpu::static_shared(__FILE__, __LINE__, sizeof(type)))
#define WAVALIGN_DYNAMIC_SHARED(name) unsigned char* const name = cuda_on_cpu::dynamic_shared()

#else

#define WAVALIGN_SHARED(type, name) __shared__ type name
#define WAVALIGN_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

#endif

namespace wavalign::cuda {

// 2^x. Results below 2^-126 flush to 0. The PTX ISA bounds the relative error by 2^-22.
#if defined(WAVALIGN_CUDA_ON_CPU)

inline float exp2_approximate(float x) { return cuda_on_cpu::exp2_approximate(x); }

#else

__device__ __forceinline__ float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

#endif

// Clusters exist from sm_90 on. On older GPUs every block is its own cluster, and waiting is a
// block barrier.
#if defined(WAVALIGN_CUDA_ON_CPU)

inline int cluster_rank() { return cuda_on_cpu::cluster_rank(); }
inline int cluster_size() { return cuda_on_cpu::cluster_size(); }
inline void cluster_arrive() { cuda_on_cpu::cluster_arrive(); }
inline void cluster_wait() { cuda_on_cpu::cluster_wait(); }

template <typename T>
T* shared_of(T* mine, int rank) {
  return static_cast<T*>(cuda_on_cpu::shared_of(mine, rank));
}

inline uint64_t load_relaxed(const uint64_t* p) { return cuda_on_cpu::load_relaxed(p); }
inline void store_relaxed(uint64_t* p, uint64_t value) { cuda_on_cpu::store_relaxed(p, value); }

#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

__device__ __forceinline__ int cluster_size() {
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return static_cast<int>(size);
}

// Arriving releases the thread's writes to global memory and to the shared memory of the cluster;
// waiting acquires them. The threads of a warp need not arrive together.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// The address of the same variable in the shared memory of another block of the cluster.
template <typename T>
__device__ __forceinline__ T* shared_of(T* mine, int rank) {
  uint64_t theirs;
  asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(mine), "r"(rank));
  return reinterpret_cast<T*>(theirs);
}

#else

__device__ __forceinline__ int cluster_rank() { return 0; }
__device__ __forceinline__ int cluster_size() { return 1; }
__device__ __forceinline__ void cluster_arrive() {}
__device__ __forceinline__ void cluster_wait() { __syncthreads(); }

template <typename T>
__device__ __forceinline__ T* shared_of(T* mine, int) {
  return mine;
}

#endif

#if !defined(WAVALIGN_CUDA_ON_CPU)

// Relaxed access to a word that other blocks use too. It orders no other memory access, so the word
// must carry all the information by itself.
__device__ __forceinline__ uint64_t load_relaxed(const uint64_t* p) {
  uint64_t value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(p));
  return value;
}

__device__ __forceinline__ void store_relaxed(uint64_t* p, uint64_t value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(value));
}

#endif

}  // namespace wavalign::cuda
