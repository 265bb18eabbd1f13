// Device code for the statistics of a row: its logits, its target, and its softmax sums in one
// pass.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/token_math.h"
#include "cuda/vector_access.cuh"
#include "cuda/warps.cuh"

namespace wavalign::cuda {

constexpr int kMostRowThreads = 512;
constexpr int kRowBlocks = 2;  // that a multiprocessor must have room for, at least
constexpr int kMostRowWarps = kMostRowThreads / kWarpLanes;
// Positions in a row are ints, with room for one step beyond the end.
constexpr int64_t kMostVocab = int64_t{1} << 30;

// The number of threads of a block that works on `items` logits of a row. Each thread gets at least
// two vectors, up to the limit. The summation tree follows from this number, so it must depend on
// the vocabulary alone.
inline int row_threads(int64_t items) {
  int threads = 2 * kWarpLanes;
  while (threads < kMostRowThreads && threads * int64_t{16} < items) threads *= 2;
  return threads;
}

inline int64_t item_bytes(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

inline bool well_formed(const RowChunk& chunk) {
  return chunk.rows >= 0 && chunk.vocab > 0 && chunk.vocab <= kMostVocab &&
         chunk.pitch >= chunk.vocab && chunk.pitch * item_bytes(chunk.dtype) % kVectorBytes == 0 &&
         chunk.dtype != Dtype::kFloat16 && on_vector(chunk.logits) && on_vector(chunk.bias);
}

// Calls `function` with a value of the logits' type and one of their gradient's, which is no wider.
template <typename Function>
Status with_row_dtypes(Dtype dtype, Dtype out_dtype, Function function) {
  return with_dtype(out_dtype, [&](auto out) -> Status {
    if (dtype == Dtype::kFloat32) return function(float(), out);
    if constexpr (sizeof(out) == sizeof(__nv_bfloat16)) {
      if (dtype == Dtype::kBFloat16) return function(__nv_bfloat16(), out);
    }
    return cudaErrorInvalidValue;
  });
}

template <typename In>
__device__ __forceinline__ In* row_start(const RowChunk& chunk, int64_t row) {
  return static_cast<In*>(chunk.logits) + row * chunk.pitch;
}

struct Target {
  int id;
  bool dead;   // has the ignored id: the row's results are 0
  bool valid;  // neither dead nor outside the vocabulary
};

__device__ __forceinline__ Target target_of(const RowChunk& chunk, int64_t row) {
  const int64_t id = chunk.targets[row];
  const bool dead = id == chunk.ignore_index;
  const bool valid = !dead && id >= 0 && id < chunk.vocab;
  return {valid ? static_cast<int>(id) : -1, dead, valid};
}

// z = logit * scale + bias, as one explicit fused multiply-add. If the compiler chose, it could
// fuse in one place and not in another, and z - top would not be 0 at the largest logit.
struct Scaling {
  float scale;
  const float* bias;  // or null

  // Turns the first `n` of `values`, the logits from position `at` on, into z.
  template <int count>
  __device__ __forceinline__ void apply(float (&values)[count], int at, int n) const {
    float shift[count] = {};
    if (bias != nullptr) load_items(bias + at, n, shift);
#pragma unroll
    for (int j = 0; j < count; ++j) values[j] = __fmaf_rn(values[j], scale, shift[j]);
  }

  __device__ __forceinline__ float z(float logit, int at) const {
    return __fmaf_rn(logit, scale, bias == nullptr ? 0.f : bias[at]);
  }
};

__device__ __forceinline__ Scaling scaling_of(const RowChunk& chunk) {
  return {chunk.scale, chunk.bias};
}

// What the pass over a row does with the logits it reads: drops them, or keeps them in shared
// memory.
struct KeepNothing {
  template <typename In>
  __device__ void vector(int, const Vector<In>&) const {}
  template <typename In>
  __device__ void item(int, In) const {}
};

template <typename In>
struct KeepIn {
  In* held;
  __device__ void vector(int first, const Vector<In>& values) const {
    store_vector(held + first, values);
  }
  __device__ void item(int at, In value) const { held[at] = value; }
};

// e^x for x <= 0, with a rounded product and constant. The relative error is at most
// 2^-22 + 1.25 |x| 2^-24, for example 1.2e-6 at x = -12; the absolute error is at most 2.5e-7. expf
// compiles to 8 instructions on sm_90 instead of 2, and the issue of instructions already takes 60%
// of the time of memory in hybrid_rows on an H100 (docs/gpu_model.md).
struct RowExp {
  __device__ __forceinline__ float operator()(float x) const {
    constexpr float kLog2OfE = 1.44269504f;
    return exp2_approximate(x * kLog2OfE);
  }
};

// Items that a thread processes at a time: whole 16-byte vectors in every type.
constexpr int kUnit = 8;

// This thread's share of the softmax sums over z[begin, end); row + begin is aligned to a vector.
// Issues kBatch loads before it waits for the first, to hide the latency of memory.
template <typename In, typename Keep>
__device__ __forceinline__ SoftmaxSums<float> thread_sums(const In* row, const Scaling& scaling,
                                                          int begin, int end, Keep keep) {
  constexpr int kItems = kVectorItems<In>;
  constexpr int kBatch = 4;
  constexpr int kVectors = kUnit / kItems;  // that are added in one step
  const int threads = threads_of_block(), thread = thread_in_block();
  const int vectors = (end - begin) / kItems;
  SoftmaxSums<float> sums = no_logits<float>();
  for (int first = thread; first < vectors; first += kBatch * threads) {
    Vector<In> batch[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int v = first + b * threads;
      if (v < vectors) batch[b] = load_vector(row + begin + v * kItems);
    }
#pragma unroll
    for (int b = 0; b < kBatch; b += kVectors) {
      float z[kUnit];
#pragma unroll
      for (int h = 0; h < kVectors; ++h) {
        const int v = first + (b + h) * threads;
        float values[kItems];
#pragma unroll
        for (int j = 0; j < kItems; ++j) values[j] = widened(batch[b + h].items[j]);
        if (v < vectors) {
          keep.vector(v * kItems, batch[b + h]);
          scaling.apply(values, begin + v * kItems, kItems);
        }
        // A logit of -inf beyond the end adds nothing.
#pragma unroll
        for (int j = 0; j < kItems; ++j) z[h * kItems + j] = v < vectors ? values[j] : -INFINITY;
      }
      sums = with_logits<RowExp>(sums, z);
    }
  }
  const int last = begin + vectors * kItems + thread;  // of the rest that fills no vector
  if (last < end) {
    keep.item(last - begin, row[last]);
    const float z[1] = {scaling.z(widened(row[last]), last)};
    sums = with_logits<RowExp>(sums, z);
  }
  return sums;
}

// Merges the sums of a warp; the result is in lane 0. Shuffles down, not across: `merged` rounds
// its two arguments differently, so a butterfly would leave different bits in the lanes.
__device__ __forceinline__ SoftmaxSums<float> warp_merged(SoftmaxSums<float> sums) {
#pragma unroll
  for (int offset = kWarpLanes / 2; offset > 0; offset /= 2) {
    const SoftmaxSums<float> other = {__shfl_down_sync(kAllLanes, sums.top, offset),
                                      __shfl_down_sync(kAllLanes, sums.sum, offset),
                                      __shfl_down_sync(kAllLanes, sums.weighted, offset)};
    sums = merged<RowExp>(sums, other);
  }
  return sums;
}

// Merges the sums of a block; the result is in thread 0.
__device__ __forceinline__ SoftmaxSums<float> block_merged(SoftmaxSums<float> sums,
                                                           SoftmaxSums<float>* of_warps) {
  const int warps = threads_of_block() / kWarpLanes;
  sums = warp_merged(sums);
  if (lane_of_warp() == 0) of_warps[warp_of_block()] = sums;
  __syncthreads();
  if (warp_of_block() != 0) return sums;
  return warp_merged(lane_of_warp() < warps ? of_warps[lane_of_warp()] : no_logits<float>());
}

__device__ __forceinline__ void write_summary(const RowStatsOut& out, int64_t row,
                                              const RowSummary<float>& values) {
  out.top[row] = values.top;
  out.log_sum[row] = values.log_sum;
  out.logp[row] = values.logp;
  out.entropy[row] = values.entropy;
}

// The summary of a row whose target is not valid.
__device__ __forceinline__ RowSummary<float> invalid_summary(const Target& target) {
  return same_everywhere(target.dead ? 0.f : NAN);
}

}  // namespace wavalign::cuda
