// Included before the kernel sources: what they ask of the runtime is noted with its stream.
#pragma once

#include <cuda_runtime.h>

#include "accelerator.h"

#define cudaLaunchKernelEx(config, ...) \
  (make_believe::launch("a kernel", (config)->stream), cudaLaunchKernelEx(config, __VA_ARGS__))
#define cudaMemsetAsync(memory, value, bytes, stream) \
  (make_believe::launch("a memset", stream), cudaMemsetAsync(memory, value, bytes, stream))
