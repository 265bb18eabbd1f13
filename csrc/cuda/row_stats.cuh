// Rows of logits: where they are, what their target is, and one sweep over each for its statistics.
#pragma once

#include "common/token_math.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/vector_access.cuh"
#include "cuda/warps.cuh"

namespace wavalign::cuda {

constexpr int kMostRowThreads = 512;
constexpr int kRowBlocks = 2;  // at least, on a multiprocessor
constexpr int kMostRowWarps = kMostRowThreads / kWarpLanes;
// Positions inside a row are ints with room for a step beyond the end.
constexpr int64_t kMostVocab = int64_t{1} << 30;

// Threads for the `items` of a row that one block works on, two or more vectors for each. Sums are
// a tree fixed by this number: it may depend on the vocabulary and on nothing else.
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

// Calls `function` with values of the types of the logits and of their gradient, which is no wider.
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
  bool dead;   // no token: its results are 0
  bool valid;  // neither dead nor outside the vocabulary
};

__device__ __forceinline__ Target target_of(const RowChunk& chunk, int64_t row) {
  const int64_t id = chunk.targets[row];
  const bool dead = id == chunk.ignore_index;
  const bool valid = !dead && id >= 0 && id < chunk.vocab;
  return {valid ? static_cast<int>(id) : -1, dead, valid};
}

// z = logit * scale + bias. One rounding, spelled out: a product left to the compiler is rounded in
// one place and not in another, and z - top would not be 0 at the top.
struct Scaling {
  float scale;
  const float* bias;  // or null

  // The first `n` of `values`, which are logits from `at` on, become z.
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

// Where a sweep leaves the logits it has read: nowhere, or in shared memory.
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

// e^x for x <= 0. The product and its constant are rounded, so the relative error is at most
// 2^-22 + 1.25 |x| 2^-24: 1.2e-6 of e^-12, and absolutely nowhere more than 2.5e-7. expf takes four
// times as many instructions, with which a row would wait for its arithmetic and not for memory.
struct RowExp {
  __device__ __forceinline__ float operator()(float x) const {
    constexpr float kLog2OfE = 1.44269504f;
    return exp2_approximate(x * kLog2OfE);
  }
};

// Items that a thread takes at a time: whole vectors on both sides of every conversion.
constexpr int kUnit = 8;

// This thread's share of the sums over z[begin, end), begin on a vector. Loads are started several
// at a time, before the first is waited for: what is in flight must cover the way to memory.
template <typename In, typename Keep>
__device__ __forceinline__ SoftmaxSums<float> thread_sums(const In* row, const Scaling& scaling,
                                                          int begin, int end, Keep keep) {
  constexpr int kItems = kVectorItems<In>;
  constexpr int kBatch = 4;
  constexpr int kVectors = kUnit / kItems;  // of one step of the sums
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
        // What is beyond the end counts for nothing.
#pragma unroll
        for (int j = 0; j < kItems; ++j) z[h * kItems + j] = v < vectors ? values[j] : -INFINITY;
      }
      sums = with_logits<RowExp>(sums, z);
    }
  }
  const int last = begin + vectors * kItems + thread;  // what fills no vector
  if (last < end) {
    keep.item(last - begin, row[last]);
    const float z[1] = {scaling.z(widened(row[last]), last)};
    sums = with_logits<RowExp>(sums, z);
  }
  return sums;
}

// Sums over the warp, in lane 0. Down the lanes and not across: a merge rounds its two sides
// differently, so only one lane's tree can be the one that counts.
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

// Sums over the block, in thread 0.
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

// Of a row without a valid target.
__device__ __forceinline__ RowSummary<float> invalid_summary(const Target& target) {
  return same_everywhere(target.dead ? 0.f : NAN);
}

}  // namespace wavalign::cuda
