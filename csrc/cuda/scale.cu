// Multiplies a gradient by a factor that is known only on the device.
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/vector_access.cuh"
#include "cuda/warps.cuh"

namespace wavalign::cuda {
namespace {

// Each thread keeps four vectors in flight, 8 MiB in the whole grid: more than the product of
// latency and bandwidth of an H100 (about 1 us times 3.35 TB/s). By their registers, all blocks fit
// on 128 multiprocessors at once. More blocks would only take longer when the factor is 1.
constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 512;
constexpr int kBatch = 4;

template <typename T>
__device__ __forceinline__ T product(T item, float factor) {
  return narrowed<T>(widened(item) * factor);
}

// The first `head` items lie before the first aligned vector.
template <typename T>
__global__ void __launch_bounds__(kThreads) scale_kernel(Scale params, int head) {
  const float factor = *params.factor;
  if (factor == 1.f) return;  // the usual case of a backward pass
  constexpr int kItems = kVectorItems<T>;
  T* items = static_cast<T*>(params.gradient);
  T* body = items + head;
  const int64_t vectors = (params.size - head) / kItems;
  const int64_t threads = int64_t{gridDim.x} * threads_of_block();
  const int64_t thread = int64_t{blockIdx.x} * threads_of_block() + thread_in_block();
  for (int64_t first = thread; first < vectors; first += kBatch * threads) {
    Vector<T> batch[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t v = first + b * threads;
      if (v < vectors) batch[b] = load_vector(body + v * kItems);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t v = first + b * threads;
#pragma unroll
      for (int j = 0; j < kItems; ++j) batch[b].items[j] = product(batch[b].items[j], factor);
      if (v < vectors) store_vector(body + v * kItems, batch[b]);
    }
  }
  // The items at both ends that fill no vector. The last threads take them: they have the least to
  // do.
  const int64_t edge = threads - 1 - thread;
  const int64_t item = edge < head ? edge : edge + vectors * kItems;
  if (item < params.size) items[item] = product(items[item], factor);
}

template <typename T>
Status launch_scale(const Scale& params, void* stream) {
  const auto address = reinterpret_cast<uintptr_t>(params.gradient);
  if (address % sizeof(T) != 0) return cudaErrorInvalidValue;
  const auto before = static_cast<int64_t>(-address % kVectorBytes / sizeof(T));
  const int head = static_cast<int>(std::min(params.size, before));
  constexpr int64_t kOfBlock = kThreads * kVectorItems<T>;
  const Grid grid = {std::min(kMostBlocks, (params.size + kOfBlock - 1) / kOfBlock), kThreads};
  return launch(scale_kernel<T>, grid, stream, params, head);
}

}  // namespace

Status scale(const Scale& params, void* stream) {
  if (params.size == 0) return cudaSuccess;
  if (params.size < 0) return cudaErrorInvalidValue;
  return with_dtype(params.dtype,
                    [&](auto item) { return launch_scale<decltype(item)>(params, stream); });
}

}  // namespace wavalign::cuda
