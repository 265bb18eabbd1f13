// Gathers rows of a matrix by index, and scatters rows into one.
#include "cuda/launch.cuh"
#include "cuda/vector_access.cuh"
#include "cuda/warps.cuh"

namespace wavalign::cuda {
namespace {

constexpr int kMostThreads = 256;
constexpr int kUnit = 8;

int copy_threads(int64_t items) {
  int threads = kWarpLanes;
  while (threads < kMostThreads && threads < items) threads *= 2;
  return threads;
}

// Word is the widest type of which rows and addresses are multiples; a row has `words` of them.
template <typename Word>
__global__ void __launch_bounds__(kMostThreads)
    gather_rows_kernel(GatherRows params, int64_t words) {
  const int64_t n = blockIdx.x;
  const int64_t from = params.index[n];
  const bool inside = from >= 0 && from < params.size;
  const Word* source = static_cast<const Word*>(params.source) + (inside ? from * words : 0);
  Word* row = static_cast<Word*>(params.rows) + n * words;
  for (int64_t w = thread_in_block(); w < words; w += threads_of_block()) {
    row[w] = inside ? source[w] : Word();
  }
}

template <typename In, typename Out>
__global__ void __launch_bounds__(kMostThreads)
    scatter_rows_kernel(ScatterRows params, bool vectors) {
  const int64_t n = blockIdx.x;
  const int64_t to = params.index[n];
  if (to < 0 || to >= params.size) return;
  const In* row = static_cast<const In*>(params.rows) + n * params.width;
  Out* target = static_cast<Out*>(params.target) + to * params.width;
  if (vectors) {
    for (int64_t i = kUnit * thread_in_block(); i < params.width; i += kUnit * threads_of_block()) {
      float values[kUnit];
      load_items(row + i, kUnit, values);
      store_items(target + i, kUnit, values);
    }
    return;
  }
  for (int64_t i = thread_in_block(); i < params.width; i += threads_of_block()) {
    target[i] = narrowed<Out>(widened(row[i]));
  }
}

template <typename Word>
Status launch_gather(const GatherRows& params, int64_t row_bytes, void* stream) {
  const int64_t words = row_bytes / static_cast<int64_t>(sizeof(Word));
  return launch(gather_rows_kernel<Word>, {params.count, copy_threads(words)}, stream, params,
                words);
}

}  // namespace

Status gather_rows(const GatherRows& params, void* stream) {
  const int64_t row_bytes = params.width * params.item_bytes;
  if (params.count == 0 || row_bytes == 0) return cudaSuccess;
  if (params.count < 0 || row_bytes < 0) return cudaErrorInvalidValue;
  const uintptr_t common = reinterpret_cast<uintptr_t>(params.source) |
                           reinterpret_cast<uintptr_t>(params.rows) |
                           static_cast<uintptr_t>(row_bytes);
  if (common % sizeof(uint4) == 0) return launch_gather<uint4>(params, row_bytes, stream);
  if (common % sizeof(uint64_t) == 0) return launch_gather<uint64_t>(params, row_bytes, stream);
  if (common % sizeof(uint32_t) == 0) return launch_gather<uint32_t>(params, row_bytes, stream);
  if (common % sizeof(uint16_t) == 0) return launch_gather<uint16_t>(params, row_bytes, stream);
  return launch_gather<uint8_t>(params, row_bytes, stream);
}

Status scatter_rows(const ScatterRows& params, void* stream) {
  if (params.count == 0 || params.width == 0) return cudaSuccess;
  if (params.count < 0 || params.width < 0) return cudaErrorInvalidValue;
  const bool vectors =
      params.width % kUnit == 0 && on_vector(params.rows) && on_vector(params.target);
  const Grid grid = {params.count, copy_threads(vectors ? params.width / kUnit : params.width)};
  return with_dtype(params.rows_dtype, [&](auto in) {
    return with_dtype(params.target_dtype, [&](auto out) {
      return launch(scatter_rows_kernel<decltype(in), decltype(out)>, grid, stream, params,
                    vectors);
    });
  });
}

}  // namespace wavalign::cuda
