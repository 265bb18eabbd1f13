// The part of CUDA C++ and of its runtime that the kernels use, for g++. Stands in for the
// toolkit's header of the same name; the emulator is in ../emulator.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using cudaStream_t = void*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNotSupported = 801,
  cudaErrorInvalidClusterSize = 912,
};

enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
};

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributePreferredSharedMemoryCarveout,
};
constexpr int cudaSharedmemCarveoutMaxShared = 100;
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

namespace cuda_on_cpu {

// The device that the emulator pretends to be, and how it schedules threads.
struct Device {
  int arch = 90;
  int shared_bytes = 232448;
  int most_cluster = 8;
  unsigned seed = 0;  // 0: threads and blocks in order; else random orders
  int launches = 0;
};
extern Device device;

unsigned thread_index();
unsigned block_index();
unsigned block_size();
unsigned grid_size();
int lane();
int cluster_rank();
int cluster_size();
int current_cluster();  // of the running thread, in the grid; -1 on the host

void sync_block(const char* file, int line);
void sync_warp(unsigned mask);
uint64_t warp_operation(const char* operation, unsigned mask, uint64_t value, int source);
void cluster_arrive();
void cluster_wait();
void* static_shared(const char* file, int line, size_t bytes);
unsigned char* dynamic_shared();
void* shared_of(void* mine, int rank);
float exp2_approximate(float x);
uint64_t load_relaxed(const uint64_t* p);
void store_relaxed(uint64_t* p, uint64_t value);
unsigned long long atomic_add(unsigned long long* p, unsigned long long value);
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   std::function<void()> body);
cudaError_t set_dynamic_bytes(const void* kernel, int bytes);

template <typename T>
T shuffle(const char* operation, unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "shuffles move up to eight bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_operation(operation, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// A built-in variable, evaluated when it is read.
template <unsigned (*get)()>
struct Axes {
  struct {
    operator unsigned() const { return get(); }
  } x;
};

}  // namespace cuda_on_cpu

// Grids and blocks have one axis here.
inline constexpr cuda_on_cpu::Axes<cuda_on_cpu::thread_index> threadIdx;
inline constexpr cuda_on_cpu::Axes<cuda_on_cpu::block_index> blockIdx;
inline constexpr cuda_on_cpu::Axes<cuda_on_cpu::block_size> blockDim;
inline constexpr cuda_on_cpu::Axes<cuda_on_cpu::grid_size> gridDim;

#define __syncthreads() cuda_on_cpu::sync_block(__FILE__, __LINE__)

constexpr int warpSize = 32;

inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_on_cpu::sync_warp(mask); }

// A lane without a partner gets its own value.
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int across) {
  const int lane = cuda_on_cpu::lane(), source = lane ^ across;
  return cuda_on_cpu::shuffle("__shfl_xor_sync", mask, value, source < warpSize ? source : lane);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, int offset) {
  const int lane = cuda_on_cpu::lane(), source = lane + offset;
  return cuda_on_cpu::shuffle("__shfl_down_sync", mask, value, source < warpSize ? source : lane);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, int offset) {
  const int lane = cuda_on_cpu::lane(), source = lane - offset;
  return cuda_on_cpu::shuffle("__shfl_up_sync", mask, value, source >= 0 ? source : lane);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  return static_cast<unsigned>(
      cuda_on_cpu::warp_operation("__ballot_sync", mask, predicate, cuda_on_cpu::lane()));
}

inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long value) {
  return cuda_on_cpu::atomic_add(p, value);
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
using std::isnan;
using std::max;
using std::min;

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  return cuda_on_cpu::set_dynamic_bytes(reinterpret_cast<const void*>(kernel), value);
}

template <typename... Args, typename... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Args...),
                               Given&&... args) {
  return cuda_on_cpu::launch(*config, reinterpret_cast<const void*>(kernel),
                             [=] { kernel(static_cast<Args>(args)...); });
}
