#include <cuda_runtime.h>

#include "cuda/kernels.h"

namespace wavalign::cuda {

const char* status_text(Status status) {
  return cudaGetErrorString(static_cast<cudaError_t>(status));
}

}  // namespace wavalign::cuda
