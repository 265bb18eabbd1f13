// Launches a kernel: every launch function of this folder goes through here.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels.h"

namespace wavalign::cuda {

struct Grid {
  int64_t blocks;
  int threads;
  int cluster = 1;  // consecutive blocks that form a cluster
  int64_t shared_bytes = 0;
};

// Clears CUDA's last error, which sticks until it is read: the caller reports this status, and the
// next call of cudaGetLastError must not report it again.
inline Status cleared(cudaError_t error) {
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error;
}

// Enqueues `kernel(args...)`; the status says whether the launch was accepted.
template <typename... Args>
Status launch(void (*kernel)(Args...), const Grid& grid, void* stream, Args... args) {
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
  if (grid.blocks == 0) return cudaSuccess;
  if (grid.blocks > kMostBlocks) return cudaErrorInvalidValue;
  if (grid.shared_bytes > 0) {
    // More than 48 KB for a block must be requested, and two such blocks fit on a multiprocessor
    // only if it does not use that memory as L1 cache.
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             static_cast<int>(grid.shared_bytes));
    if (error == cudaSuccess) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                   cudaSharedmemCarveoutMaxShared);
    }
    if (error != cudaSuccess) return cleared(error);
  }
  cudaLaunchAttribute cluster[1] = {};
  cluster[0].id = cudaLaunchAttributeClusterDimension;
  cluster[0].val.clusterDim.x = static_cast<unsigned>(grid.cluster);
  cluster[0].val.clusterDim.y = 1;
  cluster[0].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = cluster;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  return cleared(cudaLaunchKernelEx(&config, kernel, args...));
}

struct DeviceLimits {
  int arch;              // 90 for sm_90
  int64_t shared_bytes;  // the most that a block can request
};

// Queries the current device.
inline Status device_limits(DeviceLimits& limits) {
  int device = 0, major = 0, minor = 0, shared = 0;
  const struct {
    int* value;
    cudaDeviceAttr attribute;
  } wanted[] = {{&major, cudaDevAttrComputeCapabilityMajor},
                {&minor, cudaDevAttrComputeCapabilityMinor},
                {&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin}};
  cudaError_t error = cudaGetDevice(&device);
  for (const auto& [value, attribute] : wanted) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
  }
  limits = {10 * major + minor, shared};
  return cleared(error);
}

}  // namespace wavalign::cuda
