// The part of the CUDA runtime that launch functions call, for a device that is only described. A
// launch calls a function of the caller's with the kernel's name, its grid and its arguments. The
// launch functions are the real ones, compiled by nvcc.
#include <cuda_runtime.h>

#include <map>
#include <string>

namespace {

struct Geometry {
  unsigned grid[3];
  unsigned block[3];
  unsigned cluster[3];
  size_t dynamic_shared;
};

using OnLaunch = void (*)(const char* kernel, const Geometry* geometry, void** arguments);
using OnFill = void (*)(void* start, int value, size_t bytes);

struct Device {
  int arch = 0;
  int shared_bytes = 0;
  OnLaunch on_launch = nullptr;
  OnFill on_fill = nullptr;
} device;

constexpr int kSharedWithoutAsking = 48 * 1024;

struct Function {
  std::string name;
  int shared_limit = kSharedWithoutAsking;
};

// The runtime knows a kernel by the address of the host function that stands for it.
std::map<const void*, Function>& functions() {
  static std::map<const void*, Function> table;
  return table;
}

cudaError_t launched(const void* function, Geometry geometry, void** arguments) {
  const auto found = functions().find(function);
  if (found == functions().end()) return cudaErrorInvalidDeviceFunction;
  if (geometry.dynamic_shared > static_cast<size_t>(found->second.shared_limit)) {
    return cudaErrorInvalidValue;
  }
  if (geometry.cluster[0] > 1 && device.arch < 90) return cudaErrorInvalidClusterSize;
  device.on_launch(found->second.name.c_str(), &geometry, arguments);
  return cudaSuccess;
}

}  // namespace

extern "C" {

void recording_describe(int arch, int shared_bytes, OnLaunch on_launch, OnFill on_fill) {
  device = {arch, shared_bytes, on_launch, on_fill};
  for (auto& [address, function] : functions()) function.shared_limit = kSharedWithoutAsking;
}

void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  functions()[host].name = name;
}

// A host function that stands for a kernel could be called itself; launch functions never do that.
cudaError_t __cudaGetKernel(void**, const void*) { return cudaErrorNotSupported; }
cudaError_t __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, cudaStream_t) {
  return cudaErrorNotSupported;
}
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) {
  return cudaErrorNotSupported;
}

cudaError_t cudaGetDevice(int* number) {
  *number = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = device.arch / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = device.arch % 10;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = device.shared_bytes;
      return cudaSuccess;
    default:
      return cudaErrorNotSupported;
  }
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the recording runtime"; }

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  // The split of memory between cache and shared memory makes no difference here.
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorNotSupported;
  if (value > device.shared_bytes) return cudaErrorInvalidValue;
  functions()[function].shared_limit = value;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  Geometry geometry = {
      {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, {1, 1, 1}, config->dynamicSmemBytes};
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id != cudaLaunchAttributeClusterDimension) return cudaErrorNotSupported;
    const auto& cluster = config->attrs[i].val.clusterDim;
    geometry.cluster[0] = cluster.x;
    geometry.cluster[1] = cluster.y;
    geometry.cluster[2] = cluster.z;
  }
  return launched(function, geometry, arguments);
}

cudaError_t cudaMemsetAsync(void* start, int value, size_t bytes, cudaStream_t) {
  device.on_fill(start, value, bytes);
  return cudaSuccess;
}

}  // extern "C"
