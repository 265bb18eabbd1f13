// Included before the kernel sources: records their calls of the runtime, with the stream.
#pragma once

#include <cuda_runtime.h>

#include "accelerator.h"

#define cudaLaunchKernelEx(config, ...) \
  (pretended::launch("a kernel", (config)->stream), cudaLaunchKernelEx(config, __VA_ARGS__))
#define cudaMemsetAsync(memory, value, bytes, stream) \
  (pretended::launch("a memset", stream), cudaMemsetAsync(memory, value, bytes, stream))
